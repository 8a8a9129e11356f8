"""Tools through the official client: the whole loop, streams that join to the whole answer, and what is refused."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import openai
import pytest
from scripts import Script, said
from serving import running

from mlx_phi4.server import service

MEDIA = Path(__file__).parents[1] / "examples" / "media"
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Of a city.", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CALL = '{"name": "get_weather", "arguments": {"city": "Rome"}}'


@pytest.fixture(scope="module")
def server():
    with running() as here:
        yield here


@pytest.fixture
def says(server, monkeypatch):
    """A function that has the model say a text next."""

    def prepare(text):
        processor = server.service.processor
        form = SimpleNamespace(constraint=lambda: Script(processor, said(processor, text)))
        monkeypatch.setattr(service, "answer_form", lambda *_: form)

    return prepare


def ask(server, messages=QUESTION, **options):
    options = {"tools": TOOLS, "max_tokens": 200} | options
    return server.openai.chat.completions.create(model="phi4-tiny", messages=messages, **options)


def put_together(chunks):
    """A stream's answers, as clients put them together: content, calls, log-probabilities, and why each ended."""
    answers = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        found = answers.setdefault(choice.index, {"content": None, "calls": [], "tokens": [], "reason": None})
        if choice.delta.content is not None:
            found["content"] = (found["content"] or "") + choice.delta.content
        for delta in choice.delta.tool_calls or []:
            if delta.index == len(found["calls"]):
                assert delta.id and delta.type == "function" and delta.function.name
                found["calls"].append([delta.function.name, ""])
            else:
                assert delta.id is None and delta.function.name is None and delta.index == len(found["calls"]) - 1
            found["calls"][delta.index][1] += delta.function.arguments
        found["tokens"] += [each.token for each in choice.logprobs.content] if choice.logprobs else []
        assert found["reason"] is None
        found["reason"] = choice.finish_reason
    return [answers[index] for index in sorted(answers)]


def shown(choice):
    """A whole answer in the same form."""
    calls = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or []]
    tokens = [each.token for each in choice.logprobs.content] if choice.logprobs else []
    return {"content": choice.message.content, "calls": calls, "tokens": tokens, "reason": choice.finish_reason}


def test_the_whole_loop(server):
    """Question, call, result, answer, and on from there; what was computed for a turn serves the next."""
    messages = list(QUESTION)
    first = ask(server, messages, tool_choice="required", parallel_tool_calls=False)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and message.content is None and len(message.tool_calls) == 1
    (call,) = message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), CITY if call.function.name == "get_weather" else {})
    assert call.type == "function" and call.id.startswith("call_")
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "Paris"}]
    second = ask(server, messages)
    assert second.choices[0].finish_reason == "stop" and second.choices[0].message.tool_calls is None
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    messages += [second.choices[0].message, *QUESTION]
    assert ask(server, messages, tool_choice="none").choices[0].message.content is not None
    # results may be left to another request without tools, and a plain answer stays what it is
    assert ask(server, messages, tools=None).choices
    assert ask(server, QUESTION, tools=openai.NOT_GIVEN).choices[0].message.content == "Paris"


def test_several_calls_and_their_results_in_any_order(server):
    calls = [{"id": str(n), "type": "function", "function": {"name": "now", "arguments": ""}} for n in range(3)]
    results = [{"role": "tool", "tool_call_id": str(n), "content": f"at {n}"} for n in range(3)]
    asked = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}]
    ask(server, [*asked, *results])
    usage = ask(server, [*asked, results[1], results[2], results[0]]).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1  # it is the same prompt


@pytest.mark.parametrize(
    "options",
    [
        {"tool_choice": "required", "n": 3, "temperature": 1, "seed": 2, "logprobs": True, "max_tokens": 120},
        {"tool_choice": {"type": "function", "function": {"name": "now"}}},
        {"tool_choice": "required", "max_tokens": 30, "logprobs": True},
        {},
    ],
    ids=["several", "named", "cut off", "auto"],
)
def test_a_stream_joins_to_the_whole_answer(server, options):
    whole = [shown(choice) for choice in ask(server, **options).choices]
    assert put_together(ask(server, stream=True, **options)) == whole
    if "tool_choice" in options:
        assert any(each["calls"] for each in whole) == ("max_tokens" not in options or "n" in options)
    assert whole[0]["reason"] in ("tool_calls", "length" if "max_tokens" in options else "stop")


SAID = {
    "a call": f"<|tool_call|>[{CALL}]<|/tool_call|>",
    "text before": f"Let me see. <|tool_call|>[{CALL}]<|/tool_call|>",
    "several": f"<|tool_call|>[{CALL}, {CALL}]<|/tool_call|> and <|tool_call|>{CALL}<|/tool_call|>",
    "never closed": f"Hm <|tool_call|>[{CALL}",
    "never whole": f"Hm <|tool_call|>[{CALL[:-1]}",
    "of nobody": '<|tool_call|>[{"name": "nope", "arguments": {}}]<|/tool_call|>',
    "thoughts": f"<think>Who?</think>\n\nYou. <|tool_call|>[{CALL}]<|/tool_call|>",
    "nothing": "",
}


@pytest.mark.parametrize("name", SAID)
def test_whatever_is_said_is_the_same_in_pieces_and_whole(server, says, name):
    says(SAID[name])
    options = {"logprobs": True, "stop": ["Rome"]}
    (whole,) = [shown(choice) for choice in ask(server, **options).choices]
    assert put_together(ask(server, stream=True, **options)) == [whole]
    calls = 0 if "whole" in name or "nobody" in name or name == "nothing" else SAID[name].count(CALL)
    assert whole["calls"] == [["get_weather", '{"city": "Rome"}']] * calls
    assert whole["reason"] == ("tool_calls" if calls else "stop")
    assert "".join(whole["tokens"]) == SAID[name]
    expected = {"never whole": f"Hm [{CALL[:-1]}".partition("Rome")[0], "nothing": None, "a call": None}
    assert name not in expected or whole["content"] == expected[name]


def test_the_clients_own_stream_puts_calls_together(server):
    with server.openai.chat.completions.stream(
        model="phi4-tiny", messages=QUESTION, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "now"}}
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [("now", "{}")]


def test_tools_beside_a_picture_and_speech(server):
    url = "data:image/png;base64," + base64.b64encode((MEDIA / "sign.png").read_bytes()).decode()
    data = base64.b64encode((MEDIA / "question.flac").read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}},
    ]
    for content in (parts, parts[1:]):
        answer = ask(server, [{"role": "user", "content": content}], tool_choice="required", parallel_tool_calls=False)
        assert answer.choices[0].finish_reason == "tool_calls"


LONG = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"pattern": "("}}}}}
BAD = {
    "an unknown tool": ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
    "a choice of no form": ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    "no tools": ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    "an empty list": ({"tools": [], "tool_choice": "auto"}, "tool_choice"),
    "a quote": ({"tools": [{"type": "function", "function": {"name": 'f"'}}]}, "tools[0].function.name"),
    "a line break": ({"tools": [NOW, {"type": "function", "function": {"name": "f\n"}}]}, "tools[1].function.name"),
    "a special token": ({"tools": [{"type": "function", "function": {"name": "<|end|>"}}]}, "tools[0].function.name"),
    "one name twice": ({"tools": [NOW, NOW]}, "tools[1]"),
    "another type": ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]"),
    "no schema": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": 1}}}]},
        "tools[0].function.parameters.required",
    ),
    "a pattern that is none": ({"tools": [NOW, LONG | {"function": LONG["function"]}]}, "tools[1].parameters"),
    "functions": ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
    "function_call": ({"extra_body": {"function_call": "auto"}}, "function_call"),
}
ASKED = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": {}}]}
ASKED["tool_calls"][0]["function"] = {"name": "now", "arguments": "{}"}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "12:30"}
BAD_MESSAGES = {
    "a result without a call": ([RESULT], "messages[1]"),
    "a result of another call": ([ASKED, RESULT | {"tool_call_id": "b"}], "messages[2]"),
    "two results": ([ASKED, RESULT, RESULT], "messages[3]"),
    "no id": ([ASKED, {"role": "tool", "content": "x"}], "messages[2].tool_call_id"),
    "a picture": ([ASKED, RESULT | {"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}], None),
    "a function's role": ([{"role": "function", "name": "now", "content": "x"}], "messages[1].role"),
    "a function_call": ([{"role": "assistant", "content": "", "function_call": {}}], "messages[1].function_call"),
    "calls of a user": ([QUESTION[0] | {"tool_calls": []}], "messages[1].tool_calls"),
    "no calls": ([ASKED | {"tool_calls": {}}], "messages[1].tool_calls"),
    "a call that is none": ([ASKED | {"tool_calls": [1]}], "messages[1].tool_calls[0]"),
    "arguments that are no JSON": (
        [ASKED | {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}]}],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "a name with a special token": (
        [ASKED | {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "<|end|>", "arguments": ""}}]}],
        "messages[1].tool_calls[0].function.name",
    ),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_MESSAGES])
def test_what_does_not_fit_is_named(server, name):
    options, param = BAD.get(name) or ({"messages": [*QUESTION, *BAD_MESSAGES[name][0]]}, BAD_MESSAGES[name][1])
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            ask(server, **options, stream=stream)
        assert param is None or error.value.param == param, error.value.message
        assert "\n" not in error.value.message
    assert server.free()


def test_whose_turn_a_result_is_is_the_servers_choice():
    import mlx_phi4

    with running(mlx_phi4.load("phi4-tiny", tool_results="tool")) as here:
        assert ask(here, [*QUESTION, ASKED, RESULT]).choices
        row = here.service.processor.row(mlx_phi4.Request([*QUESTION, ASKED, RESULT]))
        assert here.service.processor.tokenizer.special["<|tool|>"].id in row.ids
