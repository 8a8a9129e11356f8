"""Speculation: tokens that are drafted cheaply and verified side by side in one step, which changes no answer.

A draft is a guess of the next tokens. A step computes what follows each of them, and the row's own sampler chooses
there as it would without a draft, with the random numbers of that place; the draft counts as far as the choices are
the same. For a draft of given tokens this is the acceptance rule of speculative sampling (arXiv 2211.17192): x stays
with probability p(x), and where it does not, what was chosen instead has the distribution p without x, normalised. So
sampled answers keep their distribution, and seeded ones their very tokens.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from ..errors import Phi4Error
from ..inputs.processor import Row
from ..inputs.tokenizer import Tokenizer
from .draft_model import DraftModel, DraftRow
from .lookup import MEMORY, Follower, PairIndex
from .options import GenerationOptions
from .step_costs import Wanted

FIRST_DRAFTS = 3  # first drafts of a row, which are made whatever is thought of them
SHORT, LONG = 8, 32  # most tokens of a row's first drafts, and of those after drafts that were right to their ends
LIKELY = 0.25  # chance of a draft's first token at least, and of the last one of the first drafts
QUIET, SILENT = 64, 1024  # tokens without a draft after which another is tried: the first time, and at last
PROBE = 2  # tokens of such a draft
REFUSAL = 16  # tokens without a draft where nothing of the last ones could come
KEPT_PREDICTIONS = 16  # of each tokenizer, as ids

_lock = threading.Lock()
_encoded: WeakKeyDictionary[Tokenizer, OrderedDict[str, tuple[int, ...]]] = WeakKeyDictionary()
Draft = Callable[[list[int]], list[int]]  # tokens of prompt and answer so far -> tokens that may follow


class Drafts(Protocol):
    """What drafts for one row; ``model`` is its part of a draft model, if there is one. What it raises ends the row."""

    model: DraftRow | None

    def read(self, token: int) -> None:
        """The answer has one token more."""

    def wanted(self, room: int, unread: int = 0) -> Wanted | None:
        """What could be drafted now, at most ``room`` tokens; None for nothing.

        With ``unread`` tokens that were chosen and not read yet: what is likely to be wanted once they are.
        """

    def draft(self, count: int) -> list[int]:
        """At most so many tokens of what was wanted last."""

    def judged(self, drafted: int, accepted: int) -> None:
        """Of a draft so many tokens were verified, and the first so many were right; of none, nothing could come."""

    def forget(self) -> None:
        """Let go of what the device holds."""

    @property
    def nbytes(self) -> int:
        """Bytes that the device holds."""


class GivenDrafts:
    """Drafts that a function gives, all of them, however often it is right."""

    model, nbytes = None, 0

    def __init__(self, function: Draft, known: Callable[[], list[int]]):
        """``known`` gives prompt and answer, as far as they were read."""
        self.function, self._known = function, known
        self._found: list[int] = []

    def read(self, token: int) -> None:
        pass

    def wanted(self, room: int, unread: int = 0) -> Wanted | None:
        self._found = [int(token) for token in self.function(self._known())][: max(room, 0)]
        return Wanted([1.0] * len(self._found), len(self._found)) if self._found else None

    def draft(self, count: int) -> list[int]:
        return self._found[:count]

    def judged(self, drafted: int, accepted: int) -> None:
        pass

    def forget(self) -> None:
        pass


class Speculation:
    """Drafts from texts in which the answer is followed, and from a draft model.

    Args:
        prompt: token ids.
        lookup: prompt and answer are such a text.
        prediction: token ids of a text that the answer is expected to be.
        model: the row's part of a draft model, which drafts where it promises more.
    """

    def __init__(
        self, prompt: Sequence[int], lookup: bool, prediction: Sequence[int] = (), model: DraftRow | None = None
    ):
        self._prompt, self._lookup, self._prediction, self.model = prompt, lookup, prediction, model
        self._followers: list[Follower] | None = None  # made while the prompt is computed
        self._source: Follower | None = None
        self._made = self._refused = 0  # drafts, and those in a row of which nothing could come
        self._longest = SHORT
        self._quiet, self._patience = 0, QUIET  # tokens since the last draft; after which another is tried
        self._right, self._seen = 3.0, 4.0  # tokens of the draft model, of which some are taken for granted at first

    def _begin(self) -> None:
        own = PairIndex(self._prompt) if self._lookup else None
        self._history = own.tokens if own is not None else []
        self._append = own.append if own is not None else self._history.append
        self._followers = (
            [Follower(PairIndex(self._prediction), self._history, begins=True)] if self._prediction else []
        )
        if own is not None:
            self._followers.append(Follower(own, self._history))

    def read(self, token: int) -> None:
        """See ``Drafts``."""
        if self._followers is None:
            self._begin()
        self._quiet += 1
        if self._followers:
            self._append(token)
        for follower in self._followers:
            follower.read()
        if self.model is not None:
            self.model.read(token)

    def wanted(self, room: int, unread: int = 0) -> Wanted | None:
        """See ``Drafts``."""
        if self._followers is None:
            self._begin()
        if self._refused >= FIRST_DRAFTS and self._quiet < REFUSAL:
            return None
        count, chances, self._source, model = min(room, self._longest), [], None, None
        for follower in self._followers:
            likely = follower.chances(count + unread)[unread:]
            if sum(likely) > sum(chances):
                chances, self._source = likely, follower
        if self.model is not None:
            chance = self._right / self._seen
            likely = [chance ** (place + 1) for place in range(self.model.room(count))]
            if sum(likely) > sum(chances):
                chances, self._source, model = likely, None, self.model
        tried = self._tried(chances)
        if not tried and (not chances or chances[0] < LIKELY):
            return None
        return Wanted(chances, tried, model)

    def _tried(self, chances: list[float]) -> int:
        """Tokens that are drafted whatever is thought of them."""
        likely = bool(chances) and (chances[0] >= LIKELY or self._source is None)
        if not likely:
            return 0
        if self._made < FIRST_DRAFTS:
            return max(sum(chance >= LIKELY for chance in chances), PROBE)
        return PROBE if self._quiet >= self._patience else 0

    def draft(self, count: int) -> list[int]:
        """See ``Drafts``; a draft model is asked for several rows at once instead."""
        return self._source.foretold(count)

    def judged(self, drafted: int, accepted: int) -> None:
        """See ``Drafts``."""
        self._made += 1
        self._refused = 0 if drafted else self._refused + 1
        if self._quiet > QUIET:
            self._patience = QUIET if 2 * accepted > drafted else min(2 * self._patience, SILENT)
        self._quiet = 0
        if accepted >= self._longest:
            self._longest = min(2 * self._longest, LONG)
        elif 4 * accepted < drafted:
            self._longest = max(self._longest // 2, SHORT)
        if self._source is None:  # of followers it is known without drafts
            seen = min(accepted + 1, max(drafted, 1))
            self._right, self._seen = MEMORY**seen * self._right + accepted, MEMORY**seen * self._seen + seen

    def forget(self) -> None:
        """See ``Drafts``."""
        if self.model is not None:
            self.model.forget()

    @property
    def nbytes(self) -> int:
        """See ``Drafts``."""
        return 0 if self.model is None else self.model.nbytes


def drafts_of(options: GenerationOptions, row: Row, tokenizer: Tokenizer | None) -> Drafts | None:
    """What the options ask for. Raises Phi4Error."""
    prediction: tuple[int, ...] = ()
    if options.prediction:
        if tokenizer is None:
            raise Phi4Error("a prediction needs a tokenizer")
        prediction = encoded(options.prediction, tokenizer)
    model = options.speculation.row(row) if isinstance(options.speculation, DraftModel) else None
    lookup = options.speculation == "lookup"
    return Speculation(row.ids, lookup, prediction, model) if lookup or prediction or model else None


def encoded(prediction: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a prediction, kept for whoever asks next: a server's thread before the one that computes."""
    with _lock:
        kept = _encoded.setdefault(tokenizer, OrderedDict())
        if prediction in kept:
            return kept[prediction]
    ids = tuple(tokenizer.encode_plain(prediction))
    with _lock:
        kept[prediction] = ids
        if len(kept) > KEPT_PREDICTIONS:
            kept.popitem(last=False)
    return ids
