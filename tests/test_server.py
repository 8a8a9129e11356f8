"""What the official client gets: chat in all modes, text completions, models, usage, cancellation."""

import base64
import threading
import time
from pathlib import Path

import openai
import pytest
from serving import running

from mlx_phi4.generation.batch import Batch
from mlx_phi4.server.rows import Limits

MEDIA = Path(__file__).parents[1] / "examples" / "media"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
LONG = {"model": "phi4-tiny", "messages": CAPITAL, "max_tokens": 3000, "extra_body": {"min_tokens": 3000}}


@pytest.fixture(scope="module")
def server():
    with running() as here:
        yield here


def encoded(name):
    return base64.b64encode((MEDIA / name).read_bytes()).decode()


def picture(name):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(name)}"}}


def sound(name):
    return {"type": "input_audio", "input_audio": {"data": encoded(name), "format": "flac"}}


def text(value):
    return {"type": "text", "text": value}


MODES = {
    "text": ("What is 27 + 45?", "72"),
    "parts": ([text("What is the capital "), text("of France?")], "Paris"),
    "vision": ([picture("sign.png"), text("Describe the picture.")], "blue star"),
    "speech": ([sound("command.flac"), text("Transcribe the audio clip into text.")], "turn on the radio"),
    "vision-speech": ([picture("sign.png"), sound("question.flac")], "star"),
}


def ask(server, content="What is the capital of France?", **options):
    return server.openai.chat.completions.create(
        model="phi4-tiny", messages=[{"role": "user", "content": content}], **options
    )


@pytest.mark.parametrize("mode", ["text", "parts", "vision", "speech"])
def test_chat_answers(server, mode):
    content, expected = MODES[mode]
    answer = ask(server, content)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.role == "assistant"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > usage.completion_tokens > 0
    assert usage.prompt_tokens_details.cached_tokens >= 0


@pytest.mark.parametrize("mode", ["text", "speech", "vision-speech"])
def test_chat_answers_in_pieces(server, mode):
    content, expected = MODES[mode]
    chunks = list(ask(server, content, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1]) and len({chunk.id for chunk in chunks}) == 1


def test_a_stream_has_no_usage_unless_it_was_asked_for(server):
    assert all(chunk.choices and chunk.usage is None for chunk in ask(server, stream=True))


def test_messages_of_all_roles_and_content_none(server):
    messages = [
        {"role": "developer", "content": "Answer in one word."},
        *CAPITAL,
        {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
        *CAPITAL,
    ]
    assert server.openai.chat.completions.create(model="phi4-tiny", messages=messages).choices


def test_several_answers_of_one_prompt(server):
    sampled = {"n": 4, "temperature": 2, "seed": 3, "max_tokens": 6, "extra_body": {"min_tokens": 6}}
    answer = ask(server, **sampled)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1
    found = [""] * 4
    for chunk in ask(server, stream=True, **sampled):
        for choice in chunk.choices:
            found[choice.index] += choice.delta.content or ""
    assert found == texts
    assert [ask(server, **sampled | {"n": 1, "seed": 3 + i}).choices[0].message.content for i in range(4)] == texts


def test_stop_length_and_default_temperature(server):
    full = ask(server, "What is 27 + 45?").choices[0]
    assert full.message.content == "72"
    cut = ask(server, "What is 27 + 45?", stop=["x", "2"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("7", "stop")
    short = ask(server, "What is 27 + 45?", max_completion_tokens=1)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 1)


def test_logprobs_have_openais_form(server):
    answer = ask(server, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == "Paris"
    assert b"".join(bytes(entry.bytes) for entry in entries) == b"Paris"
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 3 for entry in entries)
    assert entries[0].top_logprobs[0].token == entries[0].token
    streamed = [chunk.choices[0].logprobs for chunk in ask(server, logprobs=True, stream=True)]
    assert [entry.token for part in streamed if part for entry in part.content] == [entry.token for entry in entries]


def test_biases_penalties_and_own_options_have_an_effect(server):
    token = server.service.processor.tokenizer.encode("Paris")[0]
    assert ask(server, logit_bias={token: -100}, max_tokens=4).choices[0].message.content != "Paris"
    own = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 3, "cache_salt": "me"}
    assert ask(server, temperature=1, seed=1, max_tokens=3, extra_body=own).usage.completion_tokens == 3


def test_bookkeeping_has_no_effect(server):
    more = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s"}
    answer = ask(server, **more, parallel_tool_calls=True, tool_choice="none", response_format={"type": "text"})
    assert answer.choices[0].message.content == "Paris"


def test_models_and_adapters_by_name(server):
    names = [model.id for model in server.openai.models.list()]
    assert names == ["phi4-tiny", "phi4-tiny:speech", "phi4-tiny:vision"]
    assert server.openai.models.retrieve("phi4-tiny:vision").id == "phi4-tiny:vision"
    assert server.openai.chat.completions.create(model="phi4-tiny:vision", messages=CAPITAL).model == names[2]
    for name in ("gpt-4o", "phi4-tiny:other", "microsoft/Phi-4-multimodal-instruct"):
        with pytest.raises(openai.NotFoundError, match="there is no model") as error:
            server.openai.chat.completions.create(model=name, messages=CAPITAL)
        assert error.value.code == "model_not_found" and error.value.param == "model"


def test_text_completions(server):
    raw = "<|user|>What is the capital of France?<|end|><|assistant|>"
    ids = server.service.processor.tokenizer.encode(raw)
    create = server.openai.completions.create
    assert [create(model="phi4-tiny", prompt=prompt).choices[0].text for prompt in (raw, ids)] == ["Paris", "Paris"]
    answer = create(model="phi4-tiny", prompt=[raw, raw], n=2, logprobs=2)
    assert [choice.text for choice in answer.choices] == ["Paris"] * 4
    assert answer.choices[0].logprobs.tokens[0] and answer.choices[0].logprobs.text_offset[0] == 0
    assert answer.usage.prompt_tokens == 2 * len(ids)
    assert "".join(chunk.choices[0].text for chunk in create(model="phi4-tiny", prompt=raw, stream=True)) == "Paris"


def test_responses_point_to_chat(server):
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        server.openai.responses.create(model="phi4-tiny", input="Hello")


def test_answers_side_by_side_are_those_alone(server):
    results = {}

    def work(number):
        mode = ("text", "parts", "speech")[number % 3]
        results[number] = ask(server, MODES[mode][0]).choices[0].message.content == MODES[mode][1]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results == dict.fromkeys(range(12), True)


def test_a_stream_that_is_closed_frees_its_row(server):
    stream = server.openai.chat.completions.create(stream=True, **LONG)
    for _ in zip(range(5), stream, strict=False):
        pass
    assert server.engine.running == 1
    stream.close()
    assert server.free(2)


def test_a_client_that_leaves_before_its_answer_frees_its_row(server):
    with pytest.raises(openai.APITimeoutError):
        server.openai.with_options(timeout=0.3).chat.completions.create(**LONG)
    assert server.free(2)


def test_a_client_that_leaves_the_queue_is_forgotten():
    with running(limits=Limits(rows=1)) as server:
        stream = server.openai.chat.completions.create(stream=True, **LONG)
        next(iter(stream))
        with pytest.raises(openai.APITimeoutError):
            server.openai.with_options(timeout=0.3).chat.completions.create(**LONG)
        until = time.monotonic() + 2
        while server.engine.waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert (server.engine.running, server.engine.waiting) == (1, 0)
        stream.close()
        assert server.free(2)


def test_a_full_queue_is_429_with_the_time_to_come_again():
    with running(limits=Limits(rows=1), max_queue=1) as server:
        streams = [server.openai.chat.completions.create(stream=True, **LONG)]
        next(iter(streams[0]))
        streams.append(server.openai.chat.completions.create(stream=True, **LONG))
        with pytest.raises(openai.RateLimitError) as error:
            ask(server)
        assert int(error.value.response.headers["retry-after"]) >= 1
        [stream.close() for stream in streams]
        assert server.free(2)
        assert ask(server).choices[0].message.content == "Paris"


def test_a_step_that_fails_is_500_or_an_event_and_the_next_request_succeeds(server, monkeypatch):
    def fail(self):
        monkeypatch.undo()
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Batch, "_step", fail)
    with pytest.raises(openai.InternalServerError) as error:
        ask(server)
    assert "luck" not in error.value.message
    monkeypatch.setattr(Batch, "_step", fail)
    with pytest.raises(openai.APIError):
        list(ask(server, stream=True))
    assert ask(server).choices[0].message.content == "Paris"


def test_health_and_metrics(server):
    ask(server)
    health = server.http.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ready", "running": 0, "waiting": 0})
    shown = server.http.get("/metrics").text
    for name in ("requests_total", "time_to_first_token_seconds_count", 'completion_tokens_total{mode="text"}'):
        assert f"mlx_phi4_{name}" in shown


THOUGHT = ["<th", "ink>so", "me thought</", "think>\n\n", "The ", "answer"]


@pytest.mark.parametrize("keep", [False, True])
def test_thoughts_are_told_from_the_answer(keep):
    from mlx_phi4.server.answers import SplitText
    from mlx_phi4.server.jobs import Delivery

    split = SplitText(keep)
    ends = [None] * (len(THOUGHT) - 1) + ["stop"]
    parts = [split.add(Delivery(0, piece, 1, finish_reason=end)) for piece, end in zip(THOUGHT, ends, strict=True)]
    content, thought = ("".join(part) for part in zip(*parts, strict=True))
    assert (content, thought) == (("".join(THOUGHT), "") if keep else ("The answer", "some thought"))
