"""What a clumsy or hostile client gets: a status, one sentence in OpenAI's form, and nobody else notices."""

import base64
import io
import json
import logging
import socket
import time

import numpy as np
import openai
import pytest
import soundfile
from PIL import Image
from serving import running

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
FORM = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def server():
    with running(max_body=2_000_000) as here:
        yield here


@pytest.fixture(autouse=True)
def next_request_is_answered(request, caplog):
    caplog.set_level(logging.INFO)
    yield
    assert not [record for record in caplog.records if record.exc_info], "a traceback in the log"
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        answer = server.post({"model": "phi4-tiny", "messages": CAPITAL}).json()
        assert answer["choices"][0]["message"]["content"] == "Paris"


def refused(response, status, param=None, says=""):
    """The error of a response, in OpenAI's form."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == FORM and "\n" not in error["message"] and "Traceback" not in error["message"]
    assert says in error["message"] and (param is None or error["param"] == param), error
    return error


def chat(server, **fields):
    return server.post({"model": "phi4-tiny", "messages": CAPITAL} | fields)


BODIES = {
    "empty": b"",
    "cut": b'{"model": "phi4-tiny", "messages": [',
    "words": b"hello",
    "an array": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "half a surrogate": b'{"model": "phi4-tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "NaN": b'{"model": "phi4-tiny", "temperature": NaN}',
    "infinity": b'{"model": "phi4-tiny", "temperature": -Infinity}',
    "too large a number": b'{"model": "phi4-tiny", "temperature": 1e999}',
    "too long a number": b'{"model": "phi4-tiny", "seed": ' + b"9" * 5000 + b"}",
    "a name twice": b'{"model": "phi4-tiny", "model": "other"}',
    "deep": b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and open": b'{"a":' * 50_000,
    "NUL": b"\0" * 100,
    "quotes without an end": b'{"a": "' + b'\\"' * 900_000,
    "many values": b"[" + b"{}," * 600_000 + b"{}]",
    "many names": b"{" + b",".join(b'"%d":0' % i for i in range(150_000)) + b',"1":0}',
    "a long name": b'{"' + b"a" * 1_500_000 + b'": 1}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_bodies_that_are_no_json_object(server, name, path):
    began = time.monotonic()
    refused(server.post(BODIES[name], path=path), 400, says="is not a parameter" if "long name" in name else "")
    assert time.monotonic() - began < 5


WRONG = {
    "model": [None, 1, [], {}],
    "messages": [None, [], {}, "hello", 1, [1], [None], [[]], [{}]],
    "temperature": ["1", -1, 2.1, True, [], {}],
    "top_p": [0, -0.1, 1.1, "1", True],
    "n": [0, -1, 129, 1.5, "1", True, 10**30],
    "stop": ["", 1, ["a"] * 5, [1], [""], {}],
    "max_tokens": [0, -1, 1.5, "1", True, 131072, 10**30],
    "max_completion_tokens": [0, -1, "1", False, 10**9],
    "seed": [-1, 1.5, "1", True],
    "stream": [1, "true", []],
    "stream_options": [{}, {"include_usage": True}, True],
    "logit_bias": [[], "x", {"a": 1}, {"-1": 1}, {"1": "2"}, {"1": 101}, {"999999": 1}, {"1": None}],
    "logprobs": [1, "true", 5],
    "top_logprobs": [1, 21, -1, "3", True],
    "presence_penalty": [-2.1, 2.1, "0", True],
    "frequency_penalty": [-3, "0"],
    "response_format": [
        {},
        {"type": "xml"},
        {"type": "text", "text": "x"},
        {"type": "json_object", "schema": {}},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {}},
        "text",
        [],
        {"type": []},
        {"type": "json_schema", "json_schema": {"schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"description": "x" * 1_500_000}}},
        {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"minimum": 2, "maximum": 1, "type": "integer"}},
        },
        {"type": "regex"},
        {"type": "regex", "regex": "("},
        {"type": "regex", "regex": "a", "lark": "b"},
        {"type": "choice", "choice": []},
        {"type": "choice", "choice": "a"},
        {"type": "lark", "lark": "nothing"},
    ],
    "modalities": [["audio"], "text"],
    "tools": [[{"type": "function", "function": {"name": "f g"}}], "x", [1], [{"type": "custom"}]],
    "tool_choice": ["required", "auto", {"type": "function"}, {"type": "function", "function": {"name": "f"}}, 1],
    "parallel_tool_calls": [1, "false"],
    "functions": [[{"name": "f"}], []],
    "function_call": ["auto", {"name": "f"}],
    "reasoning_effort": ["high"],
    "web_search_options": [{}],
    "prediction": [
        "x",
        {},
        {"type": "content"},
        {"type": "text", "content": "x"},
        {"type": "content", "content": 1},
        {"type": "content", "content": "x", "text": "x"},
        {"type": "content", "content": ["x"]},
        {"type": "content", "content": [{"type": "text"}]},
        {"type": "content", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
    ],
    "speculation": ["x", True, 1, {}, "draft-model"],
    "audio": [{"voice": "x"}],
    "metadata": ["x", []],
    "user": [1],
    "store": ["x"],
    "top_k": [-1, 1.5, "1"],
    "min_p": [-0.1, 1.1],
    "xtc_threshold": [0.6],
    "xtc_probability": [-1, 2],
    "repetition_penalty": [0, -1],
    "repetition_context_size": [0],
    "min_tokens": [-1],
    "cache_salt": [1, []],
    "temprature": [1],
    "prompt": ["x"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_or_name_is_named(server, name):
    for value in WRONG[name]:
        error = refused(chat(server, **{name: value}), 400)
        if name != "stream_options":
            assert name.split("_")[0] in error["message"] or "message" in error["message"], (value, error)


def message(content, **more):
    return [{"role": "user", "content": content} | more]


def part(kind, value):
    return message([{"type": kind, kind: value}])


def picture(data, kind="png"):
    return part("image_url", {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"})


def sound(data):
    return part("input_audio", {"data": base64.b64encode(data).decode(), "format": "wav"})


def as_file(size, kind, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


def wav(samples, rate=16000):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


PIXELS = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\1\0\0\0\0" + b"\xcfM2\xae"  # 65,536 x 65,536
MESSAGES = {
    "no role": ([{"content": "x"}], "role"),
    "another role": ([{"role": "wizard", "content": "x"}], "role"),
    "a role of tools": ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "tools"),
    "no content": ([{"role": "user"}], "content"),
    "a number": (message(1), "content"),
    "an object": (message({}), "content"),
    "an unknown field": (message("x", weight=1), "messages[0].weight"),
    "a part of no type": (message([{"text": "x"}]), "messages[0].content[0].type"),
    "a part that is none": (message([1]), "messages[0].content[0]"),
    "an unknown part": (message([{"type": "input_file", "file": {}}]), "content[0].type"),
    "a text that is none": (message([{"type": "text", "text": 1}]), "text"),
    "a text that lacks": (message([{"type": "text"}]), "text"),
    "only the system": ([{"role": "system", "content": "x"}], "user"),
    "tool calls": ([*CAPITAL, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}], "tool_calls"),
    "a picture of the assistant": ([*CAPITAL, picture(b"x")[0] | {"role": "assistant"}], "user"),
    "a url of a string": (part("image_url", "data:image/png;base64,AAAA"), "image_url"),
    "no url": (part("image_url", {}), "url"),
    "another detail": (part("image_url", {"url": "data:,", "detail": "medium"}), "detail"),
    "an address": (part("image_url", {"url": "https://example.com/a.png"}), "not fetched"),
    "a path": (part("image_url", {"url": "/etc/passwd"}), "data:"),
    "a file": (part("image_url", {"url": "file:///etc/passwd"}), "data:"),
    "a relative path": (part("image_url", {"url": "examples/media/sign.png"}), "data:"),
    "a path in disguise": (message([{"type": "image", "path": "/etc/passwd"}]), "type"),
    "a sound's path": (part("input_audio", {"path": "/etc/passwd"}), "path"),
    "not base64": (part("image_url", {"url": "data:image/png;base64,!!!"}), "base64"),
    "not base64 but text": (part("image_url", {"url": "data:image/png,hello"}), "base64"),
    "not base64 of sound": (part("input_audio", {"data": "\u00e4", "format": "wav"}), "base64"),
    "a sound of no format": (part("input_audio", {"data": "AAAA", "format": "midi"}), "format"),
    "an empty picture": (picture(b""), "picture"),
    "no picture": (picture(b"hello"), "picture"),
    "a cut picture": (picture(as_file((64, 64), "PNG")[:60]), "image_url"),
    "PostScript": (picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "PNG"),
    "an icon": (picture(as_file((16, 16), "ICO")), "PNG"),
    "too many pixels": (picture(PIXELS), "image_url"),
    "an elongated picture": (picture(as_file((9000, 1), "PNG")), "elongated"),
    "an empty recording": (sound(b""), "empty"),
    "no recording": (sound(b"hello" * 99), "input_audio"),
    "a cut recording": (sound(wav(np.zeros(9000, np.float32))[:500]), "truncated"),
    "a short recording": (sound(wav(np.zeros(9, np.float32))), "shorter"),
    "NaN samples": (sound(wav(np.full(9000, np.nan, np.float32))), "NaN"),
    "a placeholder without its picture": (message("<|image_1|>"), "placeholder"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_that_do_not_fit(server, name):
    messages, says = MESSAGES[name]
    error = refused(chat(server, messages=messages), 400, says=says)
    assert "/etc" not in error["message"] or says == "data:"
    refused(chat(server, messages=messages, stream=True), 400, says=says)


@pytest.mark.parametrize("value", [None, "", [], [[]], [None], 1, {}, [-1], [10**9], [1, "x"], ["x"] * 129, [True]])
def test_prompts_that_do_not_fit(server, value):
    refused(server.post({"model": "phi4-tiny", "prompt": value}, path="/v1/completions"), 400, says="prompt")


@pytest.mark.parametrize(
    "fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": True}, {"messages": []}]
)
def test_what_text_completions_lack(server, fields):
    refused(
        server.post({"model": "phi4-tiny", "prompt": "x"} | fields, path="/v1/completions"), 400, next(iter(fields))
    )


def test_a_prompt_of_a_million_tokens(server):
    refused(chat(server, messages=message("a b " * 400_000)), 400, says="context")
    with running() as large:
        refused(chat(large, messages=message("word " * 1_000_000)), 400, says="5000000 characters")


def test_bodies_that_are_too_large(server):
    refused(server.post(b" " * 2_000_001), 413, says="2000000 bytes")
    chunks = (b" " * 100_000 for _ in range(30))
    refused(server.http.post("/v1/chat/completions", content=chunks), 413, says="2000000 bytes")
    refused(server.http.post("/v1/audio/transcriptions", files={"file": b"\0" * 3_000_000}), 413)
    refused(server.http.post("/nowhere", content=b" " * 1_500_000), 404)


def test_paths_and_methods(server):
    refused(server.http.get("/v1/nothing"), 404, says="/v1/nothing")
    refused(server.http.get("/v1/chat/completions"), 405, says="POST")
    refused(server.http.post("/v1/responses", json={}), 404, says="/v1/chat/completions")
    refused(server.http.get("/v1/models/gpt-4"), 404, "model")


def test_the_official_client_raises_its_own_classes(server):
    with pytest.raises(openai.BadRequestError) as error:
        server.openai.chat.completions.create(model="phi4-tiny", messages=CAPITAL, temperature=9)
    assert error.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        server.openai.chat.completions.create(model="gpt", messages=CAPITAL)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:80"}, 403),
        ({"host": "[::"}, 403),
        ({"host": "LOCALHOST:1"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"authorization": "Bearer anything"}, 200),
    ],
)
def test_hosts_and_origins(server, headers, status):
    response = server.post({"model": "phi4-tiny", "messages": CAPITAL}, headers=headers)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers
    if status != 200:
        refused(response, status)


def test_pages_that_are_allowed_may_call():
    with running(origins=("https://app.example",)) as server:
        ask = {"origin": "https://app.example", "access-control-request-method": "POST"}
        preflight = server.http.options("/v1/chat/completions", headers=ask)
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        refused(server.http.options("/v1/models", headers=ask | {"origin": "https://evil.example"}), 403)
        assert server.http.get("/v1/models", headers={"origin": server.url}).status_code == 200


def test_keys():
    with running(api_key="secret", hosts=None) as server:
        for headers in ({}, {"authorization": ""}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            refused(server.http.get("/v1/models", headers=headers), 401)
        refused(server.http.get("/v1/models", headers={"authorization": b"Bearer \xff"}), 401)
        refused(server.post({"model": "x"}), 401)
        assert server.http.get("/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.openai.models.list()
        assert list(server.openai.with_options(api_key="secret").models.list())


def raw(server, data, wait=True):
    """What the server answers to bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(data)
        return connection.recv(65536) if wait else b""


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\0\xff", b"GET", HEAD[:40], HEAD, HEAD + b'{"model"'])
def test_connections_that_close_at_any_stage(server, data):
    raw(server, data, wait=False)


def test_requests_that_are_no_http(server):
    assert b" 400 " in raw(server, b"\0\1\2\3 hello\r\n\r\n").splitlines()[0]
    assert (
        b" 40"
        in raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n").splitlines()[0]
    )
    assert b" 403 " in raw(server, b"GET /v1/models HTTP/1.0\r\n\r\n").splitlines()[0]


def test_a_head_or_body_that_never_ends_is_cut_off(server, monkeypatch):
    monkeypatch.setattr("mlx_phi4.server.serve.HEAD_SECONDS", 0.2)
    monkeypatch.setattr("mlx_phi4.server.guard.BODY_SECONDS", 0.2)
    monkeypatch.setattr("mlx_phi4.server.guard.DRAIN_SECONDS", 0.2)
    assert raw(server, HEAD[:60]) == b""
    assert b" 408 " in raw(server, HEAD).splitlines()[0]


def test_a_log_line_cannot_be_forged(server, caplog):
    from mlx_phi4.server.guard import LineFormatter

    server.http.get("/x%0aGET /forged")
    found, until = [], time.monotonic() + 5
    while not found and time.monotonic() < until:  # the line comes after the answer
        found = [record for record in caplog.records if "/x" in str(getattr(record, "facts", ""))]
    (record,) = found
    assert len(LineFormatter(False).format(record).splitlines()) == 1
    assert json.loads(LineFormatter(True).format(record))["path"] == "/x\nGET /forged"
