"""A queue of work that ranks share: each takes the next piece when it has room, so that a slow one holds up nobody.

Near the end a piece goes to a slow rank only if that rank will be through with it before all of them could be through
with everything; else it is left to a faster one.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from queue import SimpleQueue
from typing import Any

from ..errors import Phi4Error
from .star import Ranks, Reply

HELD_PART = 2  # a rank holds at most such a part of an equal share of what is left,
FIRST_PART = 4  # and of all, while its speed is not known
AGAIN = 0.2  # seconds after which a rank that was put off asks again
LATER = -1


class WorkQueue:
    """Which rank does which piece.

    Args:
        sizes: of the pieces, in any unit that grows with the time they take; None for those that are not to be done.
        ranks: how many share them.
    """

    def __init__(self, sizes: Sequence[int | None], ranks: int, clock: Callable[[], float] = time.monotonic):
        # a piece of no size takes some time, too; the largest first, so that none is left for the end
        self._sizes = {index: size + 1 for index, size in enumerate(sizes) if size is not None}
        self._left = sorted(self._sizes, key=lambda index: (self._sizes[index], -index))
        self._first = max(len(self._left) // (FIRST_PART * ranks), 1)
        self._held: dict[int, set[int]] = {}
        self._done: dict[int, int] = {}  # sizes of what a rank has finished
        self._began: dict[int, float] = {}
        self._clock, self._lock = clock, threading.Lock()

    def take(self, rank: int) -> int | None:
        """The next piece of a rank, LATER, or None: nothing is left."""
        with self._lock:
            if not self._left:
                return None
            self._began.setdefault(rank, self._clock())
            held = self._held.setdefault(rank, set())
            self._done.setdefault(rank, 0)
            index = self._left[-1]
            most = max(len(self._left) // (HELD_PART * len(self._began)), 1)
            if not self._done[rank]:
                most = min(most, self._first)
            if len(held) >= most or not self._in_time(rank, self._sizes[index]):
                return LATER
            held.add(self._left.pop())
            return index

    def finish(self, rank: int, index: int) -> None:
        """A rank is through with a piece."""
        with self._lock:
            self._held[rank].remove(index)
            self._done[rank] += self._sizes[index]

    def lose(self, rank: int) -> list[int]:
        """A rank is lost; the pieces that it held."""
        with self._lock:
            self._began.pop(rank, None)
            return sorted(self._held.pop(rank, ()))

    def _in_time(self, rank: int, size: int) -> bool:
        """Whether a rank should take a piece, by the speed that each has shown so far."""
        now, loads, rates = self._clock(), {}, {}
        for each, began in self._began.items():
            held = [self._sizes[index] for index in self._held[each]]
            loads[each] = sum(held)
            # before its first piece is through a rank is at best as fast as if that was just happening
            rates[each] = (self._done[each] or min(held, default=0)) / max(now - began, 1e-9)
        if not rates[rank]:
            return True
        ends = {each: (loads[each] + size) / rate for each, rate in rates.items() if rate}
        everything = sum(self._sizes[index] for index in self._left) + sum(loads.values())
        return ends[rank] <= max(min(ends.values()), everything / sum(rates.values()))


class Lost(Phi4Error):
    """A piece of work that a lost rank held."""


class SharedWork:
    """A queue of work at rank 0, as each rank sees it. All ranks make it, with the same sizes.

    Args:
        finished: at rank 0, told each piece that another rank is through with, and what came of it as JSON holds it, or
            ``Lost``.
    """

    def __init__(
        self,
        ranks: Ranks,
        sizes: Sequence[int | None],
        finished: Callable[[int, Any], None] = lambda index, result: None,
    ):
        self._ranks, self._finished = ranks, finished
        self._queue = None
        if ranks.rank == 0:
            self._queue = WorkQueue(sizes, ranks.size)
            ranks.handlers |= {"take": self._asked, "finish": self._told}
            ranks.on_lost[:] = [self._lost]
        ranks.gather(None)  # nobody asks before the queue is there

    def rounds(self) -> Iterator[Iterator[int]]:
        """Pieces to do until nothing is left, each time as many as this rank should take now."""
        while (index := self.take()) is not None:
            if index == LATER:
                time.sleep(AGAIN)
            else:
                yield chain([index], self._more())

    def take(self) -> int | None:
        """As ``WorkQueue.take``."""
        if self._queue is not None:
            return self._queue.take(0)
        return self._ranks.ask("take", {})["index"]

    def finish(self, index: int, result: Any = None) -> None:
        """This rank is through with a piece."""
        if self._queue is not None:
            self._queue.finish(0, index)
        else:
            self._ranks.ask("finish", {"index": index, "result": result})

    def _more(self) -> Iterator[int]:
        while (index := self.take()) not in (None, LATER):
            yield index

    def _asked(self, rank: int, message: dict, reply: Reply) -> None:
        reply({"index": self._queue.take(rank)})

    def _told(self, rank: int, message: dict, reply: Reply) -> None:
        self._queue.finish(rank, message["index"])
        self._finished(message["index"], message["result"])
        reply({})

    def _lost(self, rank: int) -> None:
        for index in self._queue.lose(rank):
            self._finished(index, Lost(f"{self._ranks.name(rank)} was lost while it had this"))


def share_out(
    ranks: Ranks, sizes: Sequence[int | None], work: Callable[[Iterator[int]], Iterator[tuple[int, Any]]]
) -> Iterator[tuple[int, Any]]:
    """Do pieces of work with all ranks; rank 0 yields what came of each, the others nothing.

    Args:
        work: does pieces by their indices, and yields each with its result, as JSON holds it. It may look ahead.

    Yields:
        Pairs (index, result) as they are done, ``Lost`` in the result's place where a rank was lost with it.
    """
    if ranks.size == 1:
        yield from work(iter([index for index, size in enumerate(sizes) if size is not None]))
        return
    others: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    shared = SharedWork(ranks, sizes, lambda index, result: others.put((index, result)))
    left = sum(size is not None for size in sizes)
    ranks.busy = True
    for indices in shared.rounds():
        for index, result in work(indices):
            shared.finish(index, result)
            if ranks.rank == 0:
                left -= 1
                yield index, result
            while not others.empty():
                left -= 1
                yield others.get()
    while ranks.rank == 0 and left:
        left -= 1
        yield others.get()
    ranks.busy = False
    ranks.gather(None)  # all know that nothing is left, and may go
