"""Which examples an iteration sees: it follows from the seed and its number, so that a resumed run sees the same."""

import numpy as np


class Order:
    """Epochs of shuffled units, cut into batches that go on from one epoch to the next.

    Args:
        count: units of the set.
        batch_size: of them in an iteration; no more than there are.
        seed: of the shuffles.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self._epoch, self._shuffled = -1, np.arange(0)

    def batch(self, iteration: int) -> list[int]:
        """The units of an iteration, counted from 0."""
        start = iteration * self.batch_size
        return [self._unit(position) for position in range(start, start + self.batch_size)]

    def epoch(self, iteration: int) -> float:
        """How often the whole set was seen before an iteration."""
        return iteration * self.batch_size / self.count

    def _unit(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.count)
        return int(self._shuffled[place])
