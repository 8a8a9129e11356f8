"""safetensors files in pieces: rows of a tensor read and written without the rest of the file.

The libraries read and write whole tensors, and write whole files from memory. A file is the length
of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, offsets), the data.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError

# dtype by its name in the file -> MLX's, and the NumPy dtype that carries its bits
STORED_DTYPES = {
    "F32": (mx.float32, np.float32),
    "F16": (mx.float16, np.float16),
    "BF16": (mx.bfloat16, np.uint16),
    "U32": (mx.uint32, np.uint32),
    "U8": (mx.uint8, np.uint8),
}
CODES = {dtype: code for code, (dtype, _) in STORED_DTYPES.items()}
FLOATS = ("F32", "F16", "BF16")
EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # all its bits are set in NaN and infinity


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: file, safetensors dtype, shape and first byte in the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis."""
        return math.prod(self.shape[1:]) * itemsize(self.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)

    def read(self, first: int = 0, last: int | None = None) -> mx.array:
        """Rows [first, last) as an array; None is the end.

        Raises CheckpointError if they are not there, or hold NaN or infinite values: packing would
        hide those.
        """
        last = self.shape[0] if last is None else last
        count = (last - first) * math.prod(self.shape[1:])
        dtype, carrier = STORED_DTYPES[self.dtype]
        offset = self.start + first * self.row_bytes
        try:
            data = np.fromfile(self.path, carrier, count, offset=offset)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if len(data) != count:
            raise CheckpointError(f"{self.path} ended early, in {self.name}: it changed while it was read")
        if self.dtype in FLOATS and not _finite(data, EXPONENT[self.dtype]):
            raise CheckpointError(f"{self.path}: {self.name} holds NaN or infinite values")
        array = mx.array(data.reshape(last - first, *self.shape[1:]))
        return array.view(dtype) if array.dtype != dtype else array


def _finite(data: np.ndarray, exponent: int) -> bool:
    """Whether no float has all bits of its exponent set; without arrays in between, at memory speed.

    Bits of positive floats, as signed integers, are ordered like the floats; those of negative
    ones, as unsigned integers, like their magnitudes, and above all positive ones.
    """
    bits = 8 * data.itemsize
    largest = data.view(f"i{data.itemsize}").max(initial=0), data.view(f"u{data.itemsize}").max(initial=0)
    return int(largest[0]) < exponent and int(largest[1]) < exponent + (1 << (bits - 1))


def itemsize(dtype: str) -> int:
    """Bytes of one value of a safetensors dtype."""
    return np.dtype(STORED_DTYPES[dtype][1]).itemsize


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a file lies, checked against the file's size. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, OverflowError, MemoryError):
        raise CheckpointError(f"{path} is not a complete safetensors file") from None
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in STORED_DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}, expected {', '.join(STORED_DTYPES)}")
        first, last = entry["data_offsets"]
        found[name] = StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + first)
        if last - first != found[name].nbytes or 8 + length + last > size:
            raise CheckpointError(f"{path}: the bytes of {name} are not all there")
    return found


def write_header(file: BinaryIO, tensors: dict[str, tuple[str, tuple[int, ...]]], made_for: str) -> dict[str, int]:
    """Write what stands before the data, and return where in the file each tensor starts.

    Args:
        tensors: name -> (safetensors dtype, shape), in the order of the file.
        made_for: "mlx" or "pt", as libraries mark their files.
    """
    header: dict = {"__metadata__": {"format": made_for}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * itemsize(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + header[name]["data_offsets"][0] for name in tensors}


class ShardWriter:
    """A safetensors file whose tensors are known beforehand and arrive row by row.

    Args:
        path: the file, replaced if it exists.
        tensors: name -> (safetensors dtype, shape), in the order of the file.
    """

    def __init__(self, path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]):
        self._row_bytes = {name: math.prod(shape[1:]) * itemsize(dtype) for name, (dtype, shape) in tensors.items()}
        self._file = path.open("wb")
        self._starts = write_header(self._file, tensors, "mlx")

    def write(self, name: str, row: int, array: mx.array) -> None:
        """Put rows of a tensor into their place, the first of them at ``row``."""
        self._file.seek(self._starts[name] + row * self._row_bytes[name])
        self._file.write(memoryview(array.reshape(-1).view(mx.uint8)))

    def close(self) -> None:
        self._file.close()


def shard_bytes(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of data in a file of these tensors."""
    return sum(math.prod(shape) * itemsize(dtype) for dtype, shape in tensors.values())
