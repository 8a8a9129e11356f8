"""Rows of a batch: each ends by itself and gets what it gets alone."""

import dataclasses

import mlx.core as mx
from samples import MODES, tokens_of

from mlx_phi4 import batch_generate
from mlx_phi4.decoder.state import CacheOptions
from mlx_phi4.generation.batch import Generation, RowOptions


def test_rows_leave_the_batch_as_they_end(loaded):
    model, processor = loaded()
    inputs = processor.batch(list(MODES.values()) * 2)
    limits = [3, 9, 2, 5, 1, 4, 9, 2]
    generation = Generation(model, inputs, [RowOptions(max_tokens=limit) for limit in limits])
    seen = [[token.row for token in tokens] for tokens in generation.steps()]
    assert [sum(row in step for step in seen) for row in range(8)] == limits
    assert generation.decoder_steps == max(limits) - 1
    assert len(generation.state.padding) == 2 and min(generation.state.padding) == 0


def test_rows_with_their_own_options_get_what_they_get_alone(loaded):
    model, processor = loaded()
    own = [{"temperature": 1.2, "seed": 3}, {"max_tokens": 3}, {"repetition_penalty": 1.4}, {"min_tokens": 2}]
    requests = [dataclasses.replace(r, options=o) for r, o in zip(MODES.values(), own, strict=True)]
    for answer, request in zip(batch_generate(model, processor, requests, max_tokens=7), requests, strict=True):
        options = {"max_tokens": 7} | request.options
        assert answer.tokens == tokens_of(model, processor, request, **options)[0]


def test_states_join_while_others_decode(loaded):
    """What a server needs: a sequence that was prefilled alone goes on in a batch with the others."""
    model, processor = loaded()
    requests = [MODES["text"], MODES["vision"]]
    expected = [tokens_of(model, processor, request, max_tokens=5)[0] for request in requests]
    states, tokens = [], []
    for request, answer in zip(requests, expected, strict=True):
        inputs = processor.batch([request])
        state = model.new_state(inputs, CacheOptions().make(len(model.model.layers)))
        model.model(model.embed(inputs), state)
        states.append(state)
        tokens.append([answer[0]])
    state = states[0]
    state.join(states[1])
    for _ in range(4):
        h = model.model.embed_tokens(mx.array([[row[-1]] for row in tokens]))
        following = model.logits(model.model(h, state))[:, 0].argmax(axis=-1).tolist()
        for row, token in zip(tokens, following, strict=True):
            row.append(token)
    assert [row[: len(e)] for row, e in zip(tokens, expected, strict=True)] == expected
