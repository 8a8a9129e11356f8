"""Which base an adapter was made for: digests of the decoder's weights."""

from dataclasses import dataclass
from hashlib import blake2b

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import CheckpointError


@dataclass(frozen=True)
class BaseIdentity:
    """Digests of a base.

    ``weights`` is that of all of the decoder's tensors, bit by bit; ``norms`` that of those which stay what they are
    when a model is quantized or loaded in another dtype.
    """

    weights: str
    norms: str


def identify(model: nn.Module) -> BaseIdentity:
    """The identity of a ``Phi4``'s base, adapters and encoders left out. Reads all of its weights: seconds, once."""
    weights = blake2b(digest_size=16)
    for name, array in _base_tensors(model):
        array = _whole(model, name, array)
        weights.update(f"{name} {array.dtype} {array.shape}".encode())
        weights.update(raw_bytes(array))
    return BaseIdentity(weights.hexdigest(), _norms(model))


def check_base(model: nn.Module, wanted: BaseIdentity, exactly: bool) -> None:
    """Raises CheckpointError unless this model has that base.

    A LoRA serves its base in any precision; DoRA's gains need the base itself, ``exactly``.
    """
    if (norms := _norms(model)) != wanted.norms:
        raise CheckpointError(f"was trained on another base (norms {wanted.norms[:8]}, here {norms[:8]})")
    if exactly and (found := identify(model).weights) != wanted.weights:
        raise CheckpointError(
            f"is a DoRA, whose gains belong to the base that it was trained on, to the bit "
            f"(digest {wanted.weights[:8]}, here {found[:8]})"
        )


def _norms(model: nn.Module) -> str:
    found = blake2b(digest_size=16)
    for name, array in _base_tensors(model):
        if "norm." in name:
            found.update(raw_bytes(array.astype(mx.bfloat16)))
    return found.hexdigest()


def _base_tensors(model: nn.Module) -> list[tuple[str, mx.array]]:
    found = tree_flatten(model.parameters())
    return sorted((n, w) for n, w in found if n.startswith(("model.", "lm_head.")) and ".lora." not in n)


def _whole(model: nn.Module, name: str, array: mx.array) -> mx.array:
    """A tensor of which each rank may have a part; all ranks ask for the same ones in the same order."""
    if model.sharding is None or ".base." not in name:
        return array
    path, _, part = name.partition(".base.")
    linear = model
    for step in path.split("."):
        linear = linear[int(step)] if isinstance(linear, list) else linear[step]
    return linear.whole(f"base.{part}", array)


def raw_bytes(array: mx.array) -> memoryview:
    """An array's values as they lie in memory, computed now."""
    return memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8))
