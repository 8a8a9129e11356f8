"""What steps cost on this machine, measured as they are made, and how many drafted tokens pay.

A step with drafts is worth its time where it brings more tokens a second than a step without. Where that lies differs
from device to device: some read all weights once for one token or for ten, others compute each by itself. So it is
measured, for each model, from the steps that are made anyway. No answer depends on it, only when it comes.
"""

import statistics
import weakref
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..model import Phi4
from .draft_model import DraftRow

MEASURED = 9  # measurements of a kind of step; their median counts, since other programs' work falls on single ones
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # drafted tokens measured apart
FORGOTTEN = 32  # plain steps after which what is known of them is put together anew
PRICE = 0.05  # of a drafted token, in plain steps, before any was measured
GAIN = 1.05  # tokens a second over those of a plain step, from which on drafts are made
_known: dict[tuple[int, str], "StepCosts"] = {}


@dataclass
class Wanted:
    """What a row could draft: how likely each token comes with all before it, and how many are tried in any case."""

    chances: list[float]
    tried: int = 0
    model: DraftRow | None = None  # what drafts, if it is a draft model: its time counts, too


class StepCosts:
    """Seconds of decoding steps by their rows and drafted tokens. Used by one thread at a time, see ``exclusive``."""

    def __init__(self):
        self._plain: dict[int, deque[float]] = {}  # by rows: steps beside the host's work for the next one
        self._verifying: dict[int, dict[int, deque[float]]] = {}  # by rows and drafted tokens: steps on their own
        self._drafting: deque[float] = deque(maxlen=MEASURED)  # of a draft model, for a token of each row
        self._curves: dict[int, list[float]] = {}  # by rows, as far as they were asked for
        self._noted = 0
        self.spent = 0.0  # by draft models in this step

    @classmethod
    def of(cls, model: Phi4) -> "StepCosts":
        """Those of a model on the device that is used now."""
        key = id(model), str(mx.default_device())
        if key not in _known:
            _known[key] = cls()
            weakref.finalize(model, _known.pop, key, None)
        return _known[key]

    def note(self, rows: int, drafted: int, seconds: float) -> None:
        """A step of these rows took so long, with so many drafted tokens beside their own."""
        kinds, kind = self._plain, rows
        if drafted:
            kinds = self._verifying.setdefault(rows, {})
            kind = COUNTS[min(bisect_left(COUNTS, drafted), len(COUNTS) - 1)]
        if kind not in kinds:
            kinds[kind] = deque(maxlen=MEASURED)
        kinds[kind].append(seconds)
        self._noted += 1
        if drafted or self._noted % FORGOTTEN == 0:  # of plain steps there are many
            self._curves = {}

    def note_drafting(self, tokens: int, seconds: float) -> None:
        """A draft model took so long for so many tokens of each row."""
        self._drafting.append(seconds / tokens)
        self.spent += seconds

    @property
    def drafting(self) -> float:
        """Seconds that a draft model takes for one more token of each row."""
        return statistics.median(self._drafting) if self._drafting else 0.0

    def seconds(self, rows: int, most: int) -> list[float]:
        """Seconds of a step of these rows with 0, 1, ... up to ``most`` drafted tokens and more, as far as is known.

        Between measurements a line is drawn, and beyond the last the line goes on. Of numbers of rows that were not
        measured yet, what drafts added to the nearest one counts.
        """
        known = self._curves.get(rows, [])
        if len(known) <= most:
            known = self._curves[rows] = self._curve(rows, np.arange(2 * most + 1)).tolist()
        return known

    def _curve(self, rows: int, counts: np.ndarray) -> np.ndarray:
        """Seconds with so many drafted tokens each."""
        plain = _nearest(self._plain, rows)
        if not self._verifying:
            return (1.0 if plain is None else statistics.median(plain)) * (1 + PRICE * counts)
        near = min(self._verifying, key=lambda each: abs(each - rows))
        measured, own = self._verifying[near], _nearest(self._plain, near)
        at = np.array(sorted(measured))
        # what a longer draft was seen to take a shorter one takes, too: noise only adds
        took = np.minimum.accumulate([statistics.median(measured[count]) for count in at[::-1].tolist()])[::-1]
        first = float((took / (1 + PRICE * at)).min()) if own is None else statistics.median(own)
        took = np.maximum(took, first)
        slope = max((took[-1] - first) / at[-1], 0.0)
        found = np.interp(counts, np.append(0, at), np.append(first, took)) + slope * np.maximum(counts - at[-1], 0)
        return found if plain is None else found - first + statistics.median(plain)


def _nearest(kinds: dict, rows: int):
    """What was measured for the number of rows that is nearest to this one; None if nothing was."""
    return kinds[min(kinds, key=lambda each: abs(each - rows))] if kinds else None


def shares(wanted: list[Wanted], rows: int, costs: StepCosts) -> list[int]:
    """How many tokens each of the wanted drafts may have in a step of so many rows.

    Tokens are added in the order of their chances, as many as bring the step as a whole the most tokens a second; none
    but those that are tried in any case, where that is less than ``GAIN`` times what a plain step brings.
    """
    found = [min(each.tried, len(each.chances)) for each in wanted]
    more = sorted(
        (-chance, place, number)
        for number, each in enumerate(wanted)
        for place, chance in enumerate(each.chances)
        if place >= found[number]
    )
    first = sum(found)
    seconds, drafting = costs.seconds(rows, first + len(more)), costs.drafting
    tokens = rows + sum(sum(each.chances[:count]) for each, count in zip(wanted, found, strict=True))
    depth = max((count for each, count in zip(wanted, found, strict=True) if each.model), default=0)
    best, best_rate = 0, tokens / (seconds[first] + drafting * depth) * (1 if first else GAIN)
    for count, (chance, place, number) in enumerate(more, 1):
        tokens -= chance
        if wanted[number].model:
            depth = max(depth, place + 1)
        rate = tokens / (seconds[first + count] + drafting * depth)
        if rate > best_rate:
            best, best_rate = count, rate
    for _, _, number in more[:best]:
        found[number] += 1
    return found
