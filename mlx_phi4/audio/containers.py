"""Sound out of containers that libsndfile does not know (m4a, mp4, mov, webm, mkv, ...), through PyAV."""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from ..errors import MediaError, TruncatedError

SUFFIXES = frozenset(
    {".m4a", ".m4b", ".aac", ".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".mka", ".wma", ".wmv", ".amr", ".avi"}
    | {".mpg", ".mpeg", ".ts", ".flv", ".mp2", ".ac3"}
)
# FFmpeg's names of the formats it may open. Not all of them, as a playlist makes it open other files, or the network.
FFMPEG_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,ac3,eac3,asf,amr,amrnb,amrwb,avi,flv,mpeg,mpegts,mp3,ogg,wav,aiff,caf,"
    "flac,ape,wv,tta,dts,mpc,mpc8,au,w64"
)
TIMED = ("mov", "matroska", "asf", "flv")  # formats with true times and durations; for others FFmpeg guesses
TRUNCATED = 0.02  # of the duration that a header tells, and a second: more missing means a cut-off file
GAP = 0.1  # s between two frames from which the sound was switched off, and silence is put in
LONGEST_GAP = 3600.0  # s, more is a corrupt time


def open_media(open_file: Callable[[], BinaryIO], name: str, reason: str, partly: bool = False) -> "_Media":
    """The sound of a container.

    Args:
        open_file: opens the file for reading bytes.
        reason: why libsndfile did not read it, to follow its name.
        partly: libsndfile could read a part of it.

    Raises:
        MediaError: PyAV is missing, or there is no sound in it.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        install = 'needs PyAV to be read: pip install "mlx_phi4[media]"'
        if partly:
            raise MediaError(f"{name}: {reason}, and {install}") from None
        with open_file() as file:
            known = _is_container(file.read(16)) or any(name.lower().endswith(suffix) for suffix in SUFFIXES)
        raise MediaError(f"{name}: {install if known else reason}") from None
    return _Media(open_file, name, reason)


def _is_container(head: bytes) -> bool:
    """mp4 and its family, Matroska and WebM, ASF (wma), AMR, AVI, Flash, ADTS (aac)."""
    starts = (b"\x1aE\xdf\xa3", b"0&\xb2u", b"#!AMR", b"FLV\x01", b"\xff\xf1", b"\xff\xf9")
    return head.startswith(starts) or head[4:8] in (b"ftyp", b"moov") or head[8:12] == b"AVI "


class _Media:
    """The first audio stream of a container. Each reading opens it anew."""

    def __init__(self, open_file: Callable[[], BinaryIO], name: str, reason: str):
        import av

        self.open_file, self.name = open_file, name
        try:
            with open_file() as file, self._container(file) as container:
                if not container.streams.audio:
                    raise MediaError(f"{name}: {'has no sound' if container.streams.video else reason}")
                if container.streams.audio[0].codec_context is None:
                    raise MediaError(f"{name}: its sound is damaged, or coded in a way that PyAV does not know")
                self.rate = container.streams.audio[0].rate or 0
                self.format = container.format.name.split(",")[0]
                self.duration = None
                if self.format in TIMED and container.duration:
                    self.duration = container.duration / av.time_base
        except av.FFmpegError as error:
            with open_file() as file:
                container = _is_container(file.read(16))
            raise MediaError(
                f"{name}: {'is truncated or corrupt: ' + error.strerror if container else reason}"
            ) from None

    @staticmethod
    def _container(file: BinaryIO):
        import av

        # titles and comments are not read, so it does not matter if they are not Unicode
        return av.open(file, options={"format_whitelist": FFMPEG_FORMATS}, metadata_errors="replace")

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield (samples, channels) float32."""
        import av

        count = 0
        try:
            with self.open_file() as file, self._container(file) as container:
                for chunk in self._decode(container):
                    count += len(chunk)
                    yield chunk
        except av.FFmpegError as error:
            at = f"at {count / self.rate:.2f} s"
            raise TruncatedError(f"{self.name}: is truncated or corrupt {at}: {error.strerror}") from None
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be read: {error.strerror or error}") from None

    def _decode(self, container) -> Iterator[np.ndarray]:
        """All frames in order, silence where the sound was switched off, so that times stay those of the container."""
        stream = container.streams.audio[0]
        start = (container.start_time or 0) / 1e6
        heard, end, converters = start, start, {}
        for packet in packets(container):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            for frame in self._frames(packet):
                samples = self._floats(frame, converters)
                time = heard if frame.time is None or self.format not in TIMED else frame.time
                if GAP < time - heard < LONGEST_GAP:
                    yield from _silence(round((time - heard) * self.rate), samples.shape[1])
                heard = time + frame.samples / self.rate
                yield samples
        if self.duration and end - start < self.duration * (1 - TRUNCATED) - 1:
            raise TruncatedError(f"{self.name}: is truncated: {end - start:.1f} of {self.duration:.1f} s can be read")

    def _frames(self, packet) -> list:
        import av

        try:
            return packet.decode()
        except av.FFmpegError:
            if self.format == "mp3":  # a tag between files that were put one behind another
                return []
            raise

    def _floats(self, frame, converters: dict) -> np.ndarray:
        """(samples, channels) float32 of one frame, by PyAV's own conversion."""
        import av

        if frame.sample_rate != self.rate:
            raise MediaError(f"{self.name}: its sample rate changes from {self.rate} to {frame.sample_rate} Hz")
        form = frame.format.name, frame.layout.name
        if form not in converters:
            # samples side by side: of more than 8 channels apart, PyAV looks for planes beyond those that are there
            converters[form] = av.AudioResampler(format="flt")
        parts = converters[form].resample(frame)
        return np.concatenate([part.to_ndarray().reshape(-1, part.layout.nb_channels) for part in parts])


def packets(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of an open container, of some of its streams or all, from where it stands.

    Those of a stream that begins on the way are left out: PyAV, which does not know it, raises an IndexError for each.
    """
    while True:
        try:
            yield from container.demux(*streams)
            return
        except IndexError:
            continue


def _silence(samples: int, channels: int) -> Iterator[np.ndarray]:
    while samples > 0:
        count = min(samples, 1 << 16)
        yield np.zeros((count, channels), np.float32)
        samples -= count
