"""What belongs to one sequence in the decoder, and what all layers of one step share.

Layers take both as arguments and the model keeps nothing of them, so no request can see another's. The regime is fixed
beside the caches because cached keys are already rotated.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx
import numpy as np

from .adapters import Route
from .kv_cache import CacheOptions, KVCache
from .rope import LongRope


class Mirror(Protocol):
    """The same row on other ranks, which do what is done to this one."""

    def fork(self, offset: int, other: "RowState") -> "Mirror":
        """The row was forked at this offset; the other's mirror."""

    def quantize(self, offset: int, options: CacheOptions) -> None:
        """The row's caches are kept in fewer bits from now on."""


@dataclass
class RowState:
    """One sequence in the decoder.

    ``adapter`` is the one that its tokens pass, ``long`` says which RoPE table turns them, ``caches`` holds one
    key/value cache per layer (empty: nothing is kept) and ``offset`` counts the tokens seen. ``digest`` tells an
    adapter that was added from another one of the same name, see ``AdapterSet.digest``.
    """

    adapter: str | None = None
    long: bool = False
    caches: list[KVCache] | None = None
    offset: int = 0
    digest: str | None = None
    mirror: Mirror | None = field(default=None, compare=False, repr=False)

    def trimmable(self, count: int) -> bool:
        """Whether the last ``count`` tokens can be taken back."""
        return all(cache.trimmable(count) for cache in self.caches)

    def trim(self, count: int) -> None:
        """Take the last ``count`` tokens back."""
        for cache in self.caches:
            cache.trim(count)
        self.offset -= count

    def fork(self) -> "RowState":
        """The same tokens for another row; memory is shared until one of the two goes on."""
        other = copy(self)
        other.caches = [cache.fork() for cache in self.caches]
        other.mirror = None if self.mirror is None else self.mirror.fork(self.offset, other)
        return other

    def quantize(self, options: CacheOptions) -> None:
        """Keep what plain caches hold in fewer bits from now on."""
        self.caches = [cache.quantized(options) for cache in self.caches]
        if self.mirror is not None:
            self.mirror.quantize(self.offset, options)

    def arrays(self) -> list[mx.array]:
        """What has to be evaluated, and is kept."""
        return [part for cache in self.caches for part in cache.parts]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, room to grow included."""
        return sum(cache.nbytes for cache in self.caches)


@dataclass(frozen=True)
class Run:
    """The next ``count`` tokens of one row; the last ``asked`` of them want hidden states."""

    state: RowState
    count: int
    asked: int


class Step:
    """The runs of all rows of a step, one after another, and what every layer shares.

    ``route`` and ``rotation`` are those of all T tokens, ``masks`` has a row's mask for each run. Of the last layer
    ``asked_route`` and ``asked`` tell which tokens are computed: indices (A,), or None for all of them.
    """

    def __init__(
        self,
        runs: list[Run],
        rope: LongRope,
        dtype: mx.Dtype,
        composed: Mapping[str, tuple[str, ...]] | None = None,
    ):
        """Describe the runs and move their rows past them."""
        self.runs = runs
        self.rotation = rope.rotation([(run.state.offset, run.count, run.state.long) for run in runs], dtype)
        self.route = Route.of([(run.state.adapter, run.count) for run in runs], composed)
        self.masks = [_mask(run) for run in runs]
        self.asked: mx.array | None = None
        self.asked_route = self.route
        if any(run.asked != run.count for run in runs):
            ends = np.cumsum([run.count for run in runs])
            places = [np.arange(end - run.asked, end) for end, run in zip(ends.tolist(), runs, strict=True)]
            self.asked = mx.array(np.concatenate(places).astype(np.int32))
            self.asked_route = Route.of([(run.state.adapter, run.asked) for run in runs], composed)
        for run in runs:
            run.state.offset += run.count

    def caches(self, layer: int) -> list[KVCache | None]:
        """This layer's cache of each run."""
        return [run.state.caches[layer] if run.state.caches else None for run in self.runs]


def _mask(run: Run) -> mx.array | str | None:
    if run.state.caches:
        return run.state.caches[0].mask(run.count)
    return None if run.count == 1 else "causal"
