"""Plain weights in place of packed ones.

MLX's CPU backend multiplies packed weights about fifteen times slower than plain ones. A working copy holds exactly the
packed values, in float32, so that what is trained on it fits the packed base.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding)


def wants_dense() -> bool:
    """Whether packed weights are slow here."""
    return mx.default_device().type == mx.cpu


def make_dense(model: nn.Module, bits_only: bool = False) -> None:
    """Replace packed layers by plain ones of the same values, lazily; all floats become float32.

    ``bits_only`` leaves floats as they are, and gives plain layers the type of the packed ones' scales.
    """
    for module in model.modules():
        places = [(module, name) for name in module]
        places += [(child, n) for child in module.values() if isinstance(child, list) for n in range(len(child))]
        places += [(child, n) for child in module.values() if type(child) is dict for n in child]
        for holder, name in places:
            child = holder[name]
            if isinstance(child, PACKED):
                as_it_is = bits_only and child.mode == "affine"
                holder[name] = _plain(child, child.scales.dtype if as_it_is else mx.float32)
    if not bits_only:
        model.update(tree_map(_float32, model.parameters()))


def plain_weight(layer: nn.Module) -> mx.array:
    """A layer's weight; of a packed one exactly its values, in float32."""
    if not isinstance(layer, PACKED):
        return layer.weight
    affine = layer.mode == "affine"
    return mx.dequantize(
        layer.weight,
        layer.scales.astype(mx.float32) if affine else layer.scales,
        layer.biases.astype(mx.float32) if affine else None,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
        dtype=mx.float32,
    )


def _float32(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def _plain(layer: nn.Module, dtype: mx.Dtype) -> nn.Module:
    kind = nn.Linear if isinstance(layer, nn.QuantizedLinear) else nn.Embedding
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    made.weight = plain_weight(layer).astype(dtype)
    if "bias" in layer:
        made.bias = layer.bias
    return made
