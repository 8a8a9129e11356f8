"""SigLIP over the views of a picture (arXiv 2303.15343), as far as its last layer but one."""

import math
from collections.abc import Generator

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import PATCH_SIZE, VisionConfig
from ..device import compute_dtype, finished
from ..ranks.sharding import Sharding, in_turns
from .preprocess import PATCHES, Picture

VIEWS_AT_ONCE = 4  # bounds memory: a picture has up to 37 views of 1024 patches


class Attention(nn.Module):
    """Full attention over the patches of one view; padded patches are masked as keys."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        dims = config.hidden_size
        self.heads = config.num_attention_heads
        self.scale = (dims // self.heads) ** -0.5
        self.q_proj = nn.Linear(dims, dims)
        self.k_proj = nn.Linear(dims, dims)
        self.v_proj = nn.Linear(dims, dims)
        self.out_proj = nn.Linear(dims, dims)

    def __call__(self, x, mask=None):
        C, P, _ = x.shape
        queries, keys, values = (
            projection(x).reshape(C, P, self.heads, -1).transpose(0, 2, 1, 3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(C, P, -1))


class MLP(nn.Module):
    """``fc2(gelu(fc1(x)))`` with the tanh approximation of GELU."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x):
        return self.fc2(nn.gelu_approx(self.fc1(x)))


class Layer(nn.Module):
    """Two pre-norm residual branches."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x, mask=None):
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    """A convolution over 14 x 14 patches and a learned position per patch."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, PATCH_SIZE, stride=PATCH_SIZE)
        self.position_embedding = nn.Embedding(PATCHES**2, config.hidden_size)

    def __call__(self, pixels, kept):
        """pixels (C, 14r, 14c, 3), of whose patches ``kept`` = (rows, columns) are picture."""
        x = self.patch_embedding(pixels.astype(compute_dtype(self.patch_embedding.weight.dtype)))
        positions = position_ids(kept, x.shape[1:3])
        return (x + self.position_embedding(mx.array(positions))).flatten(1, 2)


class VisionEncoder(nn.Module):
    """Views to pooled features."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config) for _ in range(config.used_layers)]
        self.sharding: Sharding | None = None  # ranks that share the views of a picture

    def __call__(self, picture: Picture) -> list[mx.array]:
        """Features of every view, the global view first: (cell rows, cell columns, D) each."""
        return finished(self.slices(picture))

    def slices(self, picture: Picture) -> Generator[mx.array, None, list[mx.array]]:
        """As ``__call__``, with a pause after every few views that gives their features.

        Only the patches that reach a kept cell are computed: padding beyond them is masked as a
        key and pooled into nothing. Views of one shape go through together, a few at a time.
        """
        features: list[mx.array] = [None] * len(picture.kept_by_view)
        width = self.embeddings.position_embedding.weight.shape[1]
        turns = in_turns(
            self.sharding,
            self.parts(picture),
            lambda part: self.encode(picture.pixels(part[0]), part[1]),
            lambda part: (len(part[0]), *(math.ceil(side / 2) for side in part[1]), width),
        )
        for turn in turns:
            for (views, _), pooled in turn:
                for i, view in enumerate(views):
                    features[view] = pooled[i]
            yield [pooled for _, pooled in turn]
        return features

    def parts(self, picture: Picture) -> list[tuple[list[int], tuple[int, int]]]:
        """What is encoded at once: a few views of one shape, and that shape in patches."""
        kept_by_view = picture.kept_by_view
        groups = {kept: [i for i, other in enumerate(kept_by_view) if other == kept] for kept in kept_by_view}
        return [
            (views[start : start + VIEWS_AT_ONCE], kept)
            for kept, views in groups.items()
            for start in range(0, len(views), VIEWS_AT_ONCE)
        ]

    def encode(self, pixels: np.ndarray, kept: tuple[int, int]) -> mx.array:
        """pixels (C, 448, 448, 3) with ``kept`` patches each -> (C, cell rows, cell columns, D)."""
        rows, columns = (2 * math.ceil(n / 2) for n in kept)
        x = self.embeddings(mx.array(pixels[:, : PATCH_SIZE * rows, : PATCH_SIZE * columns]), kept)
        mask = None
        if (rows, columns) != kept:
            inside = np.zeros((rows, columns), bool)
            inside[: kept[0], : kept[1]] = True
            mask = mx.array(inside.reshape(1, 1, 1, -1))
        for layer in self.layers:
            x = layer(x, mask)
        C, _, D = x.shape
        return x.reshape(C, rows // 2, 2, columns // 2, 2, D).mean(axis=(2, 4))


def position_ids(kept: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Positions of a grid of patches (rows, columns): the kept ones spread over all 32 a side.

    A kept patch i of n takes ``floor(32 i / n)``, as the published bucketing does; a padded patch
    takes position 0.
    """
    rows, columns = (np.arange(side) * PATCHES // n for side, n in zip(grid, kept, strict=True))
    positions = rows[:, None] * PATCHES + columns
    positions[kept[0] :] = 0
    positions[:, kept[1] :] = 0
    return positions
