"""From the features of views to the tokens of one picture: the HD layout and an MLP."""

import mlx.core as mx
import mlx.nn as nn

from .preprocess import Picture


class VisionProjector(nn.Module):
    """Lays out crops and global view in order ``sub_glb`` and projects to the decoder's width.

    ``sub_GN`` ends every row of cells and ``glb_GN`` stands between crops and global view, as in
    the published files (there of shapes (1, 1, 1, D) and (1, 1, D)).
    """

    def __init__(self, input_dims: int, output_dims: int):
        super().__init__()
        self.sub_GN = mx.zeros((input_dims,))
        self.glb_GN = mx.zeros((input_dims,))
        self.up = nn.Linear(input_dims, output_dims)
        self.down = nn.Linear(output_dims, output_dims)

    def __call__(self, features: list[mx.array], picture: Picture) -> mx.array:
        """Features per view, global view first -> (picture.tokens, output_dims)."""
        global_view, *crops = features
        rows, columns = picture.grid
        # padded cells are cut off already, so the crops join to the kept part of the grid
        stitched = mx.concatenate([mx.concatenate(crops[r * columns : (r + 1) * columns], axis=1) for r in range(rows)])
        x = mx.concatenate([self._end_rows(stitched), self.glb_GN[None], self._end_rows(global_view)])
        return self.down(nn.gelu(self.up(x)))

    def _end_rows(self, cells: mx.array) -> mx.array:
        """(rows, columns, D) -> (rows * (columns + 1), D)."""
        rows, _, D = cells.shape
        ends = mx.broadcast_to(self.sub_GN, (rows, 1, D))
        return mx.concatenate([cells, ends], axis=1).flatten(0, 1)
