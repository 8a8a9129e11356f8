"""Tensors into the model. It stays lazy: bytes are read when a computation needs them."""

import mlx.core as mx
import mlx.nn as nn

from ..device import cpu_stream
from ..errors import CheckpointError, Phi4Error
from . import names
from .packing import Scheme
from .tensorfile import StoredTensor

FLOAT_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


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
