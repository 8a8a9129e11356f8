"""safetensors files in pieces: rows of a tensor read and written without the rest of the file.

The libraries read and write whole tensors, and write whole files from memory. A file is the length
of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, offsets), the data.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..files import MOST_JSON, parse_object
from .fields import object_in

# dtype by its name in the file -> MLX's, and the NumPy dtype that carries its bits
STORED_DTYPES = {
    "F32": (mx.float32, np.float32),
    "F16": (mx.float16, np.float16),
    "BF16": (mx.bfloat16, np.uint16),
    "U32": (mx.uint32, np.uint32),
    "U8": (mx.uint8, np.uint8),
}
CODES = {dtype: code for code, (dtype, _) in STORED_DTYPES.items()}
# dtypes that nothing here computes with, but MLX can open: they are told of by tensor, not by file
OTHER_DTYPES = {"BOOL": 1, "I8": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "I32": 4, "I64": 8, "U64": 8}  # bytes of a value
FLOATS = ("F32", "F16", "BF16")
MOST_AXES = 8
LEAST_READ = 1024  # bytes of a row that are read alone; of fewer, whole rows are read and cut
BLOCK_BYTES = 1 << 20  # of them at once
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

    def part(self, axis: int, ranges: Sequence[tuple[int, int]]) -> mx.array:
        """Ranges of a matrix's rows (axis 0), or one of its columns (axis 1), without reading the rest.

        Raises CheckpointError.
        """
        size, (dtype, carrier) = itemsize(self.dtype), STORED_DTYPES[self.dtype]
        count = sum(stop - start for start, stop in ranges)
        shape = (count, self.row_bytes) if axis == 0 else (self.shape[0], count * size)
        data = np.empty(shape, np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                if axis == 0:
                    done = 0
                    for start, stop in ranges:
                        self._fill(file, data[done : done + stop - start], start * self.row_bytes)
                        done += stop - start
                else:
                    self._fill_columns(file, data, ranges[0][0] * size)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from None
        array = mx.array(data.view(carrier))
        return array.view(dtype) if array.dtype != dtype else array

    def _fill_columns(self, file: BinaryIO, data: np.ndarray, first: int) -> None:
        """Bytes of each row from ``first`` on -> data (rows, bytes)."""
        rows, width = data.shape
        step = 1 if width >= LEAST_READ else max(BLOCK_BYTES // self.row_bytes, 1)
        if step == 1:
            for row in range(rows):
                self._fill(file, data[row], row * self.row_bytes + first)
            return
        block = np.empty((step, self.row_bytes), np.uint8)
        for row in range(0, rows, step):
            some = block[: min(step, rows - row)]
            self._fill(file, some, row * self.row_bytes)
            data[row : row + len(some)] = some[:, first : first + width]

    def _fill(self, file: BinaryIO, data: np.ndarray, offset: int) -> None:
        """The tensor's bytes from an offset on, as many as data takes."""
        file.seek(self.start + offset)
        left = memoryview(data).cast("B")
        while left:
            count = file.readinto(left)
            if not count:
                raise CheckpointError(f"{self.path} ended early, in {self.name}: it changed while it was read")
            left = left[count:]


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
    return OTHER_DTYPES.get(dtype) or np.dtype(STORED_DTYPES[dtype][1]).itemsize


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a file lies, in the file's order. Raises CheckpointError.

    The header is believed only where it describes the file to the byte: the tensors lie one behind the other, none
    over another, from the header's end to the file's.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} {'is not a file' if path.exists() else 'is missing'}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MOST_JSON):
                raise ValueError(f"its header is said to have {length} bytes, of {size} in all and at most {MOST_JSON}")
            header = parse_object(file.read(length).decode("utf-8"))
        if not all(isinstance(value, str) for value in object_in(header, "__metadata__").values()):
            raise ValueError("its __metadata__ are not strings")
        header.pop("__metadata__", None)
        found = [_stored(path, name, entry, 8 + length) for name, entry in header.items()]
        found.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
        _check_places(found, 8 + length, size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from None
    return {tensor.name: tensor for tensor in found}


def read_metadata(path: Path) -> dict[str, str]:
    """The strings that a file says of itself, of one whose header was read before."""
    with path.open("rb") as file:
        return parse_object(file.read(int.from_bytes(file.read(8), "little")).decode("utf-8")).get("__metadata__") or {}


def _stored(path: Path, name: str, entry, data: int) -> StoredTensor:
    """One entry of a header whose data begin at byte ``data``. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"{name!r} is {entry!r}, expected an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in STORED_DTYPES.keys() | OTHER_DTYPES:
        raise ValueError(f"{name} has dtype {dtype!r}, expected {', '.join(STORED_DTYPES)}")
    for key, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise ValueError(f"{key} of {name} is {numbers!r}, expected a list of sizes")
    if len(shape) > MOST_AXES or any(n >= 1 << 31 for n in shape):
        raise ValueError(f"{name} has the shape {shape!r}, which no tensor has")
    tensor = StoredTensor(path, name, dtype, tuple(shape), data + (offsets or [0])[0])
    if len(offsets) != 2 or offsets[1] - offsets[0] != tensor.nbytes:
        raise ValueError(f"{name} has {tensor.nbytes} bytes, but its data_offsets are {offsets}")
    return tensor


def _check_places(tensors: list[StoredTensor], data: int, size: int) -> None:
    """Raises ValueError unless tensors, in order, fill a file of ``size`` bytes from byte ``data`` on."""
    end = data
    for tensor in tensors:
        if tensor.start != end:
            raise ValueError(f"{tensor.name} begins at byte {tensor.start}, expected {end}")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"it has {size} bytes, its header describes {end}")


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
