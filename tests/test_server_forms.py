"""Answers in a given form, as the official client asks for them, and what nobody else may notice of it."""

import enum
import threading
import time
from typing import Annotated

import pydantic
import pytest
from random_schemas import fault
from serving import running

from mlx_phi4.generation import trial
from mlx_phi4.generation.grammars import Grammar
from mlx_phi4.server.answers import SplitText
from mlx_phi4.server.jobs import Delivery

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
ENDLESS_WORK = {"allOf": [{"type": "string", "pattern": f"x{{{i}}}"} for i in range(60)]}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Ball(pydantic.BaseModel):
    colour: Colour
    sizes: list[Annotated[int, pydantic.Field(ge=0, le=99)]] = pydantic.Field(max_length=2)
    heavy: bool | None


@pytest.fixture(scope="module")
def server():
    with running() as here:
        yield here


def named(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema} | more}


BALL = named(Ball.model_json_schema() | {"additionalProperties": False}, strict=True, description="a ball")


def ask(server, form, **options):
    return server.openai.chat.completions.create(
        model="phi4-tiny", messages=CAPITAL, **{"response_format": form, "max_tokens": 300} | options
    )


def test_the_client_parses_into_a_pydantic_model(server):
    parsed = server.openai.chat.completions.parse(model="phi4-tiny", messages=CAPITAL, response_format=Ball)
    assert isinstance(parsed.choices[0].message.parsed, Ball) and parsed.choices[0].finish_reason == "stop"
    with server.openai.chat.completions.stream(model="phi4-tiny", messages=CAPITAL, response_format=Ball) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        (BALL, lambda text: not fault(BALL["json_schema"]["schema"], text)),
        ({"type": "regex", "regex": "[0-9]{3}-[0-9]{2}"}, lambda text: len(text) == 6 and text[3] == "-"),
        ({"type": "choice", "choice": ["Rome", "Oslo"]}, lambda text: text in ("Rome", "Oslo")),
        ({"type": "lark", "lark": 'start: "x" N\nN: /[0-9]{2}/'}, lambda text: text[0] == "x" and text[1:].isdigit()),
        (None, lambda text: True),
        ({"type": "text"}, lambda text: text == "Paris"),
    ],
)
def test_every_form_in_chat_text_and_streams(server, form, fits):
    answer = ask(server, form)
    assert fits(answer.choices[0].message.content) and answer.choices[0].finish_reason == "stop"
    several = ask(server, form, n=3, temperature=1.5, seed=5)
    assert form in (None, {"type": "text"}) or all(fits(choice.message.content) for choice in several.choices)
    pieces = ["", "", ""]
    for chunk in ask(server, form, n=3, temperature=1.5, seed=5, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == [choice.message.content for choice in several.choices]
    body = {"model": "phi4-tiny", "prompt": ["a", "b"], "response_format": form, "max_tokens": 300}
    texts = [choice["text"] for choice in server.post(body, "/v1/completions").json()["choices"]]
    assert form in (None, {"type": "text"}) or all(map(fits, texts))


def test_any_object_is_json(server):
    answer = ask(server, {"type": "json_object"}, extra_body={"repetition_penalty": 1.3}, max_tokens=40)
    assert answer.choices[0].message.content.startswith("{") and answer.choices[0].finish_reason in ("stop", "length")


def test_an_answer_cut_off_says_so(server):
    choice = ask(server, {"type": "regex", "regex": "[a-z]{50}"}, max_tokens=5).choices[0]
    assert choice.finish_reason == "length"


def test_log_probabilities_come_along(server):
    choice = ask(server, {"type": "choice", "choice": ["Oslo"]}, logprobs=True, top_logprobs=2).choices[0]
    assert "".join(each.token for each in choice.logprobs.content) == "Oslo"


@pytest.mark.parametrize(
    ("form", "param"),
    [
        (named({"type": "integer", "uniqueItems": True}), "response_format.json_schema.schema"),
        (named({"$ref": "#"}), "response_format.json_schema.schema"),
        ({"type": "regex", "regex": "("}, "response_format.regex"),
        ({"type": "choice", "choice": []}, "response_format.choice"),
        ({"type": "lark", "lark": "start: start"}, "response_format.lark"),
        ({"type": "lark"}, "response_format.lark"),
        ({"type": "xml"}, "response_format.type"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(server, form, param):
    for body, path in (({"messages": CAPITAL}, "/v1/chat/completions"), ({"prompt": "a"}, "/v1/completions")):
        answer = server.post(body | {"model": "phi4-tiny", "response_format": form, "stream": True}, path)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
        assert param in answer.json()["error"]["message"]


def test_nobody_waits_for_a_schema_that_takes_too_long(server, monkeypatch):
    monkeypatch.setattr(trial, "CPU_SECONDS", 1)
    answers = []
    hostile = threading.Thread(
        target=lambda: answers.append(
            server.post({"model": "phi4-tiny", "messages": CAPITAL, "response_format": named(ENDLESS_WORK)})
        )
    )
    hostile.start()
    meanwhile = 0
    while hostile.is_alive():
        assert ask(server, None, max_tokens=4).choices[0].message.content == "Paris"
        meanwhile += 1
        time.sleep(0.01)
    assert answers[0].status_code == 400 and "takes more than 1 seconds" in answers[0].json()["error"]["message"]
    assert meanwhile >= 3


def test_thoughts_before_a_form_go_where_thoughts_go():
    def split(grammar, *pieces, whole=False):
        text = SplitText(whole, grammar)
        last = len(pieces) - 1
        found = [
            text.add(Delivery(0, piece, 1, finish_reason="stop" if i == last else None))
            for i, piece in enumerate(pieces)
        ]
        return "".join(content for content, _ in found), "".join(thought for _, thought in found)

    form, thinking = Grammar("regex", "x"), Grammar("regex", "x", thoughts=True)
    told = "<think>so <it> is</think>\n\n", '{"a": "<think>", ', '"b": "</think>"}'
    assert split(thinking, *told) == ("".join(told[1:]), "so <it> is")
    assert split(form, *told[1:]) == ("".join(told[1:]), "") == split(thinking, *told[1:])
    assert split(thinking, *told, whole=True) == ("".join(told), "")
    assert split(None, *told) == ('{"a": ""}', 'so <it> is", "b": "')


def test_a_server_may_let_models_think_first():
    with running(think_first=True) as server:
        asked = server.engine
        seen, submit = [], asked.submit
        asked.submit = lambda job: (seen.append(job), submit(job))[1]
        assert ask(server, {"type": "choice", "choice": ["Oslo"]}, logit_bias={}).choices[0].message.content
        ask(server, None)
        server.post(
            {"model": "phi4-tiny", "prompt": "a", "response_format": {"type": "choice", "choice": ["b"]}},
            "/v1/completions",
        )
        assert [job.answers[0].think_first for job in seen] == [True, False, False]
        assert [job.form is not None for job in seen] == [True, False, True]
