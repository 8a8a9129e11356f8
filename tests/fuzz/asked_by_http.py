"""Kinds of what a server is sent: bodies, forms and events. Each is answered with 2xx, or 4xx and a JSON error."""

import base64
import json
import logging
from functools import cache
from pathlib import Path
from random import Random

import httpx
from asked import tiny
from driver import Kind
from hypothesis import strategies as st
from made_up import CALLS, MEDIA, SCHEMAS, TOOLS, anything, as_bytes, messages, some, text
from media import sounds, spoiled_binary
from mutations import spoiled_bytes, spoiled_json
from serving import running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

LONGER = 3000  # bytes that a spoiled body may have more: prompts of thousands of tokens take long, and are right
PATIENCE = 240  # s, of a busy machine, too
FEW = 3  # tokens of an answer, where it does not say how many
ADDRESS = "data:{};base64,{}"
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
AUDIO_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations")
BOUNDARY = "b0undary"


class Faults(logging.Handler):
    """What the server says of itself at the level of errors: nobody's request is one."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


@cache
def server():
    """A server of phi4-tiny for as long as this process lives."""
    faults = Faults()
    for name in ("", "uvicorn", "uvicorn.error", "mlx_phi4"):
        logging.getLogger(name).addHandler(faults)
    context = running(tiny())
    here = context.__enter__()
    here.faults = faults
    here.context = context  # kept, so that it is not ended
    here.http.timeout = PATIENCE
    return here


def media() -> dict[str, str]:
    held = {name: base64.b64encode((MEDIA / name).read_bytes()).decode() for name in ("sign.png", "command.flac")}
    return {
        "image": ADDRESS.format("image/png", held["sign.png"]),
        "audio": ADDRESS.format("audio/flac", held["command.flac"]),
        "data": held["command.flac"],
    }


def bodies(folder: Path) -> st.SearchStrategy:
    """Bodies of answers, by where they are sent."""
    form = some(
        type=st.sampled_from(("text", "json_object", "json_schema", "regex", "choice", "lark")),
        json_schema=some(name=st.just("x"), schema=SCHEMAS, strict=st.booleans()),
        regex=st.sampled_from(("[0-9]+", "(", "a*a*a*b", "")),
        choice=st.sampled_from((["a", "b"], [], [""])),
        lark=st.sampled_from(('start: "a"', "x", "start: start")),
    )
    shared = {
        "model": st.just("phi4-tiny"),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(0, 9),
        "n": st.integers(1, 3),
        "stop": st.one_of(text, st.lists(text, max_size=5)),
        "max_tokens": st.integers(1, 4),
        "seed": st.integers(0, 2**53),
        "stream": st.booleans(),
        "stream_options": st.just({"include_usage": True}),
        "logit_bias": st.dictionaries(st.integers(0, 700).map(str), st.floats(-100, 100), max_size=3),
        "response_format": form,
    }
    chat = some(
        **shared,
        messages=messages(media()),
        max_completion_tokens=st.integers(1, 4),
        logprobs=st.booleans(),
        top_logprobs=st.integers(0, 20),
        tools=TOOLS,
        tool_choice=st.sampled_from(("auto", "none", "required", {"type": "function", "function": {"name": "search"}})),
        parallel_tool_calls=st.booleans(),
        prediction=some(type=st.just("content"), content=text),
        speculation=st.sampled_from(("lookup", "none")),
        metadata=anything,
        tool_calls=CALLS,
    )
    prompt = st.one_of(text, st.lists(text, max_size=3), st.lists(st.integers(0, 900), max_size=4))
    plain = some(**shared, prompt=prompt, echo=st.booleans(), logprobs=st.integers(0, 5), suffix=text)
    responses = some(model=st.just("phi4-tiny"), input=st.one_of(text, messages(media())), instructions=text)
    asked = [st.tuples(st.just(path), body) for path, body in zip(PATHS, (chat, plain, responses), strict=True)]
    return st.one_of(asked[0], asked[0], asked[1], asked[2]).map(_completed)


def _completed(asked: tuple) -> bytes:
    """What is needed, where it is lacking, so that answers come and are short."""
    path, body = asked
    if isinstance(body, dict):
        needed = {"prompt": "What?"} if path == PATHS[1] else {"messages": [{"role": "user", "content": "What?"}]}
        body = {"model": "phi4-tiny", "max_tokens": FEW} | ({} if path == PATHS[2] else needed) | body
        if body["max_tokens"] is None:
            body["max_tokens"] = FEW
    return path.encode() + b"\n" + as_bytes(body)


def valid_bodies(folder: Path) -> list[bytes]:
    said = [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    called = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"q": "x"}'}}
    tools = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
    talk = [*said, {"role": "assistant", "content": None, "tool_calls": [called]}]
    talk.append({"role": "tool", "tool_call_id": "call_1", "content": "7"})
    seen = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": media()["image"]}}]}]
    usual = {"model": "phi4-tiny", "max_tokens": FEW}
    chats = [usual | {"messages": each} for each in (said, seen)]
    chats.append(usual | {"messages": talk, "tools": tools, "stream": True, "n": 2, "logprobs": True})
    chats.append(usual | {"messages": said, "response_format": {"type": "json_object"}, "stop": ["a"], "seed": 1})
    prompts = [usual | {"prompt": ["What?", "Who?"], "logit_bias": {"5": 1.5}, "stream": False, "temperature": 1}]
    asked = [(PATHS[0], each) for each in chats] + [(PATHS[1], each) for each in prompts]
    return [path.encode() + b"\n" + json.dumps(body).encode() for path, body in asked]


def spoiled_body(random: Random, content: bytes) -> bytes:
    path, _, right = content.partition(b"\n")
    body = right + bytes(LONGER)
    while len(body) >= len(right) + LONGER:
        body = spoiled_json(random, right)
        body = spoiled_bytes(random, body) if random.random() < 0.2 else body
    try:  # so that answers stay short
        found = json.loads(body)
        if isinstance(found, dict) and found.get("max_tokens") is None:
            body = json.dumps(found | {"max_tokens": FEW}).encode()
    except (ValueError, RecursionError):
        pass
    return path + b"\n" + body


def send_a_body(content: bytes, scratch: Path, folder: Path) -> None:
    path, _, body = content.partition(b"\n")
    answer = server().http.post(path.decode(), content=body, headers={"content-type": "application/json"})
    check(answer)


def check(answer: httpx.Response) -> None:
    """A right answer of its kind, or an error for whoever asked; the server itself has nothing to complain of."""
    here, kind = server(), answer.headers.get("content-type", "").partition(";")[0]
    said, here.faults.said[:] = here.faults.said[:], []
    assert not said, f"{answer.status_code}, and in the log: {said[0]}"
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, f"{answer.status_code} {answer.text[:500]}"
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"] and "Traceback" not in error["message"], error
    elif kind == "application/json":
        assert isinstance(json.loads(answer.text, parse_constant=_none_of_json), dict)
    elif kind == "text/event-stream":
        events = [line[5:].strip() for line in answer.text.splitlines() if line.startswith("data:")]
        assert events, answer.text[:200]
        assert all(isinstance(json.loads(each, parse_constant=_none_of_json), dict) for each in events[:-1])
        assert events[-1] == "[DONE]" or json.loads(events[-1])["type"].endswith("done"), events[-1]
    else:
        assert kind in ("text/plain", "application/x-subrip", "text/vtt"), kind


def _none_of_json(name: str):
    raise AssertionError(f"{name} in an answer")


def forms(folder: Path) -> list[bytes]:
    """Uploads as they go over the wire, after where they are sent."""
    fields = (
        {"model": "phi4-tiny"},
        {"model": "phi4-tiny", "response_format": "verbose_json", "timestamp_granularities[]": "segment"},
        {"model": "phi4-tiny", "stream": "true", "language": "en", "temperature": "0.2", "prompt": "names"},
        {"model": "phi4-tiny", "response_format": "srt"},
    )
    uploads = [(MEDIA / "command.flac").read_bytes(), *sounds(folder)[::4]]
    return [
        f"{AUDIO_PATHS[number % 5 == 4]}\n".encode() + _form(fields[number % len(fields)], upload)
        for number, upload in enumerate(uploads)
    ]


def _form(fields: dict[str, str], upload: bytes) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\n'.encode()
    return b"".join(parts) + head + upload + f"\r\n--{BOUNDARY}--\r\n".encode()


def spoiled_form(random: Random, content: bytes) -> bytes:
    path, _, body = content.partition(b"\n")
    return path + b"\n" + (spoiled_bytes if random.random() < 0.3 else spoiled_binary)(random, body)


def send_a_form(content: bytes, scratch: Path, folder: Path) -> None:
    path, _, body = content.partition(b"\n")
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    check(server().http.post(path.decode(), content=body, headers={"content-type": kind}))


def sessions(folder: Path) -> st.SearchStrategy:
    """Events of a live session, and bytes in between, as a list of texts and {"bytes": base64}."""
    import soundfile

    samples = soundfile.read(MEDIA / "command.flac", dtype="int16")[0].tobytes()
    pieces = [samples[at : at + 6400] for at in range(0, 32_000, 6400)] + [b"", b"\x00", b"\x80" * 641]
    sound = st.sampled_from([base64.b64encode(each).decode() for each in pieces])
    heard = some(
        format=some(type=st.just("audio/pcm"), rate=st.sampled_from((16_000, 24_000, 8_000, 1, 0))),
        transcription=some(model=st.just("phi4-tiny"), language=st.just("en"), prompt=text),
        turn_detection=some(type=st.just("server_vad"), silence_duration_ms=st.integers(0, 3000)),
        noise_reduction=anything,
    )
    update = some(type=st.just("transcription"), audio=some(input=heard), include=anything)
    event = st.one_of(
        some(type=st.just("session.update"), session=update, event_id=text),
        st.fixed_dictionaries({"type": st.just("input_audio_buffer.append"), "audio": sound}),
        some(type=st.just("input_audio_buffer.append"), audio=st.one_of(sound, text)),
        st.sampled_from([{"type": f"input_audio_buffer.{each}"} for each in ("commit", "clear")]),
        some(type=text, event_id=text),
    )
    sent = st.one_of(
        event.map(lambda each: json.dumps(each)),
        event.map(json.dumps),
        text.map(_plain),
        sound.map(lambda each: {"bytes": each}),
    )
    return st.lists(sent, min_size=1, max_size=6).map(as_bytes)


def _plain(said: str) -> str:
    return said.encode("utf-8", "replace").decode()


def hold_a_session(content: bytes, scratch: Path, folder: Path) -> None:
    """Every event that comes is JSON of a type, the last that is sent is answered, and nothing stays behind."""
    here = server()
    address = here.url.replace("http", "ws") + "/v1/realtime?intent=transcription"
    try:
        with connect(address, subprotocols=["realtime"], close_timeout=PATIENCE, open_timeout=PATIENCE) as socket:
            for each in json.loads(content):
                socket.send(base64.b64decode(each["bytes"]) if isinstance(each, dict) else each)
            socket.send('{"type": "none", "event_id": "the last"}')
            while True:
                event = json.loads(socket.recv(timeout=PATIENCE), parse_constant=_none_of_json)
                assert isinstance(event["type"], str), event
                if event["type"] == "error" and event["error"].get("event_id") == "the last":
                    break
    except ConnectionClosed as error:
        assert error.rcvd is not None and error.rcvd.code in (1007, 1008), error
    assert here.free(PATIENCE), "rows of a session that has ended go on"
    check(here.http.get("/health"))


HTTP_KINDS = [
    Kind("body", 150, send_a_body, strategy=bodies, seconds=20),
    Kind("spoiled-body", 150, send_a_body, valid_bodies, spoiled_body, seconds=20),
    Kind("form", 60, send_a_form, forms, spoiled_form, seconds=30),
    Kind("session", 30, hold_a_session, strategy=sessions, seconds=30),
]
