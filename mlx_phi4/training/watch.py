"""Whether a run is worth going on with: numbers that are finite, and a loss that tells more than guessing does."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .examples import Example

WINDOWS = 3  # stretches of updates that are compared
SHORTEST_WATCH = 20  # updates of a stretch: new words are learnt after up to 60 updates at chance
FALL = 0.01  # of the loss from the first stretch to a later one: less is no progress
NEAR = 0.85  # of the loss of guessing: above it nothing is known of the inputs
OPENING = 8  # tokens of an answer that are guessed each by their place


def guessing_loss(examples: Sequence[Example]) -> float:
    """The least loss of a model that does not look at its inputs: by how often tokens come at each place of an answer.

    Tokens far into an answer are counted together.
    """
    counts: dict[int, Counter] = {}
    for each in examples:
        places = np.concatenate([[0], np.where(np.diff(each.positions) > 1)[0] + 1])  # where answers begin
        for index, token in enumerate(each.targets.tolist()):
            begun = places[places <= index][-1]
            counts.setdefault(min(index - int(begun), OPENING), Counter())[token] += 1
    total = sum(count for place in counts.values() for count in place.values())
    bits = sum(-count * math.log(count / place.total()) for place in counts.values() for count in place.values())
    return bits / total if total else 0.0


class Watch:
    """Losses of updates as they come, and why a run should end.

    Args:
        guess: see ``guessing_loss``.
        updates: of the whole run.
        warmup: updates that do not count yet.
    """

    def __init__(self, guess: float, updates: int, warmup: int):
        self.guess, self.warmup = guess, warmup
        self.window = max(updates // 8, SHORTEST_WATCH)
        self.losses: list[float] = []

    def add(self, loss: float) -> None:
        """The mean loss of an update."""
        self.losses.append(loss)

    def broken(self, norm: float) -> str | None:
        """Why the last update must not be kept, or None: its loss or its gradient is no number."""
        if math.isfinite(self.losses[-1]) and math.isfinite(norm):
            return None
        what = "loss" if not math.isfinite(self.losses[-1]) else "gradient"
        return f"the {what} is not finite any more at update {len(self.losses)}: try a lower --learning-rate"

    def hopeless(self) -> str | None:
        """Why it is no use to go on, or None.

        After the warm-up the last stretches of updates are compared: it is hopeless where none of them is better than
        the first, and all are about as bad as guessing, or worse.
        """
        known = self.losses[self.warmup :]
        if len(known) < WINDOWS * self.window or len(known) % self.window:
            return None
        last = known[-WINDOWS * self.window :]
        means = [float(np.mean(last[i : i + self.window])) for i in range(0, len(last), self.window)]
        if min(means) < NEAR * self.guess or min(means[1:]) < (1 - FALL) * means[0]:
            return None
        return (
            f"no progress: the loss has stayed at {means[-1]:.3g} for {len(last)} updates, and guessing blindly "
            f"gives {self.guess:.3g}; try another --learning-rate"
        )
