"""LongRoPE: two tables, one call. It never chooses the table: that belongs to the sequence."""

from functools import partial

import mlx.core as mx
import numpy as np

from ..config import RopeConfig

_SIGNS = np.array([[-1.0], [1.0]], np.float32)  # of the sine, for the first and the second half of a pair


class LongRope:
    """Rotary positions with a short and a long table of frequency factors (arXiv 2402.13753).

    ``inv_freq = 1 / (factor * theta^(2i / dims))``; cosine and sine are both multiplied by
    ``sqrt(1 + ln(max / original) / ln(original))``. Only the first ``dims`` of a head's dimensions turn, in the
    half-split convention.
    """

    def __init__(self, config: RopeConfig):
        self.dims, self.scale = config.dims, config.scale
        # rounded to float32 where the reference rounds: at 7,000 tokens a last bit more or less shows in the logits
        exponents = np.arange(0, config.dims, 2).astype(np.float32) / np.float32(config.dims)
        powers = (config.theta ** exponents.astype(np.float64)).astype(np.float32)
        self._short = np.float32(1.0) / (np.array(config.short_factor, np.float32) * powers)
        self._long = np.float32(1.0) / (np.array(config.long_factor, np.float32) * powers)

    def rotation(self, runs: list[tuple[int, int, bool]], dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Cosines and signed sines for ``rotate``, made once per step for all layers.

        Args:
            runs: per row its first position, how many tokens follow from there, and whether its table is the long one.
            dtype: of the result; angles are float32.

        Returns:
            Arrays (1, T, 1, 1, dims / 2) and (1, T, 1, 2, dims / 2).
        """
        positions = np.concatenate([np.arange(start, start + count, dtype=np.float32) for start, count, _ in runs])
        tables = {long for _, _, long in runs}
        if len(tables) == 1:
            inv_freq = self._long if tables.pop() else self._short
        else:
            rows = np.repeat([int(long) for _, _, long in runs], [count for _, count, _ in runs])
            inv_freq = np.stack([self._short, self._long])[rows]
        angles = mx.array(positions)[:, None] * mx.array(inv_freq)
        cos, sin = _waves(angles[None, :, None, None], mx.array(_SIGNS), mx.array(self.scale, mx.float32))
        return cos.astype(dtype), sin.astype(dtype)


def rotate(x: mx.array, rotation: tuple[mx.array, mx.array], heads: int, dims: int) -> mx.array:
    """Turn the first ``dims`` dimensions of the first ``heads`` heads of x (1, T, H, head_dim).

    Both halves of a pair are read as they lie, the second time in reverse order, and the result is put into place: two
    kernels, and no copy of what does not turn.
    """
    pairs = mx.unflatten(x[:, :, :heads, :dims], -1, (2, dims // 2))
    turned = _blend(pairs, pairs[..., ::-1, :], *rotation)
    x[:, :, :heads, :dims] = turned.flatten(-2)
    return x


@partial(mx.compile, shapeless=True)
def _waves(angles, signs, scale):
    return mx.cos(angles) * scale, mx.sin(angles) * scale * signs


@partial(mx.compile, shapeless=True)
def _blend(x, swapped, cos, sin):
    return x * cos + swapped * sin
