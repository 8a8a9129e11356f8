"""A step on its way, the tokens that it is to choose, and choosing them on the device."""

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ..errors import Phi4Error
from .sampling import Sampled, top_logprobs
from .scheduler import Part
from .sequence import Sequence


@dataclass
class Choice:
    """One token to choose: for which row, from which row of the logits, and the draft that it verifies, if any."""

    sequence: Sequence
    logits: int
    number: int  # of the token in its answer
    draft: int | None = None

    def __post_init__(self):
        self._state = self.sequence.state

    @property
    def wanted(self) -> bool:
        """Whether the row still waits for this token: it has not ended, and was not taken out meanwhile."""
        return self.sequence.finish_reason is None and self.sequence.state is self._state


@dataclass
class Flight:
    """A step that was submitted: its parts, its logits (A, V), what was chosen from them, and what is not a token."""

    parts: list[Part]
    logits: mx.array | None
    choices: list[Choice]
    submitted: bool = False
    sampled: Sampled | None = None
    finite: dict[int, mx.array] = field(default_factory=dict)  # by choice, of rows whose prompt ends here

    def choose(self) -> None:
        """Submit the choice of tokens, and have the device begin."""
        self.submitted = True
        choices = self.choices = [choice for choice in self.choices if choice.wanted]
        if choices:
            self.sampled = _chosen(choices, self.logits)
            for index, choice in enumerate(choices):
                choice.sequence.pending = self.sampled.tokens, index
                if choice.number == 0:
                    self.finite[index] = mx.isfinite(self.logits[choice.logits]).all()
        prompts = [part.sequence.state.arrays() for part in self.parts if part.prompt and part.sequence.state]
        chosen = self.sampled.arrays() if self.sampled else []
        mx.async_eval(chosen, list(self.finite.values()), prompts)


def _chosen(choices: list[Choice], logits: mx.array) -> Sampled:
    """Choose from logits (A, V), a row's own way; rows that take the likeliest token choose together."""
    errors: dict[int, Exception] = {}
    if all(choice.sequence.options.plain and choice.sequence.constraint is None for choice in choices):
        rows = [choice.logits for choice in choices]
        whole = rows == list(range(logits.shape[0]))
        tokens = mx.argmax(logits if whole else logits[mx.array(rows)], axis=-1)
    else:
        chosen = []
        for index, choice in enumerate(choices):
            try:
                chosen.append(_token(choice, logits[choice.logits : choice.logits + 1]))
            except Exception as error:  # of a sampler or a constraint: its row's own affair
                errors[index] = error
                chosen.append(mx.zeros(1, mx.uint32))
        tokens = mx.concatenate(chosen)
    tokens = choices[0].sequence.model.agreed(tokens.astype(mx.uint32))
    sampled = Sampled(tokens, errors=errors)
    for index, choice in enumerate(choices):
        asked = choice.sequence.options.logprobs
        if asked is not None:
            found = top_logprobs(logits[choice.logits], tokens[index], asked)
            sampled.logprobs[index] = found[0]
            if found[1] is not None:
                sampled.top[index] = found[1]
    return sampled


def _token(choice: Choice, logits: mx.array) -> mx.array:
    constraint = choice.sequence.constraint
    allowed = None if constraint is None else constraint.allowed()
    if allowed is not None:
        allowed = np.asarray(allowed, bool)
        if allowed.shape != logits.shape[1:] or not allowed.any():
            raise Phi4Error(
                f"a constraint allows {allowed.sum()} tokens, shape {allowed.shape}; one at least is needed"
            )
        allowed = mx.array(allowed)
    return choice.sequence.sampler(logits, choice.number, allowed)


def last_tokens(parts: list[Part]) -> mx.array:
    """The tokens (T,) that decoding rows go on from, with their drafts."""
    if not any(part.draft for part in parts):
        arrays = {id(part.sequence.pending[0]) for part in parts}
        if len(arrays) == 1:
            tokens, indices = parts[0].sequence.pending[0], [part.sequence.pending[1] for part in parts]
            return tokens if indices == list(range(tokens.size)) else tokens[mx.array(indices)]
    found = []
    for part in parts:
        tokens, index = part.sequence.pending
        found.append(tokens[index : index + 1])
        if part.draft:
            found.append(mx.array(part.draft, dtype=mx.uint32))
    return mx.concatenate(found)
