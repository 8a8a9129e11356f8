"""Training on several processes: each learns from its part of a batch, and all take the same step.

Gradients, loss and token counts are sums, so one flat sum over the ranks gives what one process would have for the
whole batch, up to the order of additions; ring and JACCL give each rank the same bits of it. So the weights stay equal,
which digests prove.
"""

from hashlib import blake2b
from typing import Any

import mlx.core as mx

from ..decoder.identity import raw_bytes
from ..device import exclusive
from ..errors import Phi4Error
from ..ranks.sharding import Sharding
from ..ranks.star import Ranks
from .packing import Parameters
from .step import Sums


class Together:
    """The ranks of a run. A rank that is lost ends it: the sums need all."""

    def __init__(self, ranks: Ranks | None = None):
        self.ranks = ranks or Ranks()
        self.first = self.ranks.rank == 0
        self._sharding = None
        if self.ranks.size > 1:
            self.ranks.need_all()
            self._sharding = Sharding.of(self.ranks.group)

    def share(self, units: list[int]) -> list[int]:
        """This rank's part of a batch. Raises Phi4Error where some would have none."""
        if len(units) < self.ranks.size:
            raise Phi4Error(
                f"a batch of {len(units)} cannot be shared out to {self.ranks.size} ranks; --batch-size says how large"
            )
        return units[self.ranks.rank :: self.ranks.size]

    def add_up(self, sums: Sums, flag: bool = False) -> tuple[Sums, bool]:
        """The sums of all ranks, and whether a flag is set on any."""
        if self._sharding is None:
            return sums, flag
        names = sorted(sums.gradients)
        with exclusive():
            parts = [sums.gradients[name].astype(mx.float32).reshape(-1) for name in names]
            # counts in two halves: float32 holds integers to 2**24 only
            counts = [sums.count % 4096, sums.count // 4096, sums.tokens % 4096, sums.tokens // 4096, int(flag)]
            loss = mx.array(sums.loss, mx.float32).reshape(1)
            flat = self._sharding.sum(mx.concatenate([*parts, loss, mx.array(counts, mx.float32)]))
            mx.eval(flat)
            found, start = {}, 0
            for name, part in zip(names, parts, strict=True):
                shape = sums.gradients[name].shape
                found[name] = flat[start : start + part.size].reshape(shape)
                start += part.size
            low, high, tokens_low, tokens_high, flags = map(round, flat[start + 1 :].tolist())
            return Sums(flat[start], low + 4096 * high, tokens_low + 4096 * tokens_high, found), flags > 0

    def of_first(self, value: Any) -> Any:
        """Rank 0's value, as JSON holds it."""
        return self.ranks.gather(value)[0]

    def arrays_of_first(self, arrays: Parameters) -> Parameters:
        """Rank 0's arrays, float32, where each rank has some of these names and shapes."""
        if self._sharding is None:
            return arrays
        with exclusive():
            found = {name: self._sharding.from_first(arrays[name]) for name in sorted(arrays)}
            for name in sorted(found):  # one after the other, in the same order
                mx.eval(found[name])
        return found

    def check_same(self, what: str, value: Any) -> None:
        """Raises Phi4Error unless all ranks have the same."""
        for rank, theirs in enumerate(self.ranks.gather(value)):
            if theirs != value:
                raise Phi4Error(f"{what} of {self.ranks.name(rank)} and {self.ranks.name(self.ranks.rank)} differ")

    def check_equal(self, parameters: Parameters) -> None:
        """Raises Phi4Error unless all ranks have the same weights, to the bit."""
        if self._sharding is not None:
            self.check_same("the weights", digest(parameters))


def digest(parameters: Parameters) -> str:
    """Of arrays by name, bit by bit."""
    found = blake2b(digest_size=16)
    with exclusive():
        for name in sorted(parameters):
            found.update(name.encode())
            found.update(raw_bytes(parameters[name]))
    return found.hexdigest()
