"""Prompt lookup: an answer that goes on as a text before it did, found by its last tokens (arXiv 2304.04487).

A token more costs the same however long the text is: pairs of neighbouring tokens are kept in a table as LZ77's
matchers keep them, and a place that was found is followed from token to token. Following costs the device nothing, so
it goes on where nothing is drafted, too: how often the next token is foretold is known at all times.
"""

from collections.abc import Sequence

import numpy as np

PLACES = 8  # earlier places of a pair that are compared
MOST_COMPARED = 32  # tokens before a place that are compared, at most
SURE = 8  # tokens in agreement from which on no better place is looked for
AGREEMENTS = (
    0,
    1,
    2,
    3,
    4,
    4,
    4,
    4,
    5,
    5,
    5,
    5,
    5,
    5,
    5,
    5,
    6,
)  # by tokens in agreement: those that are counted together
TRUST = (0.3, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)  # of each kind, that the next token is foretold, before any was counted
WEIGHT = 2.0  # tokens that this trust counts for
MEMORY = 0.95  # of what was counted, from one token to the next


class PairIndex:
    """A text of tokens that may grow at its end, and where each pair of neighbours stands in it."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens = list(tokens)
        self._last: dict[int, int] = {}  # by a pair, the last place of its second token
        self._earlier = [-1] * min(len(self.tokens), 1)  # by a place, the one before it of the same pair
        if len(self.tokens) > 1:
            text = np.asarray(self.tokens, np.int64)
            pairs = text[:-1] << 32 | text[1:]
            order = np.argsort(pairs, kind="stable")
            same = np.nonzero(pairs[order[1:]] == pairs[order[:-1]])[0]
            earlier = np.full(len(text), -1)
            earlier[order[same + 1] + 1] = order[same] + 1
            self._last = dict(zip(pairs.tolist(), range(1, len(text)), strict=True))
            self._earlier = earlier.tolist()

    def append(self, token: int) -> None:
        """One token more at the end."""
        self.tokens.append(token)
        place, earlier = len(self.tokens) - 1, -1
        if place:
            pair = self.tokens[-2] << 32 | token
            earlier = self._last.get(pair, -1)
            self._last[pair] = place
        self._earlier.append(earlier)

    def find(self, text: list[int]) -> tuple[int, int]:
        """Where a text goes on in this one, or in itself earlier on: (place, tokens in agreement before it).

        The longest agreement of at least two tokens, of several the last; (0, 0) if there is none.
        """
        if len(text) < 2:
            return 0, 0
        place = self._earlier[-1] if text is self.tokens else self._last.get(text[-2] << 32 | text[-1], -1)
        best = 0, 0
        for _ in range(PLACES):
            if place < 0:
                break
            count = self._agreement(text, place)
            if count > best[1]:
                best = place + 1, count
            place = self._earlier[place]
        return best

    def _agreement(self, text: list[int], place: int) -> int:
        """Tokens that are alike at the end of a text and up to a place, of which two are known to be."""
        tokens, count = self.tokens, 2
        most = min(MOST_COMPARED, place + 1, len(text))
        while count < most and tokens[place - count] == text[-1 - count]:
            count += 1
        return count


class Follower:
    """A place in a text where an answer may go on, followed as the answer grows.

    Args:
        index: the text: prompt and answer themselves, or another.
        history: prompt and answer, which whoever calls ``read`` has appended to; the index's own tokens where it is
            their index.
        begins: take the answer to begin as the text does.
    """

    def __init__(self, index: PairIndex, history: list[int], begins: bool = False):
        self._index, self._history = index, history
        self._own = index.tokens is history
        self._place: int | None = 0 if begins else None
        self._agreement = SURE if begins else 0
        self._seen, self._right = [0.0] * len(TRUST), [0.0] * len(TRUST)

    def read(self) -> None:
        """The history has one token more."""
        tokens, place = self._index.tokens, self._place
        if place is not None and place < len(tokens):
            right = tokens[place] == self._history[-1]
            kind = _kind(self._agreement)
            self._seen[kind] = MEMORY * self._seen[kind] + 1
            self._right[kind] = MEMORY * self._right[kind] + right
            # where one token is another, the rest may still be as it was
            self._place, self._agreement = place + 1, self._agreement + 1 if right else 0
        if self._agreement < SURE:
            place, agreement = self._index.find(self._history)
            if agreement > self._agreement:
                self._place, self._agreement = place, agreement

    def chances(self, count: int) -> list[float]:
        """How likely each of the next tokens is foretold with all before it; as many as there are, up to ``count``."""
        if self._place is None:
            return []
        if not self._own:
            count = min(count, len(self._index.tokens) - self._place)
        found, chance = [], 1.0
        for agreement in range(self._agreement, self._agreement + count):
            kind = _kind(agreement)
            chance *= (self._right[kind] + WEIGHT * TRUST[kind]) / (self._seen[kind] + WEIGHT)
            found.append(chance)
        return found

    def foretold(self, count: int) -> list[int]:
        """The next tokens, at most so many; text that would go on beyond its own end repeats itself."""
        if self._place is None:
            return []
        found = self._index.tokens[self._place : self._place + count]
        period = len(found)
        while self._own and 0 < len(found) < count:
            found.append(found[-period])
        return found


def _kind(agreement: int) -> int:
    return AGREEMENTS[min(agreement, len(AGREEMENTS) - 1)]
