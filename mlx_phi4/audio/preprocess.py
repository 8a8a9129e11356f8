"""From a recording in any form to log-mel features.

Source: the published ``Phi4MultimodalFeatureExtractor``; 8 kHz as in Microsoft's own processor.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b

import numpy as np

from ..config import MEL_BINS, TIME_REDUCTION
from ..errors import MediaError
from .reader import SAMPLE_RATE, Recording, open_recording, rechunk

FRAME = 400  # samples at 16 kHz, 25 ms: what one row of features is computed from
HOP = 160  # samples at 16 kHz, 10 ms
FFT = 512  # samples at 16 kHz
PREEMPHASIS = 0.97
MAX_FREQUENCY = 7690.0  # Hz, upper edge of the last mel triangle
BLOCK_FRAMES = 1024  # frames computed at once: products depend on the number of rows, so it is fixed


@dataclass(frozen=True)
class Clip:
    """A recording as log-mel features (T, 80) float32, one frame each 10 ms."""

    features: np.ndarray

    def __repr__(self):
        return f"Clip({len(self.features)} frames of 10 ms, tokens={self.tokens})"

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
        source: see ``reader.open_recording``; a ``Clip`` passes.

    Raises:
        MediaError: it cannot be read, is too short, or holds samples that are NaN, infinite or not scaled.
    """
    if isinstance(source, Clip):
        return source
    with open_recording(source) as recording:
        return Clip(np.concatenate(list(feature_blocks(recording))))


def read_audio(source) -> tuple[np.ndarray, int, str]:
    """A whole recording as mono: (samples,) float32 at 16 or 8 kHz, the rate in Hz and a name for messages."""
    with open_recording(source) as recording:
        try:
            return np.concatenate(list(recording.blocks())), recording.rate, recording.name
        except MemoryError:
            raise MediaError(f"{recording.name}: is longer than memory holds") from None


def feature_blocks(recording: Recording) -> Iterator[np.ndarray]:
    """Log-mel features of a recording, in constant memory: (BLOCK_FRAMES, 80) float32, the last shorter.

    Bit for bit those of ``log_mel`` of all its samples.

    Raises:
        MediaError: as ``Recording.blocks``; it is shorter than one frame.
    """
    count = 0

    def counted():
        nonlocal count
        for block in recording.blocks():
            count += len(block)
            yield block

    yield from _features(counted(), recording.rate)
    needed = FRAME * recording.rate // SAMPLE_RATE
    if count < needed:
        at = f"{count} samples at {recording.rate} Hz"
        raise MediaError(f"{recording.name}: {at} are shorter than one frame ({needed})")


def log_mel(samples: np.ndarray, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Natural log of mel power, clipped at 1: (samples,) float32 -> (T, 80) float32.

    Windows of 25 ms each 10 ms, the tail dropped. At 8 kHz the bins from 4 kHz up are zero.
    """
    blocks = _features([samples.astype(np.float32)], rate)
    return np.concatenate([np.empty((0, MEL_BINS), np.float32), *blocks])


def _features(arrays: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Arrays of any lengths to blocks of BLOCK_FRAMES frames; the last is shorter."""
    scale = SAMPLE_RATE // rate
    length, hop, size = FRAME // scale, HOP // scale, FFT // scale
    taper = np.hamming(length)
    held = np.zeros(0, np.float32)
    for array in rechunk(arrays, BLOCK_FRAMES * hop):
        held = np.concatenate([held, array])
        if len(held) >= BLOCK_FRAMES * hop + length - hop:
            frames = np.lib.stride_tricks.sliding_window_view(held, length)[::hop][:BLOCK_FRAMES]
            yield _block_features(frames, taper, size)
            held = held[BLOCK_FRAMES * hop :]
    if len(held) >= length:
        frames = np.lib.stride_tricks.sliding_window_view(held, length)[::hop]
        padded = np.zeros((BLOCK_FRAMES, length), np.float32)
        padded[: len(frames)] = frames
        yield _block_features(padded, taper, size)[: len(frames)]


def _block_features(frames: np.ndarray, taper: np.ndarray, size: int) -> np.ndarray:
    """frames (BLOCK_FRAMES, length) -> (BLOCK_FRAMES, 80)."""
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
