"""Which rows take part in the next step, and with which tokens."""

from collections import deque
from dataclasses import dataclass, field

from ..decoder.state import Run
from ..model import Phi4
from .drafting import drafts
from .sequence import Sequence
from .step_costs import StepCosts


@dataclass
class Part:
    """One row's part of a step: tokens of its prompt, its last token, or that and a draft to verify."""

    sequence: Sequence
    run: Run
    prompt: bool = False
    draft: list[int] = field(default_factory=list)
    done: int = 0  # prompt tokens in the caches after this piece
    error: Exception | None = None  # what the row's own draft raised


class Scheduler:
    """Rows that wait for their prompt, and rows that decode.

    Every decoding row takes part in every step. What is left of ``token_budget`` goes to pieces of prompts, one piece
    a prompt, in turns: a short prompt behind a long one waits for one piece of it, not for all. A row's pieces are cut
    by its own prompt alone, so that its numbers do not depend on who else is there.
    """

    def __init__(self, token_budget: int):
        self.token_budget = token_budget
        self.waiting: deque[Sequence] = deque()
        self.decoding: list[Sequence] = []

    @property
    def sequences(self) -> list[Sequence]:
        """All rows, those that wait for a sibling's prefill included."""
        return [*self.decoding, *self.waiting, *(each for sequence in self.waiting for each in sequence.siblings)]

    def drop(self, sequence: Sequence) -> None:
        """Forget a row. Its place at the front of its siblings goes to the next of them."""
        if sequence in self.decoding:
            self.decoding.remove(sequence)
        for other in self.waiting:
            if sequence in other.siblings:
                other.siblings.remove(sequence)
        if sequence in self.waiting:
            place = self.waiting.index(sequence)
            self.waiting.remove(sequence)
            if sequence.siblings:
                heir, *rest = sequence.siblings
                sequence.fork_into(heir)
                heir.siblings = rest
                self.waiting.insert(place, heir)

    def plan(self, model: Phi4) -> list[Part]:
        """The parts of the next step, rows of one adapter adjacent."""
        drafted = drafts(self.decoding, StepCosts.of(model), model.config.decoder.vocab_size)
        parts = [
            part
            for sequence in list(self.decoding)
            if (part := self._decoding_part(sequence, model, drafted.get(sequence, [])))
        ]
        parts += self._pieces()
        return sorted(parts, key=lambda part: part.sequence.row.adapter or "")

    def _decoding_part(self, sequence: Sequence, model: Phi4, draft: list[int] | Exception) -> Part | None:
        if sequence.full:
            return None
        if sequence.crosses:
            if not sequence.unread:  # else in the next step: the tokens to prefill are not all known yet
                self.decoding.remove(sequence)
                sequence.change_regime(model)
                self.waiting.append(sequence)
            return None
        if isinstance(draft, Exception):
            return Part(sequence, Run(sequence.state, 1, 1), error=draft)
        count = 1 + len(draft)
        return Part(sequence, Run(sequence.state, count, count), draft=draft)

    def _pieces(self) -> list[Part]:
        parts, left = [], self.token_budget
        for _ in range(len(self.waiting)):
            sequence = self.waiting[0]
            if sequence.unencoded is not None:
                self.waiting.rotate(-1)
                continue
            run = sequence.piece()
            if run.count > left and parts:
                break
            left -= run.count
            parts.append(Part(sequence, run, prompt=True, done=run.state.offset + run.count))
            self.waiting.rotate(-1)
            if left <= 0:
                break
        return parts
