"""What belongs to the sequences of one batch: cache, route, padding and RoPE regime.

Layers take it as an argument and the model keeps nothing of it, so no request can see another's. The regime is fixed
beside the cache because cached keys are already rotated.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from ..errors import Phi4Error
from .adapters import Mode, Route
from .rope import LongRope


@dataclass(frozen=True)
class CacheOptions:
    """How keys and values are kept.

    ``bits`` 8 or 4 quantizes them in groups of ``group_size`` along a head, from ``quantized_start`` tokens on;
    ``max_size`` keeps the first 4 and the last tokens, that many in all (the model forgets what lies between).
    """

    bits: int | None = None
    group_size: int = 64
    quantized_start: int = 0
    max_size: int | None = None

    def check(self, head_dim: int, rows: int) -> None:
        """Raises Phi4Error for combinations that cannot be exact."""
        if self.bits not in (None, 4, 8):
            raise Phi4Error(f"kv_bits is {self.bits}, expected 4 or 8")
        if self.bits and (self.group_size not in (32, 64, 128) or head_dim % self.group_size):
            raise Phi4Error(
                f"kv_group_size is {self.group_size}, expected 32, 64 or 128 that divides the head size {head_dim}"
            )
        if self.quantized_start < 0:
            raise Phi4Error(f"quantized_kv_start is {self.quantized_start}, expected at least 0")
        if self.bits and self.quantized_start and rows > 1:
            raise Phi4Error("quantized_kv_start works on one sequence at a time: rows of a batch reach it apart")
        if self.max_size is None:
            return
        if self.max_size < 16:
            raise Phi4Error(f"max_kv_size is {self.max_size}, expected at least 16")
        if rows > 1:
            raise Phi4Error("max_kv_size works on one sequence at a time: rows of a batch would forget together")
        if self.bits:
            raise Phi4Error("max_kv_size and kv_bits cannot be combined: mlx-lm's rotating cache is not quantized")

    def make(self, layers: int) -> list:
        """A fresh cache per layer, mlx-lm's."""
        from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

        if self.max_size is not None:
            return [RotatingKVCache(max_size=self.max_size, keep=4) for _ in range(layers)]
        if self.bits and self.quantized_start == 0:
            return [QuantizedKVCache(group_size=self.group_size, bits=self.bits) for _ in range(layers)]
        return [KVCache() for _ in range(layers)]

    def due(self, offset: int) -> bool:
        """Whether a plain cache of ``offset`` tokens is to be quantized now."""
        return bool(self.bits and self.quantized_start and offset >= self.quantized_start)


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares."""

    route: Route
    rotation: tuple[mx.array, mx.array]
    mask: mx.array | str | None


@dataclass
class DecodeState:
    """The state of B left-padded sequences.

    ``modes`` decides the route, ``padding`` counts the padding columns on the left of each row, ``long`` says which
    rows use the long RoPE table, ``cache`` holds one key/value cache per layer (None: nothing is kept) and ``offset``
    the columns seen so far, padding included.
    """

    modes: tuple[Mode, ...]
    padding: tuple[int, ...]
    long: tuple[bool, ...]
    cache: list | None = None
    offset: int = 0

    def __post_init__(self):
        self.route = Route.of(self.modes)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens seen of each row."""
        return tuple(self.offset - padding for padding in self.padding)

    def step(self, length: int, rope: LongRope, dtype: mx.Dtype) -> Step:
        """Describe the next ``length`` columns and move past them."""
        columns = np.arange(self.offset, self.offset + length)
        positions = np.maximum(columns - np.array(self.padding)[:, None], 0)
        step = Step(self.route, rope.rotation(mx.array(positions), self.long, dtype), self._mask(columns))
        self.offset += length
        return step

    def _mask(self, columns: np.ndarray) -> mx.array | str | None:
        """None or "causal" without padding, else (B, 1, L, columns so far), True = attend."""
        if self.cache and hasattr(self.cache[0], "max_size"):
            return self.cache[0].make_mask(len(columns), window_size=None, return_array=False)
        if not any(self.padding):
            return None if len(columns) == 1 else "causal"
        keys = np.arange(columns[-1] + 1)
        queries = columns[:, None]
        seen = keys >= np.array(self.padding)[:, None, None]
        # a padding column attends itself: a row of nothing would turn into NaN and spread
        mask = ((keys <= queries) & seen) | (keys == queries)
        return mx.array(mask[:, None])

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows, and the padding columns that none of the kept ones needs."""
        spare = min(self.padding[row] for row in rows)
        self.modes = tuple(self.modes[row] for row in rows)
        self.padding = tuple(self.padding[row] - spare for row in rows)
        self.long = tuple(self.long[row] for row in rows)
        self.route = Route.of(self.modes)
        self.offset -= spare
        kept = mx.array(rows)
        for cache in self.cache:
            cache.keys, cache.values = tree_map(lambda a: a[kept][:, :, spare:], (cache.keys, cache.values))
            cache.offset -= spare

    def join(self, other: "DecodeState") -> None:
        """Append the rows of another state of the same kind of cache, padded on the left to one length."""
        width = max(self.offset, other.offset)
        for cache, added in zip(self.cache, other.cache, strict=True):
            mine, theirs = cache.keys_and_values(), added.keys_and_values()
            joined = tree_map(
                lambda a, b: mx.concatenate([_pad_left(a, width), _pad_left(b, width)]), tuple(mine), tuple(theirs)
            )
            cache.keys, cache.values = joined
            cache.offset = width
        self.padding = (
            *(padding + width - self.offset for padding in self.padding),
            *(padding + width - other.offset for padding in other.padding),
        )
        self.modes, self.long, self.offset = self.modes + other.modes, self.long + other.long, width
        self.route = Route.of(self.modes)

    def replace_row(self, row: int, alone: "DecodeState") -> None:
        """Put a row's newly computed keys and values, and its regime, in place of the old ones."""
        self.long = tuple(alone.long[0] if other == row else long for other, long in enumerate(self.long))
        if len(self.padding) == 1:
            self.cache = alone.cache
            return
        start, stop = self.padding[row], self.offset
        for cache, new in zip(self.cache, alone.cache, strict=True):
            buffers = tree_flatten((cache.keys, cache.values))
            for (_, buffer), (_, fresh) in zip(buffers, tree_flatten((new.keys, new.values)), strict=True):
                buffer[row, :, start:stop] = fresh[0, :, : stop - start]

    def quantize_if_due(self, options: CacheOptions) -> None:
        """Change plain caches to quantized ones once they are long enough."""
        if self.cache and not hasattr(self.cache[0], "bits") and options.due(self.offset):
            self.cache = [c.to_quantized(group_size=options.group_size, bits=options.bits) for c in self.cache]


def _pad_left(part: mx.array, width: int) -> mx.array:
    return mx.pad(part, [(0, 0), (0, 0), (width - part.shape[2], 0), (0, 0)])
