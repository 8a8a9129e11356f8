"""Rows are independent: whatever else is in a batch, a row gets what it gets alone."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from cases import clip, picture
from tolerances import near

import mlx_phi4
from mlx_phi4 import Request

REQUESTS = [
    Request("Count to three."),
    Request("What is this?", images=[picture(300, 200)]),
    Request("Transcribe the audio clip into text.", audios=[(clip(1.0), 16_000)]),
    Request("Answer what is asked.", images=[picture(100, 460)], audios=[(clip(0.7, 1), 16_000)]),
    Request("A longer prompt, so that the paddings differ.", system="Be brief."),
]


def alone(model, processor, request):
    return np.array(model(processor.batch([request]))[0])


def test_mixed_batch_equals_each_row_alone(loaded):
    model, processor = loaded()
    inputs = processor.batch(REQUESTS)
    assert {str(mode) for mode in inputs.modes} == {"text", "vision", "speech", "vision-speech"}
    logits = np.array(model(inputs))
    for row, request in enumerate(REQUESTS):
        expected = alone(model, processor, request)
        assert np.abs(logits[row, inputs.padding[row] :] - expected).max() <= near(1e-4)


def test_batch_of_one_has_no_padding(loaded):
    _, processor = loaded()
    assert all(processor.batch([request]).padding == (0,) for request in REQUESTS)


@pytest.mark.cpu  # of batches of other sizes
def test_text_rows_are_bit_equal_to_a_model_without_adapters(loaded):
    """Also inside a mixed batch: the same batch of ids through the plain text model."""
    model, processor = loaded()
    plain, plain_processor = loaded("text")
    request = REQUESTS[0]
    assert np.array_equal(alone(model, processor, request), alone(plain, plain_processor, request))
    mixed = processor.batch(REQUESTS)
    text_rows = [row for row, mode in enumerate(mixed.modes) if mode == "text"]
    only_text = mlx_phi4.Inputs(mixed.input_ids, mixed.padding, (mlx_phi4.Mode.TEXT,) * len(REQUESTS))
    expected, got = np.array(plain(only_text)), np.array(model(mixed))
    for row in text_rows:
        start = mixed.padding[row]
        assert np.array_equal(got[row, start:], expected[row, start:])


def test_no_request_changes_the_next(loaded):
    model, processor = loaded()
    before = alone(model, processor, REQUESTS[0])
    for request in REQUESTS[1:]:
        mlx_phi4.generate(model, processor, request.prompt, request.images, request.audios, max_tokens=3)
    assert np.array_equal(before, alone(model, processor, REQUESTS[0]))


def test_every_mode_takes_its_own_route(loaded):
    """Each adapter moves the logits of its mode: a route that did nothing would pass the other tests."""
    model, processor = loaded()
    for request in REQUESTS[1:4]:
        routed, base = (model(processor.batch([dataclasses.replace(request, adapter=a)])) for a in (None, "base"))
        assert mx.abs(routed - base).max().item() > 0.1


@pytest.mark.cpu  # tokens of batches of other sizes
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}, {"repetition_penalty": 1.3}])
def test_batch_generate_equals_generate(loaded, options):
    model, processor = loaded()
    answers = mlx_phi4.batch_generate(model, processor, REQUESTS, max_tokens=12, **options)
    for request, answer in zip(REQUESTS, answers, strict=True):
        responses = list(
            mlx_phi4.stream_generate(
                model,
                processor,
                request.prompt,
                request.images,
                request.audios,
                system=request.system,
                max_tokens=12,
                **options,
            )
        )
        assert answer.tokens == [response.token for response in responses]
        assert answer.text == "".join(response.text for response in responses)
        assert answer.mode == responses[-1].mode
        assert answer.finish_reason == responses[-1].finish_reason
        assert answer.generation_tokens == len(responses)
