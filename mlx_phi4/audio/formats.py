"""What the bytes of a file tell of its length, where libsndfile would take a part of it for the whole."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import TruncatedError

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
MP3_RESYNC = 1024  # bytes that are no frame after which libsndfile's decoder gives up
MP3_LOST = 0.02  # of the samples that a header tells: more missing means a cut-off file


def check_length(file: BinaryIO, name: str) -> None:
    """Raise TruncatedError if a file without compression, an ogg or an mp3 file ends before its header says.

    An mp3 file is also looked through for what is no sound: libsndfile would come to the same result, but its decoder
    writes about it on standard error, where nothing but descriptors of the whole process could be turned away.
    """
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
    elif head[:3] == b"ID3" or _mp3_frame(head[:4])[0]:
        file.seek(0)
        _check_mp3(file, name)
    if have < needed:
        raise TruncatedError(f"{name}: is truncated: {have} of {needed} bytes of sound are there")


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
    raise TruncatedError(missing)


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


def _check_mp3(file: BinaryIO, name: str) -> None:
    total, told, gap = mp3_length(file)
    if told is None or total > told + 4 * MP3_FRAME:  # no header says how long it is; or several in a row, for PyAV
        return
    if total < told * (1 - MP3_LOST) - 2 * MP3_FRAME and gap is None:
        raise TruncatedError(f"{name}: is truncated: {total} of {told} samples are there")
    if gap is not None:
        raise TruncatedError(f"{name}: is truncated or corrupt at {gap:.2f} s: what follows is no sound")


def mp3_length(file: BinaryIO) -> tuple[int, int | None, float | None]:
    """Samples in all frames of an mp3 file, those that its header tells, and the second of the first large gap.

    Without a count (Xing, Info, VBRI) libsndfile guesses from the first frame, and stops where it guessed.
    """
    total, told, gap, first = 0, None, None, True
    for frame, samples, rate, skipped in _mp3_frames(file):
        if first and (count := _told_frames(frame)) is not None:
            told, first = count * samples, False
            continue
        if skipped > MP3_RESYNC and not first and gap is None:
            gap = total / rate
        first = False
        total += samples
    return total, told, gap


def _told_frames(frame: bytes) -> int | None:
    """The frames that follow, as the first frame of an mp3 file may tell; None where it is a frame of sound."""
    for mark, at in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        found = frame.find(mark, 0, 64)
        if found >= 0 and len(frame) >= found + at + 4:
            counted = mark == b"VBRI" or frame[found + 7] & 1
            return struct.unpack_from(">I", frame, found + at)[0] if counted else None
    return None


def _mp3_frames(file: BinaryIO) -> Iterator[tuple[bytes, int, int, int]]:
    """Bytes, samples and rate of each Layer III frame, and the bytes in front that are none; tags are passed over."""
    window, at, skipped = file.read(1 << 20), 0, 0
    while True:
        if at + 4096 > len(window):
            window, at = window[at:] + file.read(1 << 20), 0
        length, samples = _mp3_frame(window[at : at + 4])
        # what looks like a frame after something else needs a second one behind it
        if length and (not skipped or _mp3_frame(window[at + length : at + length + 4])[0]):
            if at + length > len(window):
                return
            rate = MP3_RATES[window[at + 1] >> 3 & 3][window[at + 2] >> 2 & 3]
            yield window[at : at + length], samples, rate, skipped
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
