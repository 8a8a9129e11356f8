"""How tokens are chosen and where answers stop."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from samples import MODES, tokens_of

import mlx_phi4
from mlx_phi4 import Phi4Error, batch_generate, generate
from mlx_phi4.generation.sampling import Sampling
from mlx_phi4.generation.text import AnswerText


def test_all_bad_values_are_named_at_once(loaded):
    with pytest.raises(Phi4Error) as caught:
        generate(*loaded(), "x", temperature=-1, top_p=0, xtc_threshold=0.9, seed=-3, logprobs="many")
    message = str(caught.value)
    assert all(
        name in message for name in ("temperature is -1", "top_p is 0", "xtc_threshold", "seed is -3", "logprobs")
    )
    with pytest.raises(Phi4Error, match="logit_bias names token 99999"):
        generate(*loaded(), "x", logit_bias={99_999: 1.0})
    with pytest.raises(TypeError, match="unknown option 'colour'"):
        generate(*loaded(), "x", colour=1)


def test_logit_bias_min_tokens_and_end(loaded):
    model, processor = loaded()
    end = processor.tokenizer.special["<|end|>"].id
    forced, last = tokens_of(model, processor, MODES["text"], logit_bias={end: 1e4}, max_tokens=9)
    assert forced == [end] and last.finish_reason == "stop" and last.text == ""
    held, last = tokens_of(model, processor, MODES["text"], logit_bias={end: 1e4}, min_tokens=4, max_tokens=9)
    assert len(held) == 5 and held[-1] == end and end not in held[:-1]


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 1.5},
        {"repetition_penalty": 1.5, "repetition_context_size": 50},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_k": 100_000, "min_p": 0.1, "min_tokens_to_keep": 2},
        {"temperature": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.05},
    ],
)
def test_samplers_work_and_reproduce(loaded, options):
    first, _ = tokens_of(*loaded(), MODES["text"], seed=5, max_tokens=10, **options)
    assert first == tokens_of(*loaded(), MODES["text"], seed=5, max_tokens=10, **options)[0]
    assert first != tokens_of(*loaded(), MODES["text"], max_tokens=10)[0]


def test_logprobs_are_the_models(loaded):
    model, processor = loaded()
    answer = batch_generate(model, processor, [MODES["text"], MODES["speech"]], max_tokens=3, logprobs=2)[0]
    inputs = processor(MODES["text"].prompt)
    ids = mx.concatenate([inputs.input_ids, mx.array([answer.tokens[:-1]], dtype=mx.int32)], axis=1)
    logits = model(mlx_phi4.Inputs(ids, (0,), inputs.modes))[0, -len(answer.tokens) :]
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for i, token in enumerate(answer.tokens):
        assert answer.logprob[i] == pytest.approx(expected[i, token], abs=1e-3)
        assert answer.top_logprobs[i][0] == (token, pytest.approx(answer.logprob[i]))
        assert len(answer.top_logprobs[i]) == 2


def test_sampling_defaults_are_greedy():
    assert Sampling().plain and not Sampling(min_tokens=1).plain


def test_stop_strings_straddle_tokens(loaded):
    _, processor = loaded()
    tokenizer = processor.tokenizer
    for stop, text, kept in (
        ("END", "one END two", "one "),
        (["zz", "e t"], "one two", "on"),
        ("never", "one nev two", "one nev two"),
        ("aab", "aaab", "a"),
    ):
        answer = AnswerText(tokenizer, stop)
        pieces = []
        for token in tokenizer.encode_plain(text):
            pieces.append(answer.add(token))
            if answer.stopped:
                break
        assert "".join(pieces) + answer.finish() == kept
        assert answer.stopped == (kept != text)
    with pytest.raises(Phi4Error, match="stop"):
        AnswerText(tokenizer, [""])


def test_stop_ends_a_row_and_not_its_neighbours(loaded):
    model, processor = loaded()
    whole = generate(model, processor, "Tell me of the sea.", max_tokens=12, temperature=1.5, seed=4)
    stop = whole[3:5]
    text = whole[: whole.index(stop)]
    options = {"temperature": 1.5, "seed": 4, "max_tokens": 12}
    requests = [
        dataclasses.replace(MODES["text"], options={"stop": stop}),
        dataclasses.replace(MODES["text"], options={"max_tokens": 12}),
    ]
    stopped, other = batch_generate(model, processor, requests, **options)
    assert (stopped.text, stopped.finish_reason) == (text, "stop")
    assert (other.text, other.finish_reason) == (whole, "length")
