"""The engine's own promises: sampling, stops, rows that end, kept keys, and what is never reused."""

import dataclasses
import json

import mlx.core as mx
import numpy as np
import pytest
from cases import clip, picture

import mlx_phi4
from mlx_phi4 import (
    MediaCache,
    Phi4Error,
    PromptCache,
    Request,
    batch_generate,
    cache_prompt,
    generate,
    stream_generate,
)
from mlx_phi4.engine import EngineOptions, Generation, RowOptions
from mlx_phi4.sampling import Sampling
from mlx_phi4.state import CacheOptions
from mlx_phi4.stops import AnswerText

PICTURE, OTHER = picture(90, 90), picture(90, 90, seed=3)
SOUND = (clip(0.6), 16_000)
MODES = {
    "text": Request("Tell me of the sea."),
    "vision": Request("What?", images=[PICTURE]),
    "speech": Request("Transcribe.", audios=[SOUND]),
    "vision-speech": Request("Answer.", images=[PICTURE], audios=[SOUND]),
}
PLAIN = {"raw": True, "max_tokens": 6}


def tokens_of(model, processor, request, **options):
    named = dataclasses.asdict(request)
    named.pop("options")
    responses = list(stream_generate(model, processor, **named, **options))
    return [response.token for response in responses], responses[-1]


# sampling


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


# stop strings


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


# rows


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


# prompt and media caches


@pytest.fixture
def spy(loaded, monkeypatch):
    """How many pictures and clips were encoded."""
    model, _ = loaded()
    counts = []
    encode = type(model)._encode
    monkeypatch.setattr(type(model), "_encode", lambda self, item, key: counts.append(key) or encode(self, item, key))
    return counts


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def asked(question, *media):
    return [{"type": kind, kind: source} for kind, source in media] + [{"type": "text", "text": question}]


def check_turns(loaded, turns):
    """Answer message lists one after another with one cache and without any; the answers must not differ."""
    model, processor = loaded()
    cache, reused = PromptCache(), []
    for messages in turns:
        expected = [r.token for r in stream_generate(model, processor, messages, max_tokens=5)]
        responses = list(stream_generate(model, processor, messages, max_tokens=5, prompt_cache=cache))
        assert [r.token for r in responses] == expected
        reused.append(responses[-1].reused_tokens)
    return reused


def test_a_conversation_reuses_its_prefix(loaded):
    first = chat(("user", "Tell me of the sea."))
    second = [*first, *chat(("assistant", "It is wide."), ("user", "And deep?"))]
    changed = chat(("user", "Tell me of the moon."))
    reused = check_turns(loaded, [first, second, first, changed])
    prompt = loaded()[1]("Tell me of the sea.").lengths[0]
    assert reused[0] == 0 and reused[1] >= prompt - 1 and reused[2] == prompt - 1 and 0 < reused[3] < prompt


def test_a_second_question_about_a_picture_encodes_nothing(loaded, spy):
    model, processor = loaded()
    cache = PromptCache()
    for question in ("What is this?", "Which colour?"):
        list(stream_generate(model, processor, question, images=[PICTURE], max_tokens=2, prompt_cache=cache))
    assert spy == ["picture"]


def test_nothing_is_reused_across_another_picture(loaded):
    turns = [chat(("user", asked("What is this?", ("image", image)))) for image in (PICTURE, OTHER, PICTURE)]
    reused = check_turns(loaded, turns)
    assert reused == [0, 1, 1]  # only the <|user|> token stands before the picture


def test_media_that_join_a_conversation(loaded, spy):
    """Sound keeps the vision adapter and its cache; a picture changes the adapter, and the sound's projector."""
    picture_first = chat(("user", asked("See?", ("image", PICTURE))))
    then_sound = [*picture_first, *chat(("assistant", "Yes."), ("user", asked("Hear?", ("audio", SOUND))))]
    reused = check_turns(loaded, [picture_first, then_sound])
    assert reused[1] > 200
    sound_first = chat(("user", asked("Hear?", ("audio", SOUND))))
    then_picture = [*sound_first, *chat(("assistant", "Yes."), ("user", asked("See?", ("image", PICTURE))))]
    text = chat(("user", "Hi"))
    assert check_turns(loaded, [sound_first, then_picture, text]) == [0, 0, 0]
    assert "speech" in spy and "vision" in spy


def test_reuse_across_the_original_context(checkpoint, tmp_path):
    """A sequence in one RoPE regime is of no use in the other; in the long one it is reused again."""
    import shutil

    folder = shutil.copytree(checkpoint(), tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"original_max_position_embeddings": 40}))
    short = chat(("user", "Tell me of the sea."))
    long = [*short, *chat(("assistant", "Wide."), ("user", "And how deep is it, would you say?"))]
    longer = [*long, *chat(("assistant", "Very."), ("user", "Why?"))]
    pair = mlx_phi4.load(folder)
    reused = check_turns(lambda: pair, [short, long, longer])
    assert reused[:2] == [0, 0] and reused[2] > 40
    crossing, _ = tokens_of(*pair, Request(short), max_tokens=30)
    cache = PromptCache()
    assert [r.token for r in stream_generate(*pair, short, max_tokens=30, prompt_cache=cache)] == crossing
    assert cache.state.long == (True,)
    always, _ = tokens_of(*pair, Request(short), max_tokens=3, rope="long")
    inputs = pair[1](short)
    state = pair[0].new_state(inputs, long=True)
    assert always[0] == pair[0].logits(pair[0].model(pair[0].embed(inputs), state))[0, -1].argmax().item()


def test_interrupted_generation_leaves_a_usable_cache(loaded):
    model, processor = loaded()
    cache = PromptCache()
    responses = stream_generate(model, processor, "Tell me of the sea.", max_tokens=9, prompt_cache=cache)
    first = [next(responses).token for _ in range(3)]
    responses.close()
    assert cache.state is not None and cache.tokens[-len(first) :][0] in first
    again = [
        r.token for r in stream_generate(model, processor, "Tell me of the sea.", max_tokens=9, prompt_cache=cache)
    ]
    assert again[:3] == first


@pytest.mark.parametrize("mode", MODES)
def test_cache_files(loaded, tmp_path, mode, spy):
    model, processor = loaded()
    request = MODES[mode]
    path = tmp_path / "prompt.safetensors"
    cache_prompt(model, processor, request.prompt, request.images, request.audios).save(path, model)
    expected, _ = tokens_of(model, processor, request, max_tokens=5)
    spy.clear()
    read = PromptCache.load(path, model)
    got, last = tokens_of(model, processor, request, max_tokens=5, prompt_cache=read)
    assert got == expected and last.reused_tokens == processor.batch([request]).lengths[0] - 1
    assert spy == []  # what the file covers is not encoded again
    assert not list(tmp_path.glob("*partial*"))


def test_cache_files_of_others_are_refused(loaded, tmp_path, monkeypatch):
    model, processor = loaded()
    path = tmp_path / "prompt.safetensors"
    cache_prompt(model, processor, "Hi", images=[PICTURE]).save(path, model)
    with pytest.raises(Phi4Error, match="vision mode"):
        generate(model, processor, "Hi", prompt_cache=PromptCache.load(path, model))
    with pytest.raises(Phi4Error, match="--kv options"):
        generate(
            model, processor, "Hi", [PICTURE], prompt_cache=PromptCache.load(path, model), kv_bits=8, kv_group_size=32
        )
    with pytest.raises(Phi4Error, match="another model"):
        PromptCache.load(path, loaded("microsoft", "wide")[0])
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"a": mx.zeros(1)})
    with pytest.raises(Phi4Error, match="not a prompt-cache file"):
        PromptCache.load(tmp_path / "x.safetensors", model)
    with monkeypatch.context() as patch:
        patch.setattr("mlx_phi4.prompt_cache.FORMAT", "of another time")
        with pytest.raises(Phi4Error, match="this version"):
            PromptCache.load(path, model)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(Phi4Error, match="not a prompt-cache file"):
        PromptCache.load(tmp_path / "junk.safetensors", model)
    with pytest.raises(Phi4Error, match="no such"):
        PromptCache.load(tmp_path / "none.safetensors", model)
    with pytest.raises(Phi4Error, match="cannot be written"):
        cache_prompt(model, processor, "Hi").save(tmp_path / "no" / "folder.safetensors", model)
    with pytest.raises(Phi4Error, match="must end in"):
        PromptCache.load(tmp_path / "prompt.bin", model)
    with pytest.raises(Phi4Error, match="nothing"):
        PromptCache().save(path, model)


def test_media_cache_forgets_the_least_recently_used(loaded):
    model, _ = loaded()
    cache = MediaCache(max_bytes=3 * 4_000)
    for key in "abc":
        cache.put((key, "picture"), mx.zeros((10, 100)))
    cache.get(model, ("x", "picture"))  # another model than before: everything goes
    assert len(cache) == 0
    for key in "abc":
        cache.put((key, "picture"), mx.zeros((10, 100)))
    cache.get(model, ("a", "picture"))
    cache.put(("d", "picture"), mx.zeros((10, 100)))
    assert cache.get(model, ("b", "picture")) is None and cache.get(model, ("a", "picture")) is not None
    assert cache.nbytes <= cache.max_bytes


# key/value caches


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


def test_sampling_defaults_are_greedy():
    assert Sampling().plain and not Sampling(min_tokens=1).plain
