"""From encoder frames to the tokens of one clip: one MLP for each mode that hears."""

import mlx.core as mx
import mlx.nn as nn


class AudioProjector(nn.Module):
    """``down(gelu(up(x)))`` to the decoder's width."""

    def __init__(self, input_dims: int, output_dims: int):
        super().__init__()
        self.up = nn.Linear(input_dims, output_dims)
        self.down = nn.Linear(output_dims, output_dims)

    def __call__(self, x: mx.array) -> mx.array:
        """(T, input_dims) -> (T, output_dims)."""
        return self.down(nn.gelu(self.up(x)))
