"""Recordings in memory: (array, rate) of any library, type and order of axes, as blocks of floats."""

from collections.abc import Iterator

import numpy as np

from ..arguments.kinds import Unfit, integer, shown
from ..errors import MediaError
from ..sources import as_array, is_array

BLOCK_SAMPLES = 32_768  # samples read, resampled and yielded at once
MOST_CHANNELS = 64  # an axis of more samples is time


class ArraySource:
    """Samples in memory, converted block by block."""

    def __init__(self, array: np.ndarray, rate: int):
        if array.ndim == 2 and array.shape[1] > MOST_CHANNELS and array.shape[0] <= MOST_CHANNELS:
            array = array.T  # (channels, samples), as torchaudio has it
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > MOST_CHANNELS):
            raise MediaError(
                f"an audio array has shape {array.shape}, expected (samples,), (samples, channels) or "
                "(channels, samples)"
            )
        if array.dtype.kind not in "uif":
            raise MediaError(f"an audio array has dtype {array.dtype}, expected floats or integers")
        if array.dtype.kind in "ui" and array.dtype.itemsize > 4:
            raise MediaError(
                f"an audio array has dtype {array.dtype}, whose scale is unknown; convert it to int16, or to floats "
                "from -1 to 1"
            )
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


def read_pair(source: tuple | list) -> tuple[np.ndarray, int]:
    """An (array, rate in Hz) as numpy's array and an int. Raises MediaError."""
    expected = "audio given as a pair must be (array, rate) with the rate in whole Hz"
    if len(source) != 2:
        raise MediaError(f"{expected}, not {len(source)} things")
    array, rate = source
    try:
        # some libraries give whole numbers of Hz as floats
        rate = integer().read(int(rate) if isinstance(rate, float) and rate.is_integer() and abs(rate) < 1e9 else rate)
    except Unfit:
        raise MediaError(f"{expected}, the rate is {shown(rate)}") from None
    if not is_array(array) and not isinstance(array, (list, tuple)):
        raise MediaError(f"{expected}, the array is {shown(array)}")
    try:
        return as_array(array) if is_array(array) else np.asarray(array), rate
    except ValueError as error:
        raise MediaError(f"audio array: {error}") from None
