"""How likely the model finds given texts: log-probabilities of continuations, in batches.

A continuation's number is that of one forward pass over its whole context and itself. Continuations of the same
context (the choices of a question) share the computation of that context.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..decoder.kv_cache import CacheOptions
from ..decoder.state import RowState, Run
from ..device import exclusive
from ..errors import Phi4Error

if TYPE_CHECKING:
    from ..model import Phi4

POSITIONS = 256  # whose logits are held at once: 200 MB in float32 with 200,064 tokens
STEP_TOKENS = 2048  # computed at once


@dataclass(frozen=True)
class Likelihood:
    """Sum of the natural log-probabilities of a continuation's tokens, and whether each was the most likely one."""

    logprob: float
    greedy: bool


@dataclass(frozen=True)
class _Group:
    """Continuations of one context; ``long`` says which RoPE table the whole sequences use."""

    context: tuple[int, ...]
    long: bool
    rows: list[int]


def score_continuations(
    model: "Phi4",
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    adapter: str | None = None,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """Score token ids that follow token ids, as text.

    Args:
        pairs: (context, continuation); each context holds at least one token.
        adapter: that all pass; None is the base alone.
        batch_size: continuations computed together; it changes the speed, not the numbers.
        progress: told how many continuations were just scored.

    Raises:
        Phi4Error: an empty context, more tokens than the context window holds, or a model of damaged weights.
    """
    if batch_size < 1:
        raise Phi4Error(f"batch_size is {batch_size}, expected at least 1")
    results: dict[int, Likelihood] = {}
    for groups in _batches(_groups(model, pairs), batch_size):
        rows = [row for group in groups for row in group.rows]
        with exclusive():
            scored = _score(model, adapter, groups, [list(pairs[row][1]) for row in rows])
        results.update(zip(rows, scored, strict=True))
        mx.clear_cache()  # the next batch has another shape; its buffers would come on top
        if progress is not None:
            progress(len(rows))
    return [results[row] for row in range(len(pairs))]


def _groups(model: "Phi4", pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Group]:
    """Pairs by context and RoPE table, the longest first, so that a batch of the same rows comes out the same."""
    window = model.config.decoder.max_position_embeddings
    original = model.config.decoder.rope.original_max_position_embeddings
    groups: dict[tuple, _Group] = {}
    for row, (context, continuation) in enumerate(pairs):
        length = len(context) + max(len(continuation) - 1, 0)  # the last token is predicted, never read
        if not context:
            raise Phi4Error("a continuation without a context: give it at least one token")
        if length > window:
            raise Phi4Error(f"{length} tokens to score; the context holds {window}")
        key = (tuple(context), length > original)
        groups.setdefault(key, _Group(*key, [])).rows.append(row)
    longest = {key: len(group.context) + max(len(pairs[row][1]) for row in group.rows) for key, group in groups.items()}
    return [groups[key] for key in sorted(groups, key=longest.__getitem__, reverse=True)]


def _batches(groups: list[_Group], size: int) -> Iterator[list[_Group]]:
    """Groups with at most ``size`` rows in all; a larger group is shared out."""
    batch: list[_Group] = []
    count = 0
    for group in groups:
        for first in range(0, len(group.rows), size):
            part = _Group(group.context, group.long, group.rows[first : first + size])
            if count + len(part.rows) > size:
                yield batch
                batch, count = [], 0
            batch.append(part)
            count += len(part.rows)
    if batch:
        yield batch


def _score(
    model: "Phi4", adapter: str | None, groups: list[_Group], continuations: list[list[int]]
) -> list[Likelihood]:
    """Each context once, then each of its continuations on a copy of its state."""
    layers = len(model.model.layers)
    states = [RowState(adapter, group.long, CacheOptions().make(layers)) for group in groups]
    totals = _Totals(model, continuations)
    numbers = iter(range(len(continuations)))
    of_group = [[next(numbers) for _ in group.rows] for group in groups]
    for h, places in _hidden(model, [(s, list(g.context)) for s, g in zip(states, groups, strict=True)], every=False):
        pairs = [(row, index) for index, (group, _) in enumerate(places) for row in of_group[group]]
        totals.add(h[mx.array([index for _, index in pairs])], [(row, 0) for row, _ in pairs])
    rows = [(states[group].fork(), row) for group, members in enumerate(of_group) for row in members]
    fed = [(state, continuations[row][:-1]) for state, row in rows]  # the last token is predicted, never read
    for h, places in _hidden(model, fed, every=True):
        totals.add(h, [(rows[index][1], position + 1) for index, position in places])
    return totals.results()


def _hidden(
    model: "Phi4", rows: list[tuple[RowState, list[int]]], every: bool
) -> Iterator[tuple[mx.array, list[tuple[int, int]]]]:
    """Hidden states (A, D) of rows' tokens, or of their last ones, and pairs (row, position) that say whose they are.

    Rows lie end to end, ``STEP_TOKENS`` of all of them at once.
    """
    pieces = [
        (index, start, tokens[start : start + STEP_TOKENS])
        for index, (_, tokens) in enumerate(rows)
        for start in range(0, len(tokens), STEP_TOKENS)
    ]
    while pieces:
        taken, count = [], 0
        # a row takes part in a step once, as its next piece follows what this one leaves
        while pieces and count + len(pieces[0][2]) <= STEP_TOKENS and pieces[0][0] not in {i for i, _, _ in taken}:
            taken.append(pieces.pop(0))
            count += len(taken[-1][2])
        runs, places = [], []
        for index, start, part in taken:
            ended = start + len(part) == len(rows[index][1])
            asked = len(part) if every else int(ended)
            runs.append(Run(rows[index][0], len(part), asked))
            places += [(index, start + len(part) - asked + i) for i in range(asked)]
        ids = mx.array(np.concatenate([part for _, _, part in taken]).astype(np.int32))
        model.read({None})
        h = model.hidden(model.model.embed_tokens(ids)[None], runs)
        mx.eval([] if h is None else h, [run.state.arrays() for run in runs])
        if h is not None:
            yield h[0], places


class _Totals:
    """Adds up the log-probabilities of the tokens of several continuations, some positions at a time."""

    def __init__(self, model: "Phi4", continuations: list[list[int]]):
        self._model, self._continuations = model, continuations
        self._logprobs = np.zeros(len(continuations))  # float64: sums over whole documents
        self._greedy = np.ones(len(continuations), bool)

    def add(self, h: mx.array, places: list[tuple[int, int]]) -> None:
        """Hidden states (A, D), and which token each predicts: pairs (continuation, token)."""
        wanted = [
            (index, row, self._continuations[row][token])
            for index, (row, token) in enumerate(places)
            if token < len(self._continuations[row])
        ]
        for start in range(0, len(wanted), POSITIONS):
            indices, rows, targets = np.array(wanted[start : start + POSITIONS]).T
            logits = self._model.logits(h[mx.array(indices)][None])[0].astype(mx.float32)
            targets = mx.array(targets)
            logprobs = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
            best = mx.argmax(logits, axis=-1) == targets
            mx.eval(logprobs, best)
            np.add.at(self._logprobs, rows, np.array(logprobs, np.float64))
            np.logical_and.at(self._greedy, rows, np.array(best))

    def results(self) -> list[Likelihood]:
        if not np.isfinite(self._logprobs).all():
            raise Phi4Error("the model gives NaN or infinite numbers: its weights are damaged")
        return [Likelihood(float(a), bool(b)) for a, b in zip(self._logprobs, self._greedy, strict=True)]
