"""The conformer on padded batches, each clip exactly as if it were alone, and fast on CPUs.

Same weights and results as the reference's encoder. Activations are channels last and depthwise
convolutions stay in float32, twice as fast as in bfloat16; and what lies beyond a clip's end is
kept at zero, which the reference does for single clips only.
"""

import torch
from torch.nn import functional as F
from training import additive

# where each head looks at first: frames of 80 ms from its own, and how fast it fades (per frame)
HEADS = ((0, 0.7), (-3, 0.7), (3, 0.7), (0, 0.12))


@torch.no_grad()
def start_local(encoder):
    """Begin with heads that look at neighbouring frames; from no bias, words take longer to align."""
    layer = encoder.relative_attention_bias_layer
    distance = torch.arange(layer.num_buckets) - layer.num_buckets // 2
    for head, (middle, fade) in enumerate(HEADS):
        layer.bias_values.weight[:, head] = -fade * (distance - middle).abs()


def strided(x, conv):
    """3 x 3 depthwise convolution, stride 2: (B, T, F, C) to (B, T / 2, F / 2, C), in float32."""
    with torch.autocast("cpu", enabled=False):
        x = F.conv2d(x.float().permute(0, 3, 1, 2), conv.weight, conv.bias, 2, 1, 1, conv.groups)
    return x.permute(0, 2, 3, 1)


def subsample(conv, x, lengths):
    """Three stages of stride 2; returns (B, T / 8, C, F / 8) and the lengths after them."""

    def cut(x):  # zero beyond the end, as a clip's own convolution padding is
        inside = torch.arange(x.shape[1])[None] < lengths[:, None]
        return x * inside.view(*inside.shape, *(1 for _ in x.shape[2:])).to(x.dtype)

    x = cut(x)
    time, mel = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    padded = F.pad(x, (1, 1, 1, 1))
    # the first convolution has one input channel: nine shifted copies and a product
    shifts = [padded[:, i : i + 2 * time - 1 : 2, j : j + 2 * mel - 1 : 2]
              for i in range(3) for j in range(3)]  # fmt: skip
    first, pairs = conv[0], ((conv[2], conv[3]), (conv[5], conv[6]))
    x = F.linear(torch.stack(shifts, -1), first.weight.flatten(1), first.bias).relu()
    for deep, point in pairs:
        lengths = (lengths + 1) // 2
        x = strided(cut(x), deep)
        x = F.linear(x, point.weight.flatten(1), point.bias).relu()
    lengths = (lengths + 1) // 2
    return cut(x).transpose(2, 3), lengths


def convolve(module, x):
    """The convolution module of a block: gate, causal depthwise 3, pointwise, pointwise."""
    glu, deep = module.glu, module.dw_sep_conv_1d
    point = glu.ext_pw_conv_1d
    a, b = F.linear(module.layer_norm(x), point.weight[..., 0], point.bias).chunk(2, -1)
    x = (a + glu.b1.view(-1).to(a.dtype)) * F.silu(b + glu.b2.view(-1).to(b.dtype))
    padded, weight = F.pad(x, (0, 0, 2, 0)), deep.dw_conv.weight.to(x.dtype)
    x = sum(padded[:, k : k + x.shape[1]] * weight[:, 0, k] for k in range(3))
    x = x + deep.dw_conv.bias.to(x.dtype)
    x = F.silu(F.linear(x, deep.pw_conv.weight[..., 0], deep.pw_conv.bias))
    return F.linear(x, module.ext_pw_conv_1d.weight[..., 0], module.ext_pw_conv_1d.bias)


def encode(encoder, frames, lengths):
    """Conformer states (B, ceil(T / 8), D) and lengths (B,) of padded log-mel (B, T, 80)."""
    x, lengths = subsample(encoder.embed.conv, encoder.encoder_embedding(frames), lengths)
    x = encoder.embed.out(x.flatten(2))
    inside = torch.arange(x.shape[1])[None] < lengths[:, None]
    mask = encoder.relative_attention_bias_layer(x) + additive(inside[:, None, None])
    mask = mask.to(torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32)
    for block in encoder.encoders:
        x = x + 0.5 * block.feed_forward_in(x)
        x = x + block.self_attn(block.layer_norm_att(x), mask)
        x = x + convolve(block.conv, x)
        x = block.layer_norm(x + 0.5 * block.feed_forward_out(x))
    return x, lengths
