"""From a recording in any form to blocks of samples, in constant memory.

libsndfile reads wav, flac, mp3, ogg, opus and aiff; PyAV (``pip install "mlx_phi4[media]"``) the rest: see ``media``.
"""

import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..arguments.kinds import shown
from ..errors import MediaError, TruncatedError
from ..sources import is_array, opened
from . import containers as media
from . import formats
from .arrays import BLOCK_SAMPLES, ArraySource, read_pair

SAMPLE_RATE = 16_000  # Hz
NARROW_RATE = 8_000  # Hz, the only other rate that is taken as it is
HIGHEST_RATE = 768_000  # Hz
MALFORMED = 3  # libsndfile's code of a format that it knows, broken
UNKNOWN_FRAMES = 1 << 62  # libsndfile reports more than this many where a header names no length
FINE_SAMPLES = 1024  # samples read at once where a file may break off: what is read with the break is lost
LOUDEST = 10.0  # of samples: mixes and decoders pass 1 by a little; beyond this they were never scaled to it

NATIVE_SUFFIXES = frozenset(
    {".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64"}
)
MEDIA_SUFFIXES = NATIVE_SUFFIXES | media.SUFFIXES


class Recording:
    """An open recording: mono float32 samples at 16 kHz, or at 8 kHz if it was recorded so.

    Attributes:
        name: the path, or what it is otherwise, for messages.
        rate: of the samples of ``blocks``, in Hz.
        duration: in seconds, as its header says; None when it does not.
        lost: with ``partial``, why it ends before that, once ``blocks`` has come there.
    """

    def __init__(self, name: str, source, partial: bool = False, lost: str | None = None):
        if source.rate < NARROW_RATE:
            raise MediaError(f"{name}: sample rate is {source.rate} Hz, at least {NARROW_RATE} are needed")
        if source.rate > HIGHEST_RATE:
            raise MediaError(f"{name}: sample rate is {source.rate} Hz, at most {HIGHEST_RATE} are taken")
        self.name = name
        self.rate = source.rate if source.rate in (SAMPLE_RATE, NARROW_RATE) else SAMPLE_RATE
        self.duration = source.duration
        self.lost = lost
        self._source, self._partial = source, partial

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file or the array."""
        self._source = None

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (BLOCK_SAMPLES,) float32 from the beginning, channels averaged; the last is shorter.

        Read-only, as a block may be the caller's own array. The samples do not depend on how they are stored.

        Raises:
            TruncatedError: it ends before its header says, unless it was opened as ``partial``.
            MediaError: it is corrupt or empty, or holds samples that are NaN, infinite or not scaled to [-1, 1].
        """
        if self._source is None:
            raise MediaError(f"{self.name}: is closed")
        mono = self._mono()
        return mono if self.rate == self._source.rate else rechunk(self._resampled(mono), BLOCK_SAMPLES)

    def _mono(self) -> Iterator[np.ndarray]:
        position = 0
        # averaged first: in a container the number of channels may change on the way
        for mono in rechunk(map(_average, self._chunks()), BLOCK_SAMPLES):
            if not np.isfinite(mono).all():
                seconds = (position + np.flatnonzero(~np.isfinite(mono))[0]) / self._source.rate
                raise MediaError(f"{self.name}: holds NaN or infinite samples, the first at {seconds:.3f} s")
            if (peak := np.abs(mono).max()) > LOUDEST:
                raise MediaError(
                    f"{self.name}: its samples are too large (up to {peak:.0f}), expected -1 to 1; "
                    "divide those of 16 bits by 32768"
                )
            position += len(mono)
            yield mono
        if position == 0:
            raise MediaError(self.lost or f"{self.name}: holds no samples")

    def _chunks(self) -> Iterator[np.ndarray]:
        """The source's chunks; of a truncated one, where that is wanted, those that are there."""
        try:
            yield from self._source.chunks()
        except TruncatedError as error:
            if not self._partial:
                raise
            self.lost = self.lost or str(error)

    def _resampled(self, mono: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        import soxr

        stream = soxr.ResampleStream(self._source.rate, self.rate, 1, dtype="float32")
        for block in mono:
            yield stream.resample_chunk(np.ascontiguousarray(block))
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def open_recording(source: Any, *, partial: bool = False) -> Recording:
    """Open a recording.

    Args:
        source: a path (also with ``~`` or as file://), bytes, a file opened for bytes, {"bytes", "path"} or {"array",
            "sampling_rate"} as data sets have them, or (array, rate in Hz) with an array of numpy, MLX, torch or the
            like: (samples,), (samples, channels) or (channels, samples), where up to 64 are channels. Arrays hold
            floats in [-1, 1], or integers of 8, 16 or 32 bits of full scale. Integers of 64 bits, whose scale nobody
            knows, and floats beyond ``LOUDEST`` are refused.
        partial: take what a truncated recording still holds; ``Recording.lost`` then says why there is no more.

    Raises:
        MediaError: it cannot be opened, is empty or is not a recording.
    """
    if isinstance(source, Mapping) and "array" in source:
        source = source["array"], source.get("sampling_rate")
    if isinstance(source, (tuple, list)):
        return Recording("audio array", ArraySource(*read_pair(source)))
    source = opened(source)
    if isinstance(source, bytes):
        return _open_file(lambda: io.BytesIO(source), "audio bytes", partial)
    if isinstance(source, Path):
        return _open_path(source, partial)
    expected = "expected (array, rate)" if is_array(source) else "expected a path, bytes, an open file or (array, rate)"
    raise MediaError(f"audio is {shown(source)}, {expected}")


def rechunk(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Arrays of any lengths to arrays of ``size``; the last may be shorter, but is not empty."""
    held: list[np.ndarray] = []
    count = 0
    for array in arrays:
        held.append(array)
        count += len(array)
        if count >= size:
            joined = np.concatenate(held) if len(held) > 1 else array
            whole = count - count % size
            yield from (joined[start : start + size] for start in range(0, whole, size))
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused
def _average(chunk: np.ndarray) -> np.ndarray:
    """(samples, channels) -> (samples,)."""
    return np.ascontiguousarray(chunk).mean(axis=1) if chunk.shape[1] > 1 else chunk[:, 0]


def _open_path(path: Path, partial: bool) -> Recording:
    name = str(path)
    try:
        with path.open("rb") as file:
            kind = os.fstat(file.fileno()).st_mode
            if stat.S_ISFIFO(kind):  # another program's output: it cannot be read twice
                data = file.read()
                return _open_file(lambda: io.BytesIO(data), name, partial)
            if not stat.S_ISREG(kind):
                raise MediaError(f"{name}: cannot be read: it is not a file")
        return _open_file(lambda: path.open("rb"), name, partial)
    except MediaError:
        raise
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise MediaError(f"{name}: is a folder, expected a recording") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise MediaError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _open_file(open_file: Callable[[], BinaryIO], name: str, partial: bool) -> Recording:
    """libsndfile first, by content, as suffixes lie; what it does not know, or not wholly, goes to PyAV."""
    import soundfile

    lost = None
    with open_file() as file:
        if not file.read(1):
            raise MediaError(f"{name}: is empty")
        try:
            formats.check_length(file, name)
        except TruncatedError as error:
            if not partial:
                raise
            lost = str(error)
    try:
        sound = _Sound(open_file, name, FINE_SAMPLES if partial else BLOCK_SAMPLES)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        reason = _reason(error)
        why = f"is not audio that can be read: {reason}"
        if getattr(error, "code", 0) == MALFORMED:  # PyAV would take a cut-off file for a short one
            why = f"is truncated or corrupt: {reason}"
            lost = lost or f"{name}: {why}"
            if not partial:
                raise TruncatedError(lost) from None
        return Recording(name, media.open_media(open_file, name, why), partial, lost)
    if sound.lost:
        return Recording(name, media.open_media(open_file, name, sound.lost, partly=True), partial, lost)
    return Recording(name, sound, partial, lost)


class _Sound:
    """A file that libsndfile knows. Each reading opens it anew.

    ``lost`` says what libsndfile would silently leave out, if anything.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], name: str, step: int):
        self.open_file, self.name, self.lost, self._step = open_file, name, None, step
        with open_file() as file, _sound_file(file) as sound:
            self.rate, kind = sound.samplerate, sound.format
            self.frames = sound.frames if 0 < sound.frames < UNKNOWN_FRAMES else None
        if kind in ("MP3", "OGG"):
            with open_file() as file:
                self._check_whole(file, kind)
        self.duration = self.frames / self.rate if self.frames and self.rate else None

    def _check_whole(self, file: BinaryIO, kind: str) -> None:
        if kind == "OGG":
            self.lost = "is several ogg streams in a row" if formats.is_chained(file) else None
            return
        total, told, _ = formats.mp3_length(file)
        if total > (self.frames or 0) + 4 * formats.MP3_FRAME:  # up to three frames are the encoder's own
            self.lost = (
                f"holds {total / self.rate:.1f} s, of which its header tells {(self.frames or 0) / self.rate:.1f} s"
            )
        elif total and told is None:  # libsndfile's guess counts tags as sound
            self.frames = min(self.frames, total)

    def chunks(self) -> Iterator[np.ndarray]:
        import soundfile

        count, frames = 0, self.frames or UNKNOWN_FRAMES
        try:
            with self.open_file() as file, _sound_file(file) as sound:
                while count < frames:
                    chunk = sound.read(min(self._step, frames - count), dtype="float32", always_2d=True)
                    if len(chunk) == 0:
                        break
                    count += len(chunk)
                    yield chunk
        except soundfile.LibsndfileError as error:
            at = f"at {count / self.rate:.2f} s"
            raise TruncatedError(f"{self.name}: is truncated or corrupt {at}: {_reason(error)}") from None
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be read: {error.strerror or error}") from None
        if self.frames and count < self.frames:
            raise TruncatedError(f"{self.name}: is truncated: {count} of {self.frames} samples can be read")


def _reason(error: Exception) -> str:
    """What libsndfile says, without its ornaments."""
    reason = getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(".")
    return "its header tells 0 Hz or no channels" if "SF_INFO" in reason else reason


def _sound_file(file: BinaryIO):
    """Open for reading straight on.

    soundfile seeks to where it is after each read; in mp3 that changes the samples that follow.
    """
    import soundfile

    sound = soundfile.SoundFile(file)
    sound.seekable = lambda: False
    return sound
