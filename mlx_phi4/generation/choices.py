"""A step on its way, the tokens that it is to choose, and choosing them on the device."""

import math
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

    def __post_init__(self):
        self.drafted = sum([len(part.draft) for part in self.parts])  # tokens that it verifies

    def choose(self) -> None:
        """Submit the choice of tokens, and have the device begin."""
        self.submitted = True
        choices = self.choices = [choice for choice in self.choices if choice.wanted]
        if any(choice.sequence.constraint for choice in choices):
            mx.async_eval(self.logits)  # the device computes while this thread finds out which tokens may come
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
    masks, errors = _masks(choices, logits.shape[1])
    plain = [index for index, choice in enumerate(choices) if choice.sequence.options.plain and index not in errors]
    groups = [[index for index in plain if index not in masks], [index for index in plain if index in masks]]
    found = [_likeliest(group, choices, logits, masks) for group in groups if group]
    order = [index for group in groups for index in group]
    for index in sorted(set(range(len(choices))) - set(order)):
        order.append(index)
        try:
            if index in errors:
                raise errors[index]
            choice = choices[index]
            allowed = mx.array(masks[index]) if index in masks else None
            found.append(choice.sequence.sampler(logits[choice.logits : choice.logits + 1], choice.number, allowed))
        except Exception as error:  # of a sampler or a constraint: its row's own affair
            errors[index] = error
            found.append(mx.zeros(1, mx.uint32))
    tokens = found[0] if len(found) == 1 else mx.concatenate(found)
    if order != sorted(order):
        tokens = tokens[mx.array(np.argsort(order))]
    sampled = Sampled(choices[0].sequence.model.agreed(tokens.astype(mx.uint32)), errors=errors)
    for index, choice in enumerate(choices):
        asked = choice.sequence.options.logprobs
        if asked is not None:
            found = top_logprobs(logits[choice.logits], tokens[index], asked)
            sampled.logprobs[index] = found[0]
            if found[1] is not None:
                sampled.top[index] = found[1]
    return sampled


def _likeliest(group: list[int], choices: list[Choice], logits: mx.array, masks: dict[int, np.ndarray]) -> mx.array:
    """(R,) tokens of choices of which all have a mask, or none has."""
    rows = [choices[index].logits for index in group]
    if rows != list(range(logits.shape[0])):
        logits = logits[mx.array(rows)]
    if group[0] in masks:
        allowed = mx.array(np.stack([masks[index] for index in group]))
        logits = mx.where(allowed, logits, mx.array(-math.inf, logits.dtype))
    return mx.argmax(logits, axis=-1)


def _masks(choices: list[Choice], vocabulary: int) -> tuple[dict[int, np.ndarray], dict[int, Exception]]:
    """By choice: the tokens that its constraint allows, (V,) booleans, and what is wrong with it."""
    masks, errors = {}, {}
    rows: dict[Sequence, list[int]] = {}
    for index, choice in enumerate(choices):
        if choice.sequence.constraint is not None:
            rows.setdefault(choice.sequence, []).append(index)
    for sequence, indices in rows.items():
        ahead = 0  # drafted tokens that are taken to have come
        try:
            for index in indices:
                allowed = _allowed(choices[index], vocabulary)
                if allowed is not None:
                    masks[index] = allowed
                if choices[index].draft is not None:
                    sequence.constraint.advance(choices[index].draft)
                    ahead += 1
        except Exception as error:  # if that far is read at all
            errors |= dict.fromkeys(indices[ahead:], error)
        if ahead:
            sequence.constraint.rollback(ahead)
    return masks, errors


def _allowed(choice: Choice, vocabulary: int) -> np.ndarray | None:
    sequence = choice.sequence
    allowed = None if sequence.constraint is None else sequence.constraint.allowed()
    if allowed is None:
        return None
    allowed = np.asarray(allowed, bool)
    if allowed.shape != (vocabulary,) or not allowed.any():
        raise Phi4Error(f"a constraint allows {allowed.sum()} tokens, shape {allowed.shape}; one at least is needed")
    return allowed if sequence.options.plain else sequence.sampler.narrowed(allowed, choice.number)


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
