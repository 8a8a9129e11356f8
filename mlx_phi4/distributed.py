"""The processes that ``mlx.launch`` started together: their ranks, what all of them know, and whose work is whose.

Nothing is sent but a few numbers, and nothing here knows what the work is.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .errors import Phi4Error

# set by mlx.launch and by MPI's own launchers; without them there is nothing to join, nor a library to wake up
LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


@dataclass(frozen=True)
class Ranks:
    """This process's place among ``size`` of them."""

    rank: int = 0
    size: int = 1
    group: Any = None

    def gather(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of all ranks, as many from each; waits for them. Raises Phi4Error if one is gone."""
        if self.size == 1:
            return [numbers]
        import mlx.core as mx

        with _interruptible():
            try:
                mine = mx.array([numbers], dtype=mx.int64)
                return mx.distributed.all_gather(mine, group=self.group, stream=mx.cpu).tolist()
            except RuntimeError:
                raise Phi4Error("another process of this run ended before its work was done") from None


def join() -> Ranks:
    """Join the processes that ``mlx.launch`` started together; alone without it."""
    if not any(name in os.environ for name in LAUNCHED) or _no_hosts():
        return Ranks()
    import mlx.core as mx

    try:
        with _interruptible():
            group = mx.distributed.init()
    except RuntimeError as error:
        raise Phi4Error(f"the processes of this run cannot reach each other: {error}") from None
    return Ranks(group.rank(), group.size(), group)


def _no_hosts() -> bool:
    """``mlx.launch -n 1`` names an empty file of hosts, which MLX itself stumbles over."""
    name = os.environ.get("MLX_HOSTFILE")
    try:
        return name is not None and not Path(name).read_bytes().strip()
    except OSError:
        return False


def agree(ranks: Ranks, names: list[str], finished: list[bool]) -> list[bool]:
    """Which files any rank finds finished. Nobody goes on before all have looked, so all share out the same files.

    Args:
        names: of all files, in the same order on every rank; they need not exist under the same path.
        finished: for each of them, whether this rank finds it finished.

    Raises:
        Phi4Error: the ranks see different files.
    """
    digest = int.from_bytes(blake2b("\0".join(names).encode("utf-8", "surrogateescape"), digest_size=7).digest())
    seen = ranks.gather([len(names), digest])
    if any(other != seen[0] for other in seen):
        counts = ", ".join(str(count) for count, _ in seen)
        raise Phi4Error(f"the processes of this run see different files ({counts}); each needs the same")
    return [any(marks) for marks in zip(*ranks.gather([*map(int, finished), 0]), strict=True)][:-1]


def share(ranks: Ranks, sizes: list[int | None]) -> list[int]:
    """Indices of this rank's files: the largest first, each to the rank with least to do. None: nothing to do."""
    loads = [0] * ranks.size
    mine = []
    for index in sorted((i for i, size in enumerate(sizes) if size is not None), key=lambda i: (-sizes[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[index] + 1
        if rank == ranks.rank:
            mine.append(index)
    return sorted(mine)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process while it waits for others, deep in a library that Python cannot interrupt."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    before: Callable | int | None = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
