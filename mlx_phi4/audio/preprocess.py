"""From a recording in any form to log-mel features.

Source: the published ``Phi4MultimodalFeatureExtractor``; 8 kHz as in Microsoft's own processor.
"""

import io
import math
import os
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..config import MEL_BINS, TIME_REDUCTION
from ..errors import MediaError

SAMPLE_RATE = 16_000  # Hz
NARROW_RATE = 8_000  # Hz, the only other rate that is taken as it is
WINDOW = 400  # samples at 16 kHz, 25 ms
HOP = 160  # samples at 16 kHz, 10 ms
FFT = 512  # samples at 16 kHz
PREEMPHASIS = 0.97
MAX_FREQUENCY = 7690.0  # Hz, upper edge of the last mel triangle
BLOCK = 1024  # frames computed at once: products depend on the number of rows, so it is fixed


@dataclass(frozen=True)
class Clip:
    """A recording as log-mel features (T, 80) float32, one frame each 10 ms."""

    features: np.ndarray

    @cached_property
    def key(self) -> str:
        """A digest of the content, for caches."""
        return blake2b(np.ascontiguousarray(self.features), digest_size=16).hexdigest()

    @property
    def tokens(self) -> int:
        """Length in tokens, 12.5 a second."""
        return math.ceil(len(self.features) / TIME_REDUCTION)


def prepare_clip(source) -> Clip:
    """Read one recording and compute its features.

    Args:
        source: path, bytes, or (array, rate) with array (samples,) or (samples, channels), floats
            in [-1, 1] or integers of full scale, and rate in Hz; a ``Clip`` passes.

    Raises:
        MediaError: it cannot be read, is too short, or holds NaN or infinite samples.
    """
    if isinstance(source, Clip):
        return source
    samples, rate, name = read_audio(source)
    samples, rate = to_model_rate(samples, rate)
    needed = WINDOW * rate // SAMPLE_RATE
    if len(samples) < needed:
        raise MediaError(f"{name}: {len(samples)} samples at {rate} Hz are shorter than one frame ({needed})")
    with np.errstate(over="ignore", invalid="ignore"):
        features = log_mel(samples, rate)
    if not np.isfinite(features).all():
        raise MediaError(f"{name}: its samples are too large (up to {np.abs(samples).max():.3g}); expected -1 to 1")
    return Clip(features)


def read_audio(source) -> tuple[np.ndarray, int, str]:
    """Decode to mono: (samples,) float32, the rate in Hz and a name for messages."""
    if isinstance(source, (tuple, list)):
        samples, rate, name = *_from_array(*_pair(source)), "audio array"
    elif isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        samples, rate, name = _decode(source)
    else:
        raise MediaError(f"audio of type {type(source).__name__}: expected a path, bytes or (array, rate)")
    if len(samples) == 0:
        raise MediaError(f"{name}: holds no samples")
    if rate < NARROW_RATE:
        raise MediaError(f"{name}: sample rate is {rate} Hz, at least {NARROW_RATE} are needed")
    samples = samples.mean(axis=1) if samples.ndim == 2 else samples
    if not np.isfinite(samples).all():
        raise MediaError(f"{name}: holds NaN or infinite samples")
    return samples, rate, name


def to_model_rate(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Resample (samples,) to 16 kHz, but leave 16 and 8 kHz as they are."""
    if rate in (SAMPLE_RATE, NARROW_RATE):
        return samples, rate
    import soxr

    return soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32), SAMPLE_RATE


def log_mel(samples: np.ndarray, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Natural log of mel power, clipped at 1: (samples,) float32 -> (T, 80) float32.

    Windows of 25 ms each 10 ms, the tail dropped. At 8 kHz the bins from 4 kHz up are zero.
    """
    scale = SAMPLE_RATE // rate
    window, hop, size = WINDOW // scale, HOP // scale, FFT // scale
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float32), window)[::hop]
    taper = np.hamming(window)
    features = np.empty((len(frames), MEL_BINS), np.float32)
    for start in range(0, len(frames), BLOCK):
        block = frames[start : start + BLOCK]
        padded = np.zeros((BLOCK, window), np.float32)
        padded[: len(block)] = block
        features[start : start + BLOCK] = _block_features(padded, taper, size)[: len(block)]
    return features


def _block_features(frames: np.ndarray, taper: np.ndarray, size: int) -> np.ndarray:
    """frames (BLOCK, window) -> (BLOCK, 80)."""
    previous = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    emphasized = (frames - np.float32(PREEMPHASIS) * previous) * np.float32(32768)
    spectrum = np.fft.rfft(emphasized * taper, n=size).astype(np.complex64)
    power = np.abs(spectrum) ** 2
    if size < FFT:
        # 8 kHz: the upper half of the spectrum was never recorded, nor is its own last bin used
        power = np.pad(power[:, :-1], ((0, 0), (0, FFT // 2 + 1 - size // 2)))
    return np.log(np.maximum(power @ _mel_filters(), np.float32(1.0)))


@cache
def _mel_filters() -> np.ndarray:
    """Triangles linear in mel (257, 80): ``mel = 1127 ln(1 + f / 700)``."""
    bins = np.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT)
    mels = 1127.0 * np.log(1.0 + bins / 700.0)[:, None]
    edges = np.linspace(0.0, 1127.0 * np.log(1.0 + MAX_FREQUENCY / 700.0), MEL_BINS + 2)
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _pair(source) -> tuple[np.ndarray, int]:
    if len(source) != 2 or not isinstance(source[1], (int, np.integer)):
        raise MediaError("audio given as a pair must be (array, rate) with the rate in whole Hz")
    try:
        return np.asarray(source[0]), int(source[1])
    except ValueError as error:
        raise MediaError(f"audio array: {error}") from None


def _from_array(array: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > 64):
        raise MediaError(f"an audio array has shape {array.shape}, expected (samples,) or (samples, channels)")
    if array.dtype.kind == "u":
        half = (np.iinfo(array.dtype).max + 1) / 2
        array = (array - half) / half
    elif array.dtype.kind == "i":
        array = array / (np.iinfo(array.dtype).max + 1.0)
    elif array.dtype.kind != "f":
        raise MediaError(f"an audio array has dtype {array.dtype}, expected floats or integers")
    return array.astype(np.float32), rate


def _decode(source) -> tuple[np.ndarray, int, str]:
    """Read a whole file or byte string through libsndfile: (samples, channels) float32."""
    import soundfile

    if isinstance(source, (str, os.PathLike)):
        name = str(source)
        try:
            data = Path(source).expanduser().read_bytes()
        except FileNotFoundError:
            raise MediaError(f"{name}: no such file") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise MediaError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    else:
        data, name = bytes(source), "audio bytes"
    if not data:
        raise MediaError(f"{name}: is empty")
    _check_wav_length(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples = file.read(dtype="float32", always_2d=True)
            if len(samples) < file.frames:
                raise MediaError(f"{name}: is truncated: {len(samples)} of {file.frames} samples can be read")
            return samples, file.samplerate, name
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{name}: is not audio that can be read: {error.error_string}") from None
    except MemoryError:  # a header may claim any length
        raise MediaError(f"{name}: claims to be longer than memory holds") from None


def _check_wav_length(data: bytes, name: str) -> None:
    """libsndfile takes a cut-off wav for a short one; the chunk's own size tells."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        if kind == b"data":
            # programs that write to a pipe cannot know the size and leave it at its maximum
            streamed = size >= 0x7FFFFF00 or size == 0
            if not streamed and position + 8 + size > len(data):
                have = len(data) - position - 8
                raise MediaError(f"{name}: is truncated: {have} of {size} bytes of sound are there")
            return
        position += 8 + size + size % 2
    raise MediaError(f"{name}: is truncated: a wav file without sound data")
