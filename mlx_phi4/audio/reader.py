"""From a recording in any form to blocks of samples, in constant memory.

libsndfile reads wav, flac, mp3, ogg, opus and aiff; PyAV (``pip install "mlx_phi4[media]"``) the rest: see ``media``.
"""

import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import MediaError
from . import containers as media
from . import formats

SAMPLE_RATE = 16_000  # Hz
NARROW_RATE = 8_000  # Hz, the only other rate that is taken as it is
HIGHEST_RATE = 768_000  # Hz
MALFORMED = 3  # libsndfile's code of a format that it knows, broken
UNKNOWN_FRAMES = 1 << 62  # libsndfile reports more than this many where a header names no length
BLOCK_SAMPLES = 32_768  # samples read, resampled and yielded at once

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
    """

    def __init__(self, name: str, source):
        if source.rate < NARROW_RATE:
            raise MediaError(f"{name}: sample rate is {source.rate} Hz, at least {NARROW_RATE} are needed")
        if source.rate > HIGHEST_RATE:
            raise MediaError(f"{name}: sample rate is {source.rate} Hz, at most {HIGHEST_RATE} are taken")
        self.name = name
        self.rate = source.rate if source.rate in (SAMPLE_RATE, NARROW_RATE) else SAMPLE_RATE
        self.duration = source.duration
        self._source = source

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
            MediaError: it is truncated, corrupt, empty or holds NaN or infinite samples.
        """
        if self._source is None:
            raise MediaError(f"{self.name}: is closed")
        mono = self._mono()
        return mono if self.rate == self._source.rate else rechunk(self._resampled(mono), BLOCK_SAMPLES)

    def _mono(self) -> Iterator[np.ndarray]:
        position = 0
        # averaged first: in a container the number of channels may change on the way
        for mono in rechunk(map(_average, self._source.chunks()), BLOCK_SAMPLES):
            if not np.isfinite(mono).all():
                seconds = (position + np.flatnonzero(~np.isfinite(mono))[0]) / self._source.rate
                raise MediaError(f"{self.name}: holds NaN or infinite samples, the first at {seconds:.3f} s")
            position += len(mono)
            yield mono
        if position == 0:
            raise MediaError(f"{self.name}: holds no samples")

    def _resampled(self, mono: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        import soxr

        stream = soxr.ResampleStream(self._source.rate, self.rate, 1, dtype="float32")
        for block in mono:
            yield stream.resample_chunk(np.ascontiguousarray(block))
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def open_recording(source) -> Recording:
    """Open a path, bytes, or (array, rate) with array (samples,) or (samples, channels) and rate in Hz.

    Arrays hold floats in [-1, 1] or integers of full scale.

    Raises:
        MediaError: it cannot be opened, is empty or is not a recording.
    """
    if isinstance(source, (tuple, list)):
        return Recording("audio array", _Array(*_pair(source)))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return _open_file(lambda: io.BytesIO(data), "audio bytes")
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source)
    raise MediaError(f"audio of type {type(source).__name__}: expected a path, bytes or (array, rate)")


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


def _open_path(source: str | os.PathLike) -> Recording:
    name = str(source)
    try:
        path = Path(source).expanduser()
        with path.open("rb") as file:
            kind = os.fstat(file.fileno()).st_mode
            if stat.S_ISFIFO(kind):  # another program's output: it cannot be read twice
                data = file.read()
                return _open_file(lambda: io.BytesIO(data), name)
            if not stat.S_ISREG(kind):
                raise MediaError(f"{name}: cannot be read: it is not a file")
        return _open_file(lambda: path.open("rb"), name)
    except MediaError:
        raise
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise MediaError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _open_file(open_file: Callable[[], BinaryIO], name: str) -> Recording:
    """libsndfile first, by content, as suffixes lie; what it does not know, or not wholly, goes to PyAV."""
    import soundfile

    with open_file() as file:
        if not file.read(1):
            raise MediaError(f"{name}: is empty")
        formats.check_length(file, name)
    try:
        sound = _Sound(open_file, name)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        reason = _reason(error)
        if getattr(error, "code", 0) == MALFORMED:  # PyAV would take a cut-off file for a short one
            raise MediaError(f"{name}: is truncated or corrupt: {reason}") from None
        return Recording(name, media.open_media(open_file, name, f"is not audio that can be read: {reason}"))
    if sound.lost:
        return Recording(name, media.open_media(open_file, name, sound.lost, partly=True))
    return Recording(name, sound)


class _Array:
    """Samples in memory, converted block by block."""

    def __init__(self, array: np.ndarray, rate: int):
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > 64):
            raise MediaError(f"an audio array has shape {array.shape}, expected (samples,) or (samples, channels)")
        if array.dtype.kind not in "uif":
            raise MediaError(f"an audio array has dtype {array.dtype}, expected floats or integers")
        if array.size == 0:
            raise MediaError("audio array: holds no samples")
        self.array, self.rate = array.reshape(len(array), -1), rate
        self.duration = len(array) / rate if rate > 0 else None

    def chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.array), BLOCK_SAMPLES):
            yield _to_float(self.array[start : start + BLOCK_SAMPLES])


def _to_float(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "u":
        half = (np.iinfo(array.dtype).max + 1) / 2
        array = (array - half) / half
    elif array.dtype.kind == "i":
        array = array / (np.iinfo(array.dtype).max + 1.0)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return array.astype(np.float32)


def _pair(source) -> tuple[np.ndarray, int]:
    if len(source) != 2 or not isinstance(source[1], (int, np.integer)):
        raise MediaError("audio given as a pair must be (array, rate) with the rate in whole Hz")
    try:
        return np.asarray(source[0]), int(source[1])
    except ValueError as error:
        raise MediaError(f"audio array: {error}") from None


class _Sound:
    """A file that libsndfile knows. Each reading opens it anew.

    ``lost`` says what libsndfile would silently leave out, if anything.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], name: str):
        self.open_file, self.name, self.lost = open_file, name, None
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
        total, counted = formats.mp3_length(file)
        if total > (self.frames or 0) + 4 * formats.MP3_FRAME:  # up to three frames are the encoder's own
            self.lost = (
                f"holds {total / self.rate:.1f} s, of which its header tells {(self.frames or 0) / self.rate:.1f} s"
            )
        elif total and not counted:  # libsndfile's guess counts tags as sound
            self.frames = min(self.frames, total)

    def chunks(self) -> Iterator[np.ndarray]:
        import soundfile

        count, frames = 0, self.frames or UNKNOWN_FRAMES
        try:
            with self.open_file() as file, _sound_file(file) as sound:
                while count < frames:
                    chunk = sound.read(min(BLOCK_SAMPLES, frames - count), dtype="float32", always_2d=True)
                    if len(chunk) == 0:
                        break
                    count += len(chunk)
                    yield chunk
        except soundfile.LibsndfileError as error:
            at = f"at {count / self.rate:.2f} s"
            raise MediaError(f"{self.name}: is truncated or corrupt {at}: {_reason(error)}") from None
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be read: {error.strerror or error}") from None
        if self.frames and count < self.frames:
            raise MediaError(f"{self.name}: is truncated: {count} of {self.frames} samples can be read")


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
