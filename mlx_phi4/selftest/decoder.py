"""Stages of the decoder: fixed ids under each adapter in each RoPE regime, and an answer that changes its regime."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..decoder.kv_cache import KVCache
from ..decoder.state import RowState, Run
from ..device import exclusive
from ..generation.batch import Batch
from ..generation.options import GenerationOptions
from ..generation.sequence import Sequence
from ..inputs.processor import Row
from ..model import Phi4
from . import samples
from .bench import DTYPES, Bench
from .checks import Check, holds
from .encoders import LAYER

KEPT_POSITIONS = (0, 1, samples.DECODER_IDS // 2, samples.DECODER_IDS - 1)  # positions whose logits were kept
LIKELIEST = 5  # tokens whose log-probabilities are compared
CACHED_PIECES = (20, 1, 27)  # tokens: the same ids through a cache


def logits_of(model: Phi4, row: Row, state: RowState, pieces=None) -> mx.array:
    """Logits (L, V) of a row, at once without a cache or in pieces of so many tokens with one."""
    with exclusive():
        found, start = [], 0
        for count in pieces or (len(row.ids),):
            h = model.embed(row, start, start + count)
            found.append(model.forward(h, [Run(state, count, count)])[0])
            mx.eval(found[-1], state.arrays() if state.caches else [])
            start += count
        return mx.concatenate(found)


def decoder(bench: Bench) -> Iterator[Check]:
    """Logits of the base and of both adapters, at early and late positions of the short table and of the long one."""
    config = bench.model()[0].config.decoder
    depth, length = LAYER * config.num_hidden_layers, config.intermediate_size
    row = Row(tuple(samples.ordinary_ids(samples.DECODER_IDS, 1)))
    for adapter in (None, "vision", "speech"):
        for regime, (first, long) in samples.REGIMES.items():
            name = f"{adapter or 'base'}, {regime}"
            expected = samples.golden()[f"decoder/{adapter or 'base'}/{regime}"]

            def compute(dtype, adapter=adapter, first=first, long=long):
                state = RowState(adapter, long, offset=first)
                return logits_of(bench.model(dtype)[0], row, state)[mx.array(KEPT_POSITIONS)]

            yield from bench.both(name, compute, expected, depth, length)
        for dtype in DTYPES:
            model = bench.model(dtype)[0]
            whole = np.array(logits_of(model, row, RowState(adapter)).astype(mx.float32))
            state = RowState(adapter, caches=[KVCache() for _ in model.model.layers])
            cached = logits_of(model, row, state, CACHED_PIECES)
            yield bench.error(f"{adapter or 'base'}, by a cache, {dtype}", cached, whole, dtype, 2 * depth, length)

    again = logits_of(bench.model()[0], row, RowState())[mx.array(KEPT_POSITIONS)]
    expected = samples.golden()["decoder/base/short"]
    yield bench.error("base, after its adapters", again, expected, "float32", depth, length)


def crossing(bench: Bench) -> Iterator[Check]:
    """A greedy answer that passes the original context, made short for this: its tokens, and the change of tables."""
    golden = samples.golden()
    model = bench.model()[0]
    logits = golden["crossing/logits"]
    depth, length = LAYER * model.config.decoder.num_hidden_layers, model.config.decoder.intermediate_size
    rope = model.config.decoder.rope
    context = rope.original_max_position_embeddings
    tables = [model.new_state(Row((0,) * count)).long for count in (context, context + 1)]
    yield holds("tables", tables == [False, True], f"long is {tables} for {context} and {context + 1} tokens")
    ids, expected = samples.ordinary_ids(samples.CROSSING, 2), golden["crossing/tokens"].tolist()
    with _context(model, samples.CONTEXT):
        got, found = greedy(model, Row(tuple(ids)), len(expected))
        yield holds("tokens", got == expected, f"{got}, expected {expected}")
        likely = [[row[id] for id, _ in top] for row, top in zip(log_softmax(logits), found, strict=True)]
        shown = [[value for _, value in top] for top in found]
        yield bench.error("log-probabilities through the change", shown, likely, "float32", 2 * depth, length)
        whole = [*ids, *expected]
        rows = []
        for count in range(samples.CROSSING, len(whole)):
            row = Row(tuple(whole[:count]))
            rows.append(logits_of(model, row, model.new_state(row))[-1:])
    yield bench.error("logits", mx.concatenate(rows), logits, "float32", depth, length)


def greedy(model: Phi4, row: Row, count: int) -> tuple[list[int], list[tuple]]:
    """So many tokens of a row's answer, whatever they are, and for each the likeliest with their log-probabilities."""
    sequence, batch = Sequence(row, GenerationOptions(max_tokens=count, logprobs=LIKELIEST)), Batch(model)
    batch.admit(sequence)
    found = []
    while batch.active:
        found += [token.top_logprobs for token in batch.step() if token.token is not None]
    return sequence.tokens, found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of the last axis, float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@contextmanager
def _context(model: Phi4, tokens: int) -> Iterator[None]:
    """Have the long table begin after so many tokens."""
    before = model.config
    rope = replace(before.decoder.rope, original_max_position_embeddings=tokens)
    model.config = replace(before, decoder=replace(before.decoder, rope=rope))
    try:
        yield
    finally:
        model.config = before
