"""The conformer over log-mel features (report section 2.2.2; arXiv 2005.08100)."""

from collections.abc import Generator
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import MEL_BINS, TIME_REDUCTION, WINDOW_SECONDS, AudioConfig
from ..device import compute_dtype, finished
from ..ranks.sharding import Sharding, in_turns

WINDOW = round(100 * WINDOW_SECONDS) // TIME_REDUCTION  # encoder frames, 500; windows do not see each other
HALO = TIME_REDUCTION - 1  # mel frames beside a block that its first and last outputs look at


class Normalization(nn.Module):
    """``(x - mean) * invstd`` per mel bin, from the training data."""

    def __init__(self):
        super().__init__()
        self.global_mean = mx.zeros((MEL_BINS,))
        self.global_invstd = mx.ones((MEL_BINS,))

    def __call__(self, x):
        return (x.astype(compute_dtype(self.global_mean.dtype)) - self.global_mean) * self.global_invstd


class Subsampling(nn.Module):
    """Three stride-2 convolutions over (time, mel): 8 frames to one, 80 mel bins to 10."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        C = config.conv_channels
        # positions in the list are the checkpoint's names; 1x1 convolutions are linear layers
        self.conv = [
            nn.Conv2d(1, C, 3, stride=2, padding=(0, 1)),
            nn.ReLU(),
            nn.Conv2d(C, C, 3, stride=2, padding=(0, 1), groups=C),
            nn.Linear(C, C),
            nn.ReLU(),
            nn.Conv2d(C, C, 3, stride=2, padding=(0, 1), groups=C),
            nn.Linear(C, C),
            nn.ReLU(),
        ]
        self.out = nn.Linear(C * MEL_BINS // TIME_REDUCTION, config.hidden_size)

    def __call__(self, x, first: bool = True, last: bool = True):
        """x (1, T, 80) -> (1, ceil(T / 8), D).

        Time is padded with zeros before each convolution, but only where the recording begins
        (``first``) and ends (``last``): inside it a block brings its neighbours' frames along.
        """
        x = x[..., None]
        for layer in self.conv:
            if isinstance(layer, nn.Conv2d):
                x = mx.pad(x, [(0, 0), (int(first), int(last)), (0, 0), (0, 0)])
            x = layer(x)
        B, T, F, C = x.shape
        return self.out(x.transpose(0, 1, 3, 2).reshape(B, T, C * F))


class RelativeBias(nn.Module):
    """A learned number per head and relative distance, clipped to half the table each way."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.bias_values = nn.Embedding(config.bias_rows, config.num_attention_heads)

    def __call__(self, length: int) -> mx.array:
        """(1, H, length, length), rows are queries."""
        half = self.bias_values.weight.shape[0] // 2
        distance = np.arange(length)[None] - np.arange(length)[:, None]
        rows = np.clip(distance, -half, half - 1) + half
        return self.bias_values(mx.array(rows)).transpose(2, 0, 1)[None]


class FeedForward(nn.Module):
    """LayerNorm, a projection whose first half is gated by swish of its second, a projection."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x):
        up, gate = mx.split(self.gate_up_proj(self.layer_norm(x)), 2, axis=-1)
        return self.down_proj(up * nn.silu(gate))


class Attention(nn.Module):
    """Full attention within a window, with the relative bias added to the scores."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        dims = config.hidden_size
        self.heads = config.num_attention_heads
        self.scale = (dims // self.heads) ** -0.5
        self.q_proj = nn.Linear(dims, dims)
        self.k_proj = nn.Linear(dims, dims)
        self.v_proj = nn.Linear(dims, dims)
        self.o_proj = nn.Linear(dims, dims)

    def __call__(self, x, bias):
        B, T, _ = x.shape
        queries, keys, values = (
            projection(x).reshape(B, T, self.heads, -1).transpose(0, 2, 1, 3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=bias)
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(B, T, -1))


class GatedPointwise(nn.Module):
    """``(a + b1) * swish(b + b2)`` of a projection to both halves."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        dims = config.hidden_size
        self.ext_pw_conv_1d = nn.Linear(dims, 2 * dims)
        self.b1 = mx.zeros((dims,))
        self.b2 = mx.zeros((dims,))

    def __call__(self, x):
        value, gate = mx.split(self.ext_pw_conv_1d(x), 2, axis=-1)
        return (value + self.b1) * nn.silu(gate + self.b2)


class SeparableConvolution(nn.Module):
    """A causal depthwise convolution (padding on the left only) and a projection."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        dims, self.left = config.hidden_size, config.kernel_size - 1
        self.dw_conv = nn.Conv1d(dims, dims, config.kernel_size, groups=dims)
        self.pw_conv = nn.Linear(dims, dims)

    def __call__(self, x):
        return self.pw_conv(self.dw_conv(mx.pad(x, [(0, 0), (self.left, 0), (0, 0)])))


class Convolution(nn.Module):
    """The conformer's convolution module."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.glu = GatedPointwise(config)
        self.dw_sep_conv_1d = SeparableConvolution(config)
        self.ext_pw_conv_1d = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x):
        return self.ext_pw_conv_1d(nn.silu(self.dw_sep_conv_1d(self.glu(self.layer_norm(x)))))


class Block(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, LayerNorm."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.feed_forward_in = FeedForward(config)
        self.self_attn = Attention(config)
        self.conv = Convolution(config)
        self.feed_forward_out = FeedForward(config)
        self.layer_norm_att = nn.LayerNorm(config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    def __call__(self, x, bias):
        x = x + 0.5 * self.feed_forward_in(x)
        x = x + self.self_attn(self.layer_norm_att(x), bias)
        x = x + self.conv(x)
        x = x + 0.5 * self.feed_forward_out(x)
        return self.layer_norm(x)


class AudioEncoder(nn.Module):
    """Log-mel features to encoder frames, window by window, in bounded memory."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.encoder_embedding = Normalization()
        self.embed = Subsampling(config)
        self.relative_attention_bias_layer = RelativeBias(config)
        self.encoders = [Block(config) for _ in range(config.num_blocks)]
        self.sharding: Sharding | None = None  # ranks that share the windows of a recording

    def __call__(self, features: np.ndarray) -> mx.array:
        """features (T, 80) -> (ceil(T / 8), D)."""
        return finished(self.slices(features))

    def slices(self, features: np.ndarray) -> Generator[mx.array, None, mx.array]:
        """As ``__call__``, with a pause after every window that gives its frames."""
        total = -(-len(features) // TIME_REDUCTION)
        # one window for a short clip; windows of a long clip all have full size
        size = min(total, WINDOW)
        bias = self.relative_attention_bias_layer(size)
        width = self.embed.out.weight.shape[0]
        windows = []
        encode = partial(self._window, features, total, bias)
        for turn in in_turns(self.sharding, self.parts(features), encode, lambda start: (size, width)):
            windows += [x[: total - start] for start, x in turn]
            yield [x for _, x in turn]
        return mx.concatenate(windows)

    def parts(self, features: np.ndarray) -> list[int]:
        """What is encoded at once: a window, by the encoder frame that it begins with."""
        return list(range(0, -(-len(features) // TIME_REDUCTION), WINDOW))

    def _window(self, features: np.ndarray, total: int, bias: mx.array, start: int) -> mx.array:
        """The window of encoder frames that begins at ``start``, (size, D); the last one with what its zeros became."""
        size = bias.shape[-1]
        x = self._subsample(features, start, min(start + WINDOW, total))
        # the last window's zeros are attended, as in the reference, and cut off afterwards
        x = mx.pad(x, [(0, 0), (0, size - x.shape[1]), (0, 0)])
        for block in self.encoders:
            x = block(x, bias)
        return x[0]

    def _subsample(self, features: np.ndarray, start: int, stop: int) -> mx.array:
        """Encoder frames [start, stop) of the whole recording, (1, stop - start, D)."""
        first, last = start == 0, stop * TIME_REDUCTION >= len(features)
        begin = max(start * TIME_REDUCTION - HALO, 0)
        block = mx.array(features[begin : stop * TIME_REDUCTION])
        return self.embed(self.encoder_embedding(block)[None], first, last)
