"""A process's place among those that share a model, and the few things that they say to each other on the device."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx

from ..device import cpu_stream

Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class Sharding:
    """This process's place among those that share a model; ``group`` is MLX's."""

    rank: int
    size: int
    group: Any

    @classmethod
    def of(cls, group: Any = None) -> "Sharding":
        """From MLX's group; None is that of all processes."""
        group = mx.distributed.init() if group is None else group
        return cls(group.rank(), group.size(), group)

    def sum(self, x: mx.array) -> mx.array:
        """The sum of all ranks' x, the same bits on each."""
        return mx.distributed.all_sum(x, group=self.group, stream=cpu_stream())

    def gather(self, x: mx.array) -> mx.array:
        """x (n, ...) of all ranks one behind the other, (size * n, ...)."""
        return mx.distributed.all_gather(x, group=self.group, stream=cpu_stream())

    def from_first(self, x: mx.array) -> mx.array:
        """Rank 0's x on all ranks."""
        # the zeros wait for what x waits for: sums must come in the same order everywhere
        return self.sum(x if self.rank == 0 else mx.depends(mx.zeros_like(x), x))

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """This rank's part of a range that the ranks divide."""
        part = (stop - start) // self.size
        return start + self.rank * part, start + (self.rank + 1) * part

    def turns(
        self, parts: list[Part], compute: Callable[[Part], mx.array], shape: Callable[[Part], tuple[int, ...]]
    ) -> Iterator[list[tuple[Part, mx.array]]]:
        """Share parts of some work out, a turn of one part for each rank, and gather what each turn gave.

        Args:
            compute: a part -> its result, of ``shape``.

        Yields:
            Pairs (part, result) of a turn, the same on all ranks.
        """
        for first in range(0, len(parts), self.size):
            turn = parts[first : first + self.size]
            # a rank that is left over does the last part again: it must know the result's dtype
            mine = compute(turn[min(self.rank, len(turn) - 1)]).reshape(-1)
            shapes = [shape(part) for part in turn]
            sizes = [math.prod(each) for each in shapes]
            padded = mx.pad(mine, [(0, max(sizes) - mine.size)])
            gathered = self.gather(padded[None])
            yield [
                (part, gathered[i, :size].reshape(dims))
                for i, (part, size, dims) in enumerate(zip(turn, sizes, shapes, strict=True))
            ]


def in_turns(
    sharding: Sharding | None,
    parts: list[Part],
    compute: Callable[[Part], mx.array],
    shape: Callable[[Part], tuple[int, ...]],
) -> Iterator[list[tuple[Part, mx.array]]]:
    """As ``Sharding.turns``, or one part after another where nobody shares; a single part is not worth sharing."""
    if sharding is not None and len(parts) > 1:
        yield from sharding.turns(parts, compute, shape)
        return
    for part in parts:
        yield [(part, compute(part))]
