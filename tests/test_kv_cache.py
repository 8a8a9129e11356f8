"""Keys and values in fewer bytes: quantized and rotating caches, or a refusal with the reason."""

import mlx.core as mx
import pytest
from samples import MODES, decoded, sequence_of, tokens_of
from tolerances import near

from mlx_phi4 import Phi4Error, Request, batch_generate, generate
from mlx_phi4.decoder import decoder
from mlx_phi4.decoder.kv_cache import KVCache, QuantizedKVCache, WindowKVCache


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
    sequence = sequence_of(processor, MODES[mode], text=False, max_kv_size=16, max_tokens=300)
    decoded(model, sequence)
    assert len(sequence.tokens) == 300 and sequence.state.caches[0].parts[0].shape[2] == 16


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


@pytest.mark.parametrize(
    "options",
    [
        {"max_kv_size": 24},
        {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 11},
        {"kv_bits": 4, "kv_group_size": 32},
    ],
)
def test_every_cache_serves_every_row_of_a_batch(loaded, options):
    """Some used to be refused for more than one sequence, as rows reached their borders together."""
    model, processor = loaded()
    options = options | {"max_tokens": 12}
    requests = list(MODES.values())
    for request, answer in zip(requests, batch_generate(model, processor, requests, **options), strict=True):
        assert answer.tokens == tokens_of(model, processor, request, **options)[0]


@pytest.mark.parametrize("step", [1, 5, 23, 200])
def test_a_window_forgets_alike_whatever_the_pieces_are(loaded, step):
    """Taken in token by token, in pieces larger than the window, or at once: the same tokens are seen."""
    model, processor = loaded()
    options = {"max_kv_size": 20, "max_tokens": 8}
    request = Request("Tell me of the sea. " * 8)
    expected, last = tokens_of(model, processor, request, prefill_step_size=1000, **options)
    assert last.prompt_tokens > 60
    assert tokens_of(model, processor, request, prefill_step_size=step, **options)[0] == expected


def test_a_window_equals_attention_with_a_mask():
    """Against the definition: the first four tokens and the last ones, for every query of every piece."""
    size, kept, heads, total = 16, 4, 2, 50
    kv = mx.random.normal((1, 2 * heads, total, 8), key=mx.random.key(1))
    queries = mx.random.normal((1, heads, total, 8), key=mx.random.key(2))
    positions = mx.arange(total)
    seen = (positions <= positions[:, None]) & ((positions < kept) | (positions > positions[:, None] - (size - kept)))
    expected = mx.fast.scaled_dot_product_attention(queries, kv[:, :heads], kv[:, heads:], scale=1.0, mask=seen)
    for pieces in ([50], [1] * 50, [10, 3, 1, 1, 20, 1, 14], [16, 1, 1, 32], [15, 2, 33]):
        cache, start = WindowKVCache(size), 0
        for count in pieces:
            mask = cache.mask(count)
            keys, values = cache.update(kv[:, :, start : start + count])
            some = queries[:, :, start : start + count]
            got = mx.fast.scaled_dot_product_attention(some, keys, values, scale=1.0, mask=mask)
            assert mx.abs(got - expected[:, :, start : start + count]).max().item() < near(1e-5), (pieces, start)
            start += count


def test_a_fork_goes_its_own_way():
    """Two rows that share a prefix must not write into each other's cache."""
    cache = KVCache()
    first, more, other = (mx.full((1, 2, n, 4), value) for n, value in ((3, 1.0), (1, 2.0), (1, 3.0)))
    cache.update(first)
    fork = cache.fork()
    mine, theirs = cache.update(more)[0], fork.update(other)[0]
    assert mine[0, 0, :, 0].tolist() == [1, 1, 1, 2] and theirs[0, 0, :, 0].tolist() == [1, 1, 1, 3]


def test_scores_of_a_quantized_prefill_stay_bounded(monkeypatch):
    """No fused kernel reads packed keys; all scores of a long piece at once took gigabytes."""
    cache = QuantizedKVCache(8, 32)
    kv = mx.random.normal((1, 4, 300, 32), key=mx.random.key(1))
    queries = mx.random.normal((1, 4, 300, 32), key=mx.random.key(2))
    keys, values = cache.update(kv)
    whole = decoder.attend(queries, keys, values, cache, 0.2, "causal")
    calls, attend = [], decoder._attend_packed
    monkeypatch.setattr(decoder, "SCORES", 4 * 300 * 50)
    monkeypatch.setattr(decoder, "_attend_packed", lambda q, *rest: calls.append(q.shape[2]) or attend(q, *rest))
    assert mx.abs(decoder.attend(queries, keys, values, cache, 0.2, "causal") - whole).max().item() < near(1e-5)
    assert calls == [50] * 6
