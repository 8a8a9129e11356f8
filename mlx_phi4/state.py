"""What belongs to the sequences of one batch: cache, route, padding and RoPE regime.

Layers take it as an argument and the model keeps nothing of it, so no request can see another's.
The regime is fixed beside the cache because cached keys are already rotated.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .adapters import Route
from .rope import LongRope


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares."""

    route: Route
    rotation: tuple[mx.array, mx.array]
    mask: mx.array | str | None


@dataclass
class DecodeState:
    """The state of B left-padded sequences.

    ``padding`` counts the padding columns on the left of each row, ``long`` says which rows use
    the long RoPE table, ``cache`` holds one key/value cache per layer (None: nothing is kept) and
    ``offset`` the columns seen so far, padding included.
    """

    route: Route
    padding: tuple[int, ...]
    long: tuple[bool, ...]
    cache: list | None = None
    offset: int = 0

    def step(self, length: int, rope: LongRope, dtype: mx.Dtype) -> Step:
        """Describe the next ``length`` columns and move past them."""
        columns = np.arange(self.offset, self.offset + length)
        positions = np.maximum(columns - np.array(self.padding)[:, None], 0)
        step = Step(
            self.route,
            rope.rotation(mx.array(positions), self.long, dtype),
            self._mask(columns),
        )
        self.offset += length
        return step

    def _mask(self, columns: np.ndarray) -> mx.array | str | None:
        """None or "causal" without padding, else (B, 1, L, columns so far), True = attend."""
        if not any(self.padding):
            return None if len(columns) == 1 else "causal"
        keys = np.arange(columns[-1] + 1)
        queries = columns[:, None]
        seen = keys >= np.array(self.padding)[:, None, None]
        # a padding column attends itself: a row of nothing would turn into NaN and spread
        mask = ((keys <= queries) & seen) | (keys == queries)
        return mx.array(mask[:, None])
