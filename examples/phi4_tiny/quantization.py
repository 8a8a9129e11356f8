"""Affine 4-bit rounding of the base decoder, simulated in place.

``w ~ scale * q + bias`` with q in 0..15, one scale and bias per ``group`` weights along the input
axis, chosen as ``mlx.core.quantize`` chooses them. Training sees the rounded weights on half of
its steps (gradients go to the unrounded ones), so that rounding afterwards costs little.
"""

from contextlib import contextmanager

import torch


def rounded(weight, group=64, bits=4):
    """``weight`` (rows, columns) after quantizing and dequantizing; scales are bfloat16."""
    rows, columns = weight.shape
    w = weight.float().view(rows, columns // group, group)
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    levels = 2**bits - 1
    below = low.abs() > high.abs()
    scale = ((high - low) / levels).clamp(min=1e-7)
    scale = torch.where(below, scale, -scale)
    edge = torch.where(below, low, high)
    zero = torch.round(edge / scale)
    scale = torch.where(zero != 0, edge / zero, scale)
    bias = torch.where(zero == 0, torch.zeros_like(edge), edge)
    scale, bias = scale.bfloat16().float(), bias.bfloat16().float()
    q = torch.round((w - bias) / scale).clamp(0, levels)
    return (q * scale + bias).view(rows, columns).to(weight.dtype)


def base_weights(model):
    """The weights that 4-bit quantization replaces: decoder base linears and the embedding."""
    yield model.model.embed_tokens.weight
    for name, parameter in model.model.layers.named_parameters():
        if "base_layer.weight" in name:
            yield parameter


@contextmanager
def quantized(model, active=True, group=64):
    """Within the block the base holds rounded values; afterwards the exact ones are back."""
    kept = []
    if active:
        with torch.no_grad():
            for weight in base_weights(model):
                kept.append((weight, weight.detach().clone()))
                weight.copy_(rounded(weight, group))
    try:
        yield model
    finally:
        with torch.no_grad():
            for weight, exact in kept:
                weight.copy_(exact)
