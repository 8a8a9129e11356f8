"""Sound on a pipe, block by block as it arrives: raw samples, wav, or encoded in any way that can be read onwards."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..errors import MediaError
from .arrays import MOST_CHANNELS
from .containers import FFMPEG_FORMATS
from .formats import STREAMED
from .reader import HIGHEST_RATE, LOUDEST, NARROW_RATE, SAMPLE_RATE

HEAD = 16  # bytes that tell a format
READ = 1 << 16  # bytes asked for at once; a pipe gives what it has
MOST_HEADER = 1 << 20  # bytes of a wav file before its samples
LOUDEST_NOISE = 0.5  # root mean square of full scale: above it are bytes that are no samples
KNOWN = (
    b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"0&\xb2u", b"#!AMR", b"FLV\x01", b"caff", b"FORM", b".snd", b"RIFX",
)  # fmt: skip
SYNC = (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9")  # mp3 and aac: two samples may look so, too
TS_SYNC, TS_PACKET = b"G", 188  # of MPEG transport streams: the first byte of each packet, and its length
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # wav's names of formats
RAW = "<i2"
_WIDTHS = {(PCM, 8): "u1", (PCM, 16): "<i2", (PCM, 24): "24", (PCM, 32): "<i4", (FLOAT, 32): "<f4", (FLOAT, 64): "<f8"}


class PipedSound:
    """Sound that another program writes.

    Attributes:
        rate: of the blocks, in Hz.
        form: what it is, for a person.
    """

    name = "standard input"
    waiting = 0.0  # seconds in memory that were not taken yet: a pipe holds them back itself

    def __init__(self, file: BinaryIO, rate: int | None = None, channels: int | None = None):
        """Read the head of an open file.

        Args:
            file: opened for bytes; what it has is taken as it comes (``read1``).
            rate: of raw samples (16-bit, little-endian), in Hz; None is 16,000. Sound that tells its own has to agree.
            channels: of raw samples; None is 1.

        Raises:
            MediaError: it is empty, no sound, or of another rate than that.
        """
        self._file, self._held, self._encoded = file, b"", None
        head = self._peek(HEAD)
        if not head:
            raise MediaError(f"{self.name}: is empty")
        if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
            told = self._open_wav()
        elif self._is_encoded(head, rate):
            told = self._open_encoded()
        else:
            self._check_raw()
            told, self.form, self._sample, self._left = None, "raw, 16 bits", RAW, None
            self._channels = channels or 1
        if told is not None and rate not in (None, told):
            raise MediaError(f"{self.name}: its sound says {told} Hz, and --rate says {rate}")
        self.rate = told or rate or SAMPLE_RATE
        if not NARROW_RATE <= self.rate <= HIGHEST_RATE:
            raise MediaError(f"{self.name}: sample rate is {self.rate} Hz, expected {NARROW_RATE} to {HIGHEST_RATE}")
        if told is None:
            self.form += f", {self._channels} channel{'s' * (self._channels > 1)}, {self.rate} Hz"

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield mono float32 (n,), as it comes. Raises MediaError where it turns out to be no sound."""
        for samples in self._decoded() if self._encoded is not None else self._plain():
            if not np.isfinite(samples).all() or np.abs(samples).max(initial=0.0) > LOUDEST:
                raise MediaError(f"{self.name}: holds samples that are not finite, or far beyond full scale")
            yield samples

    def __enter__(self) -> "PipedSound":
        return self

    def __exit__(self, *exception) -> None:
        if self._encoded is not None:
            self._encoded.close()

    def read(self, size: int = READ) -> bytes:
        """The next bytes, at most so many, at least one unless it has ended; what FFmpeg calls."""
        if self._held:
            found, self._held = self._held[:size], self._held[size:]
            return found
        try:
            return self._file.read1(size)
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be read: {error.strerror or error}") from None

    def _peek(self, size: int) -> bytes:
        """So many bytes, or all, which are read again later."""
        while len(self._held) < size:
            held, self._held = self._held, b""
            more = self.read()
            self._held = held + more
            if not more:
                break
        return self._held[:size]

    def _is_encoded(self, head: bytes, rate: int | None) -> bool:
        """Whether it is in a known format; two bytes alone tell only where nobody said that samples come."""
        if head.startswith(KNOWN) or head[4:8] in (b"ftyp", b"moov", b"styp") or (head.startswith(SYNC) and not rate):
            return True
        packets = self._peek(2 * TS_PACKET + 1)[::TS_PACKET] if head[:1] == TS_SYNC else b""
        return packets == 3 * TS_SYNC

    def _check_raw(self) -> None:
        """Refuse what cannot be samples: text, and bytes without any order."""
        found = self._peek(2048)
        if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in found):
            raise MediaError(f"{self.name}: is text, expected sound")
        samples = np.frombuffer(found[: len(found) // 2 * 2], RAW) / 32768
        if len(samples) >= 512 and np.sqrt(np.mean(samples**2)) > LOUDEST_NOISE:
            raise MediaError(
                f"{self.name}: is no sound in a known format, nor raw samples of 16 bits, little-endian; "
                "ffmpeg -i ... -f wav - converts others"
            )

    def _open_wav(self) -> int:
        """Read a wav's header; its rate."""
        at, form = 12, None
        while True:
            header = self._peek(at + 8)[at:]
            size = int.from_bytes(header[4:8], "little")
            if len(header) < 8 or at > MOST_HEADER:
                raise MediaError(f"{self.name}: is a wav without samples")
            if header[:4] == b"data":
                break
            if header[:4] == b"fmt ":
                form = self._peek(at + 8 + min(size, 64))[at + 8 :]
            at += 8 + size + size % 2
        if form is None or len(form) < 16:
            raise MediaError(f"{self.name}: is a wav whose format is missing")
        kind, channels, rate = (int.from_bytes(form[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
        bits = int.from_bytes(form[14:16], "little")
        if kind == EXTENSIBLE and len(form) >= 26:
            kind = int.from_bytes(form[24:26], "little")
        if (kind, bits) not in _WIDTHS:
            return self._open_encoded()
        if not 1 <= channels <= MOST_CHANNELS:
            raise MediaError(f"{self.name}: is a wav of {channels} channels, expected 1 to {MOST_CHANNELS}")
        self._held = self._held[at + 8 :]
        self._sample, self._channels = _WIDTHS[kind, bits], channels
        self._left = size if 0 < size < STREAMED else None  # programs that write to a pipe cannot know it
        self.form = f"wav, {bits} bits, {channels} channel{'s' * (channels > 1)}, {rate} Hz"
        return rate

    def _plain(self) -> Iterator[np.ndarray]:
        """Samples as they stand."""
        width = 3 if self._sample == "24" else np.dtype(self._sample).itemsize
        frame, rest = width * self._channels, b""
        while data := self.read():
            if self._left is not None:
                data, self._left = data[: self._left], self._left - len(data[: self._left])
            whole = len(rest + data) // frame * frame
            block, rest = (rest + data)[:whole], (rest + data)[whole:]
            if block:
                yield _floats(block, self._sample).reshape(-1, self._channels).mean(axis=1)
            if self._left == 0:
                return

    def _open_encoded(self) -> int:
        """Have PyAV read the head; its rate."""
        try:
            import av
        except ImportError:
            install = 'needs PyAV to be read: pip install "mlx_phi4[media]"'
            raise MediaError(f"{self.name}: {install}; raw samples and wav do not") from None
        # a little of the sound has to be enough to tell its form: who speaks is waiting
        options = {"format_whitelist": FFMPEG_FORMATS, "probesize": "32768", "analyzeduration": "200000"}
        try:
            self._encoded = av.open(self, options=options, metadata_errors="replace")
            stream = next(iter(self._encoded.streams.audio), None)
        except av.FFmpegError as error:
            raise MediaError(f"{self.name}: is not sound that can be read as it arrives: {error.strerror}") from None
        if stream is None or stream.codec_context is None or not stream.rate:
            raise MediaError(f"{self.name}: has no sound")
        self.form = f"{self._encoded.format.name.split(',')[0]}, {stream.codec_context.name}, {stream.rate} Hz"
        return stream.rate

    def _decoded(self) -> Iterator[np.ndarray]:
        """Encoded sound; packets that are damaged are left out, as they would be on the radio."""
        import av

        converters: dict[Any, Any] = {}
        packets = self._encoded.demux(audio=0)
        while True:
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except av.InvalidDataError:
                continue
            except av.FFmpegError:  # it breaks off: there is no more
                return
            if packet is None:
                return
            for frame in frames:
                if frame.sample_rate != self.rate:
                    raise MediaError(f"{self.name}: its sample rate changes from {self.rate} to {frame.sample_rate} Hz")
                form = frame.format.name, frame.layout.name
                converter = converters.setdefault(form, av.AudioResampler(format="fltp"))
                for part in converter.resample(frame):
                    yield part.to_ndarray().mean(axis=0)


def _floats(data: bytes, sample: str) -> np.ndarray:
    """Bytes of samples of one kind -> float32 of full scale 1."""
    if sample == "24":
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3)
        padded = np.zeros((len(parts), 4), np.uint8)
        padded[:, 1:] = parts
        return (padded.view("<i4")[:, 0] / 2147483648).astype(np.float32)
    values = np.frombuffer(data, sample)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    full = 2.0 ** (8 * values.dtype.itemsize - 1)
    return ((values - full if values.dtype.kind == "u" else values) / full).astype(np.float32)
