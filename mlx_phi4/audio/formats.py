"""What the bytes of a file tell of its length, where libsndfile would take a part of it for the whole."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import MediaError

STREAMED = 0x7F000000  # sizes from here up (and 0) are left by programs that write to a pipe and cannot know them
OGG_PAGE = 65_307  # bytes, the largest
# Kilobits a second of Layer III by index, for MPEG-1 and for MPEG-2 and 2.5
MP3_BITRATES = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version
MP3_FRAME = 1152  # samples, at most
MP3_GAP = 1 << 16  # bytes that are no frame (tags, pictures) before the search ends


def check_length(file: BinaryIO, name: str) -> None:
    """Raise MediaError if a file without compression, or an ogg file, ends before its header says."""
    end = file.seek(0, 2)
    file.seek(0)
    head = file.read(24)
    have = needed = 0
    if (order := {b"RIFF": "<", b"RF64": "<", b"RIFX": ">"}.get(head[:4])) and head[8:12] == b"WAVE":
        have, needed = _sound_chunk(file, end, order, b"data", f"{name}: is truncated: a wav file without sound data")
    elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        have, needed = _sound_chunk(file, end, ">", b"SSND", f"{name}: is truncated: an aiff file without sound data")
    elif head[:4] == b".snd" and len(head) == 24:
        start, size = struct.unpack_from(">II", head, 4)
        have, needed = end - start, size if 0 < size < STREAMED else 0
    elif head[:4] == b"riff" and len(head) == 24:  # Sony Wave64
        have, needed = end, struct.unpack_from("<Q", head, 16)[0]
    elif head[:4] == b"OggS":
        have, needed = _last_page(file, end)
    if have < needed:
        raise MediaError(f"{name}: is truncated: {have} of {needed} bytes of sound are there")


def _sound_chunk(file: BinaryIO, end: int, order: str, wanted: bytes, missing: str) -> tuple[int, int]:
    """Walk the chunks to the one of sound: bytes that are there, bytes that its header names (0: unknown)."""
    position, large = 12, 0
    while position + 8 <= end:
        file.seek(position)
        kind, size = struct.unpack(f"{order}4sI", file.read(8))
        if kind == b"ds64" and len(sizes := file.read(16)) == 16:  # RF64: what is too large for 32 bits
            large = struct.unpack_from("<Q", sizes, 8)[0]
        if kind == wanted:
            if size == 0xFFFFFFFF and large:
                return end - position - 8, large
            return end - position - 8, size if 0 < size < STREAMED else 0
        position += 8 + size + size % 2
    raise MediaError(missing)


def _last_page(file: BinaryIO, end: int) -> tuple[int, int]:
    """The length of an ogg file, and the one it needs for its last page."""
    position, page = _find_last_page(file, end)
    if len(page) < 27 or len(page) < 27 + page[26]:
        return end, end + 1
    return end, position + 27 + page[26] + sum(page[27 : 27 + page[26]])


def _find_last_page(file: BinaryIO, end: int) -> tuple[int, bytes]:
    start = max(0, end - OGG_PAGE - 27)
    file.seek(start)
    tail = file.read()
    at = max(0, tail.rfind(b"OggS"))
    return start + at, tail[at:]


def is_chained(file: BinaryIO) -> bool:
    """Whether an ogg file is several in a row, as recorded radio is: libsndfile reads the first."""
    head = file.read(18)
    _, page = _find_last_page(file, file.seek(0, 2))
    return head[14:18] != page[14:18]  # serial numbers of the first and the last stream


def mp3_length(file: BinaryIO) -> tuple[int, bool]:
    """Samples in all frames of an mp3 file, and whether its header counts them.

    Without a count (Xing, Info, VBRI) libsndfile guesses from the first frame, and stops where it guessed.
    """
    total, counted = 0, None
    for frame, samples in _mp3_frames(file):
        if counted is None:
            counted = any(mark in frame[:64] for mark in (b"Xing", b"Info", b"VBRI"))
        total += samples
    return total, bool(counted)


def _mp3_frames(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The bytes and samples of each Layer III frame, over tags and what else is between them."""
    window, at, skipped = file.read(1 << 20), 0, 0
    while True:
        if at + 4096 > len(window):
            window, at = window[at:] + file.read(1 << 20), 0
        length, samples = _mp3_frame(window[at : at + 4])
        # what looks like a frame after something else needs a second one behind it
        if length and (not skipped or _mp3_frame(window[at + length : at + length + 4])[0]):
            if at + length > len(window):
                return
            yield window[at : at + length], samples
            at, skipped = at + length, 0
        elif window[at : at + 3] == b"ID3" and len(window) >= at + 10:
            first, second, third, fourth = window[at + 6 : at + 10]  # seven bits of each
            size = 10 + (first << 21 | second << 14 | third << 7 | fourth)
            file.seek(max(0, at + size - len(window)), 1)
            at = min(at + size, len(window))
        else:
            found = window.find(b"\xff", at + 1)
            step = (found if found >= 0 else len(window)) - at
            at, skipped = at + step, skipped + step
            if step == 0 or skipped > MP3_GAP:
                return


def _mp3_frame(head: bytes) -> tuple[int, int]:
    """Bytes and samples of a Layer III frame by its header; 0, 0 if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0, 0
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or rate == 3 or bitrate in (0, 15):
        return 0, 0
    samples = MP3_FRAME if version == 3 else MP3_FRAME // 2
    bits = MP3_BITRATES[3 if version == 3 else 2][bitrate] * 1000
    return samples // 8 * bits // MP3_RATES[version][rate] + (head[2] >> 1 & 1), samples
