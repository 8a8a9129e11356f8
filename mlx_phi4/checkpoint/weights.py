"""Tensors into the model. It stays lazy: bytes are read when a computation needs them."""

import weakref

import mlx.core as mx
import mlx.nn as nn

from ..device import cpu_stream
from ..errors import CheckpointError, Phi4Error
from . import names
from .packing import Scheme
from .tensorfile import StoredTensor

FLOAT_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Origin:
    """The files that a lazy model's arrays come from, so that parts of them can be read without the rest.

    It speaks for arrays only that are still the ones that it was made for.
    """

    def __init__(self, stored: dict[str, StoredTensor], weights: dict[str, mx.array], dtype: mx.Dtype | None):
        self._stored, self._dtype = stored, dtype
        self._arrays = {name: weakref.ref(weight) for name, weight in weights.items()}

    def part(self, name: str, array: mx.array, axis: int, ranges: tuple[tuple[int, int], ...]) -> mx.array | None:
        """Ranges of the decoder's array of this name along an axis, read and computed now; None if it is not known."""
        name = f"model.{name}"
        if name not in self._arrays or self._arrays[name]() is not array:
            return None
        part = self._stored[name].part(axis, ranges)
        if self._dtype is not None and mx.issubdtype(part.dtype, mx.floating):
            part = part.astype(self._dtype)
        mx.eval(part)
        return part


def load_weights(
    model: nn.Module,
    stored: dict[str, StoredTensor],
    packed: dict[str, Scheme],
    dtype: mx.Dtype | str | None = None,
) -> None:
    """Give a model the tensors of a folder, lazily.

    Args:
        stored: parameter -> where it lies; all of them, of shapes that fit: see ``fit.check_fit``.
        packed: path of a module -> how it is quantized.
        dtype: float32, float16 or bfloat16, for all floats; None keeps the stored one.

    Raises:
        CheckpointError: the files are no longer those whose headers were read.
        Phi4Error: another dtype.
    """
    dtype = _float_dtype(dtype)
    weights = _open(stored, published=model.config.layout in names.TABLES)
    if dtype is not None:
        weights = {name: w.astype(dtype) if mx.issubdtype(w.dtype, mx.floating) else w for name, w in weights.items()}
    try:
        if packed:
            nn.quantize(model, class_predicate=lambda path, module: path in packed and packed[path].table())
        model.load_weights(list(weights.items()))
        model.origin = Origin(stored, weights, dtype)
    except ValueError as error:
        raise CheckpointError(f"tensors do not fit the configuration: {error}") from None


def _open(stored: dict[str, StoredTensor], published: bool) -> dict[str, mx.array]:
    paths = dict.fromkeys(tensor.path for tensor in stored.values())
    try:
        files = {path: mx.load(str(path), stream=cpu_stream()) for path in paths}
        weights = {name: files[tensor.path][tensor.name] for name, tensor in stored.items()}
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the files changed while they were read: {error}") from None
    if not published:
        return weights
    return {name: names.to_mlx_axes(name, weight) for name, weight in weights.items()}


def _float_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    if dtype is None or dtype in FLOAT_DTYPES.values():
        return dtype
    if dtype not in FLOAT_DTYPES:
        raise Phi4Error(f"dtype is {dtype!r}, expected {', '.join(FLOAT_DTYPES)}")
    return FLOAT_DTYPES[dtype]
