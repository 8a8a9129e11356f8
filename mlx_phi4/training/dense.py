"""A working copy of packed weights for backends that multiply them slowly.

MLX's CPU backend multiplies packed weights about fifteen times slower than plain ones. The copy holds exactly the
packed values, in float32, so that what is trained on it fits the packed base.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding)


def wants_dense() -> bool:
    """Whether packed weights are slow here."""
    return mx.default_device().type == mx.cpu


def make_dense(model: nn.Module) -> None:
    """Replace packed layers by plain ones of the same values, and bring all floats to float32, lazily."""
    for path, module in model.named_modules():
        children = [(name, child) for name, child in module.children().items() if isinstance(child, PACKED)]
        for name, child in children:
            setattr(module, name, _plain(child))
        del path, children
    model.update(tree_map(_float32, model.parameters()))


def _float32(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def _plain(layer: nn.Module) -> nn.Module:
    weight = mx.dequantize(
        layer.weight,
        layer.scales.astype(mx.float32) if layer.mode == "affine" else layer.scales,
        None if layer.get("biases") is None else layer.biases.astype(mx.float32),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
        dtype=mx.float32,
    )
    kind = nn.Linear if isinstance(layer, nn.QuantizedLinear) else nn.Embedding
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    made.weight = weight
    if "bias" in layer:
        made.bias = layer.bias
    return made
