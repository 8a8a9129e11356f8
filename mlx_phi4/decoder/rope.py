"""LongRoPE: two tables, one call. It never chooses the table: that belongs to the sequence."""

from functools import partial

import mlx.core as mx
import numpy as np

from ..config import RopeConfig


class LongRope:
    """Rotary positions with a short and a long table of frequency factors (arXiv 2402.13753).

    ``inv_freq = 1 / (factor * theta^(2i / dims))``; cosine and sine are both multiplied by
    ``sqrt(1 + ln(max / original) / ln(original))``. Only the first ``dims`` of a head's
    ``head_dim`` dimensions turn, in the half-split convention.
    """

    def __init__(self, config: RopeConfig, head_dim: int):
        self.dims = config.dims
        self.head_dim = head_dim
        self.scale = config.scale
        # rounded to float32 where the reference rounds: at 7,000 tokens a last bit more or less shows in the logits
        exponents = np.arange(0, config.dims, 2).astype(np.float32) / np.float32(config.dims)
        powers = (config.theta ** exponents.astype(np.float64)).astype(np.float32)
        self._short = np.float32(1.0) / (np.array(config.short_factor, np.float32) * powers)
        self._long = np.float32(1.0) / (np.array(config.long_factor, np.float32) * powers)

    def rotation(self, positions: mx.array, long: tuple[bool, ...], dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Cosines and signed sines for ``rotate``, made once per step for all layers.

        Args:
            positions: (B, L) integers.
            long: per row, whether its sequence uses the long table.
            dtype: of the result; angles are float32.

        Returns:
            Two arrays (B, L, 1, head_dim): (cos, cos, 1) and (-sin, sin, 0) along the last axis.
        """
        inv_freq = mx.array(np.stack([self._long if row else self._short for row in long]))
        angles = positions[..., None].astype(mx.float32) * inv_freq[:, None]
        cos, sin = mx.cos(angles) * self.scale, mx.sin(angles) * self.scale
        rest = (*angles.shape[:-1], self.head_dim - self.dims)
        cos = mx.concatenate([cos, cos, mx.ones(rest)], axis=-1)
        sin = mx.concatenate([-sin, sin, mx.zeros(rest)], axis=-1)
        return cos[:, :, None].astype(dtype), sin[:, :, None].astype(dtype)


def rotate(x: mx.array, rotation: tuple[mx.array, mx.array], dims: int) -> mx.array:
    """Turn the first ``dims`` dimensions of every head of x (B, L, H, head_dim)."""
    half = dims // 2
    swapped = mx.concatenate([x[..., half:dims], x[..., :half], x[..., dims:]], axis=-1)
    return _blend(x, swapped, *rotation)


@partial(mx.compile, shapeless=True)
def _blend(x, swapped, cos, sin):
    return x * cos + swapped * sin
