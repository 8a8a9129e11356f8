"""From a picture in any form to the views that the encoder sees: dynamic HD.

Source: the published ``Phi4MultimodalImageProcessor``; crops of 448 pixels, at most 36, and one
global view. Two differences are on purpose, see ``reader``.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import blake2b

import numpy as np
from PIL import Image

from ..arguments.kinds import integer
from ..arguments.names import takes
from ..config import CROP_SIZE, PATCH_SIZE
from ..errors import MediaError
from .reader import read_picture

MAX_CROPS = 36
crops_kind = integer(1, MAX_CROPS)
PATCHES = CROP_SIZE // PATCH_SIZE  # per side of a view
CELLS = PATCHES // 2  # per side of a view, after 2x2 pooling
MIN_SIDE = 10  # pixels of the resized picture; the published code refuses less


@dataclass(frozen=True)
class Picture:
    """A picture cut into views, ready for the encoder.

    ``global_view`` is (448, 448, 3) float32 in about [-1, 1]; ``crops`` is (C, 448, 448, 3) uint8
    in row-major order over ``grid`` = (rows, columns); ``kept`` counts the (rows, columns) of
    patches of the stitched crops that are picture and not padding.
    """

    global_view: np.ndarray
    crops: np.ndarray
    grid: tuple[int, int]
    kept: tuple[int, int]

    def __repr__(self):
        return f"Picture(grid={self.grid}, kept={self.kept}, tokens={self.tokens})"

    @cached_property
    def key(self) -> str:
        """A digest of the content, for caches."""
        digest = blake2b(repr((self.grid, self.kept)).encode(), digest_size=16)
        digest.update(self.crops)
        digest.update(np.ascontiguousarray(self.global_view))
        return digest.hexdigest()

    @property
    def outline(self) -> "Picture":
        """The same shapes without the pixels."""
        return replace(self, global_view=self.global_view[:0], crops=self.crops[:0])

    @property
    def kept_cells(self) -> tuple[int, int]:
        """Rows and columns of the crops' grid that become tokens, after 2x2 pooling."""
        return math.ceil(self.kept[0] / 2), math.ceil(self.kept[1] / 2)

    @property
    def tokens(self) -> int:
        """Length in tokens: crops with a separator per row, one separator, the global view."""
        return _tokens(self.kept)

    @property
    def kept_by_view(self) -> list[tuple[int, int]]:
        """(rows, columns) of kept patches of each view: the global view first, then the crops."""

        def side(total: int, count: int) -> list[int]:
            return [min(max(total - PATCHES * i, 0), PATCHES) for i in range(count)]

        rows, columns = (side(n, c) for n, c in zip(self.kept, self.grid, strict=True))
        return [(PATCHES, PATCHES)] + [(r, c) for r in rows for c in columns]

    def pixels(self, views: list[int]) -> np.ndarray:
        """The views with these indices, (N, 448, 448, 3) float32 in about [-1, 1]."""
        return np.stack([self.global_view if i == 0 else _scale(self.crops[i - 1]) for i in views])


@takes(max_crops=crops_kind)
def prepare_picture(source, max_crops: int = MAX_CROPS) -> Picture:
    """Read, resize and cut one picture.

    Args:
        source: see ``reader.read_picture``; a ``Picture`` passes.
        max_crops: most crops beside the global view, 1 to 36: fewer take fewer tokens and show less detail.

    Raises:
        MediaError: it cannot be read, or its shape is too extreme.
    """
    if isinstance(source, Picture):
        return source
    image, name = read_picture(source)
    width, height = image.size
    (rows, columns), size, kept = _layout(width, height, max_crops, name)
    wide, high = CROP_SIZE * columns, CROP_SIZE * rows
    canvas = np.full((high, wide, 3), 255, np.uint8)
    canvas[: size[1], : size[0]] = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    crops = canvas.reshape(rows, CROP_SIZE, columns, CROP_SIZE, 3).swapaxes(1, 2)
    return Picture(
        global_view=_bicubic(canvas),
        crops=np.ascontiguousarray(crops).reshape(-1, CROP_SIZE, CROP_SIZE, 3),
        grid=(rows, columns),
        kept=kept,
    )


def picture_tokens(width: int, height: int, max_crops: int = MAX_CROPS) -> int:
    """Tokens of a picture of this size, known before it is decoded. Raises MediaError as ``prepare_picture``."""
    _, _, kept = _layout(width, height, max_crops, "picture")
    return _tokens(kept)


def _layout(width: int, height: int, max_crops: int, name: str) -> tuple[tuple, tuple, tuple]:
    """Rows and columns of crops, width and height in pixels on them, rows and columns of patches that are picture."""
    columns, rows = _grid(width, height, max_crops)
    wide, high = CROP_SIZE * columns, CROP_SIZE * rows
    # keep the aspect: the side that needs the smaller factor fills its crops
    if wide / width < high / height:
        size = (wide, int(height * (wide / width)))
    else:
        size = (int(width * (high / height)), high)
    if min(size) < MIN_SIDE:
        raise MediaError(
            f"{name}: a picture of {width} x {height} pixels is too elongated "
            f"(it would be resized to {size[0]} x {size[1]}; at least {MIN_SIDE} are needed)"
        )
    kept = PATCHES * rows - (high - size[1]) // PATCH_SIZE, PATCHES * columns - (wide - size[0]) // PATCH_SIZE
    return (rows, columns), size, kept


def _tokens(kept: tuple[int, int]) -> int:
    """Crops with a separator per row, one separator, the global view; after 2x2 pooling."""
    rows, columns = (math.ceil(side / 2) for side in kept)
    return rows * (columns + 1) + 1 + CELLS * (CELLS + 1)


def _grid(width: int, height: int, max_crops: int) -> tuple[int, int]:
    """Columns and rows of crops: as many as the picture covers, or the nearest shape of at most ``max_crops``."""
    columns, rows = math.ceil(width / CROP_SIZE), math.ceil(height / CROP_SIZE)
    if columns * rows <= max_crops:
        return columns, rows
    best, best_gap = (1, 1), math.inf
    for shape in _shapes(max_crops):
        gap = abs(width / height - shape[0] / shape[1])
        large = width * height > 0.5 * CROP_SIZE**2 * shape[0] * shape[1]
        if gap < best_gap or (gap == best_gap and large):
            best, best_gap = shape, gap
    return best


@cache
def _shapes(most: int) -> list[tuple[int, int]]:
    """All (columns, rows) of at most so many crops, by area; equal areas in the published order."""
    sides = range(1, most + 1)
    # a set, as in the published code: its order breaks ties between equal areas
    shapes = {(i, j) for n in sides for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most}
    return sorted(shapes, key=lambda shape: shape[0] * shape[1])


def _scale(pixels: np.ndarray) -> np.ndarray:
    return (pixels.astype(np.float32) - 127.5) / 127.5


def _bicubic(canvas: np.ndarray) -> np.ndarray:
    """Resize (H, W, 3) uint8 to a (448, 448, 3) view: a = -0.75, no antialiasing, no clamping."""
    rows, row_weights = _taps(canvas.shape[0])
    columns, column_weights = _taps(canvas.shape[1])
    view = np.zeros((CROP_SIZE, canvas.shape[1], 3), np.float32)
    for tap in range(4):
        view += _scale(canvas[rows[tap]]) * row_weights[tap][:, None, None]
    return sum(view[:, columns[tap]] * column_weights[tap][:, None] for tap in range(4))


def _taps(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights (4, 448) of the four neighbours, half-pixel centres, edges repeated."""
    centre = (np.arange(CROP_SIZE) + 0.5) * (size / CROP_SIZE) - 0.5
    first = np.floor(centre)
    t = centre - first
    a = -0.75
    distance = np.stack([1 + t, t, 1 - t, 2 - t])
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = np.where(distance <= 1, near, far)
    indices = np.clip(first + np.arange(-1, 3)[:, None], 0, size - 1).astype(int)
    return indices, weights.astype(np.float32)
