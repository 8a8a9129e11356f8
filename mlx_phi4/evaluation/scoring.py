"""How likely the model finds given texts: log-probabilities of continuations, in batches.

A continuation's number is that of one forward pass over its whole context and itself. Continuations of the same
context (the choices of a question) share the computation of that context.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..decoder.adapters import Mode
from ..decoder.state import DecodeState
from ..errors import Phi4Error

if TYPE_CHECKING:
    from ..model import Phi4

POSITIONS = 256  # whose logits are held at once: 200 MB in float32 with 200,064 tokens
COLUMNS = 2048  # computed at once


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
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """Score token ids that follow token ids, as text: without any adapter.

    Args:
        pairs: (context, continuation); each context holds at least one token.
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
        scored = _score(model, groups, [list(pairs[row][1]) for row in rows])
        results.update(zip(rows, scored, strict=True))
        mx.clear_cache()  # the next batch has another shape; its buffers would come on top
        if progress is not None:
            progress(len(rows))
    return [results[row] for row in range(len(pairs))]


def _groups(model: "Phi4", pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Group]:
    """Pairs by context and RoPE table, the longest first, so that rows of a batch are alike."""
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


def _score(model: "Phi4", groups: list[_Group], continuations: list[list[int]]) -> list[Likelihood]:
    """Contexts padded on the left, then each one's continuations padded on the right, where no token looks."""
    from mlx_lm.models.cache import KVCache

    width = max(len(group.context) for group in groups)
    padding = tuple(width - len(group.context) for group in groups)
    table = np.array([(0,) * pad + group.context for pad, group in zip(padding, groups, strict=True)], np.int32)
    caches = [KVCache() for _ in model.model.layers]
    state = DecodeState((Mode.TEXT,) * len(groups), padding, tuple(group.long for group in groups), caches)
    for start in range(0, width, COLUMNS):
        h = model.model(model.model.embed_tokens(mx.array(table[:, start : start + COLUMNS])), state, last_only=True)
        mx.eval(h, [cache.keys_and_values() for cache in state.cache])
    of_group = [index for index, group in enumerate(groups) for _ in group.rows]
    state.keep(of_group)  # a context's row once for each of its continuations
    totals = _Totals(model, continuations)
    totals.add(h[mx.array(of_group)], 0)
    longest = max(map(len, continuations))
    table = np.array([row[:-1] + [0] * (longest - max(len(row), 1)) for row in continuations], np.int32)
    for start in range(0, longest - 1, COLUMNS):
        columns = mx.array(table[:, start : start + COLUMNS])
        h = model.model(model.model.embed_tokens(columns), state)
        mx.eval(h, [cache.keys_and_values() for cache in state.cache])
        totals.add(h, start + 1)
    return totals.results()


class _Totals:
    """Adds up the log-probabilities of the tokens of several continuations, a stretch of columns at a time."""

    def __init__(self, model: "Phi4", continuations: list[list[int]]):
        self._model, self._continuations = model, continuations
        self._logprobs = np.zeros(len(continuations))  # float64: sums over whole documents
        self._greedy = np.ones(len(continuations), bool)

    def add(self, h: mx.array, first: int) -> None:
        """Hidden states (R, L, D) that predict tokens ``first`` to ``first + L`` of each continuation."""
        places = [
            (row, column, target)
            for row, tokens in enumerate(self._continuations)
            for column, target in enumerate(tokens[first : first + h.shape[1]])
        ]
        for start in range(0, len(places), POSITIONS):
            rows, columns, targets = np.array(places[start : start + POSITIONS]).T
            logits = self._model.logits(h[mx.array(rows), mx.array(columns)][None])[0].astype(mx.float32)
            wanted = mx.array(targets)
            logprobs = mx.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
            best = mx.argmax(logits, axis=-1) == wanted
            mx.eval(logprobs, best)
            np.add.at(self._logprobs, rows, np.array(logprobs, np.float64))
            np.logical_and.at(self._greedy, rows, np.array(best))

    def results(self) -> list[Likelihood]:
        if not np.isfinite(self._logprobs).all():
            raise Phi4Error("the model gives NaN or infinite numbers: its weights are damaged")
        return [Likelihood(float(a), bool(b)) for a, b in zip(self._logprobs, self._greedy, strict=True)]
