"""Keys and values in fewer bytes: quantized and rotating caches, or a refusal with the reason."""

import pytest
from samples import MODES, tokens_of

from mlx_phi4 import Phi4Error, PromptCache, batch_generate, generate
from mlx_phi4.decoder.state import CacheOptions
from mlx_phi4.generation.batch import EngineOptions, Generation, RowOptions


@pytest.mark.parametrize("mode", MODES)
def test_quantized_keys_stay_close(loaded, mode):
    """8 bits move the first token's log-probability little, and nothing depends on the prefill's pieces."""
    model, processor = loaded()
    options = {"kv_bits": 8, "kv_group_size": 32, "max_tokens": 4, "logprobs": 0}
    (exact,) = batch_generate(model, processor, [MODES[mode]], max_tokens=4, logprobs=0)
    (close,) = batch_generate(model, processor, [MODES[mode]], **options)
    assert close.logprob[0] == pytest.approx(exact.logprob[0], abs=0.3)
    pieces = batch_generate(model, processor, [MODES[mode]], prefill_step_size=7, **options)[0]
    assert pieces.tokens == close.tokens
    late = batch_generate(model, processor, [MODES[mode]], quantized_kv_start=10_000, **options)[0]
    assert late.tokens == exact.tokens
    soon = {"quantized_kv_start": 11} | options
    first = batch_generate(model, processor, [MODES[mode]], **soon)[0]
    assert first.tokens == batch_generate(model, processor, [MODES[mode]], prefill_step_size=4, **soon)[0].tokens


def test_quantized_keys_in_a_batch(loaded):
    model, processor = loaded()
    options = {"kv_bits": 4, "kv_group_size": 32, "max_tokens": 6}
    requests = list(MODES.values())
    for request, answer in zip(requests, batch_generate(model, processor, requests, **options), strict=True):
        assert answer.tokens == tokens_of(model, processor, request, **options)[0]


@pytest.mark.parametrize("mode", MODES)
def test_rotating_cache(loaded, mode):
    """Large enough it changes nothing; small it goes on and on within its size."""
    model, processor = loaded()
    exact, _ = tokens_of(model, processor, MODES[mode], max_tokens=6)
    assert tokens_of(model, processor, MODES[mode], max_tokens=6, max_kv_size=5000)[0] == exact
    inputs = processor.batch([MODES[mode]])
    options = EngineOptions(kv=CacheOptions(max_size=16))
    generation = Generation(model, inputs, [RowOptions(max_tokens=40)], options=options)
    assert len(list(generation.steps())) == 40
    assert generation.state.cache[0].keys.shape[2] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_bits": 5}, "kv_bits is 5"),
        ({"kv_bits": 8}, "kv_group_size is 64"),  # heads of 32
        ({"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": -1}, "quantized_kv_start"),
        ({"max_kv_size": 2}, "max_kv_size is 2"),
        ({"max_kv_size": 64, "kv_bits": 8, "kv_group_size": 32}, "cannot be combined"),
        ({"prefill_step_size": 0}, "prefill_step_size"),
        ({"rope": "short"}, "rope"),
    ],
)
def test_bad_engine_options(loaded, options, message):
    with pytest.raises(Phi4Error, match=message):
        generate(*loaded(), "x", **options)


def test_what_serves_one_sequence_is_refused_for_more(loaded):
    model, processor = loaded()
    for options in (
        {"max_kv_size": 64},
        {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 5},
        {"prompt_cache": PromptCache()},
    ):
        with pytest.raises(Phi4Error, match="one sequence"):
            batch_generate(model, processor, [MODES["text"]] * 2, **options)
