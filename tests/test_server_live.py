"""/v1/realtime: sessions in the form of OpenAI's, what they refuse, and what they leave behind."""

import base64
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from serving import running
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mlx_phi4.server.realtime import SESSIONS

MEDIA = Path(__file__).parents[1] / "examples" / "media"
LIST = ["four zero seven two", "open the window", "nine one one five three", "stop the music"]
DONE = "conversation.item.input_audio_transcription.completed"


@pytest.fixture(scope="module")
def server():
    with running() as here:
        yield here


@pytest.fixture(scope="module")
def samples():
    return soundfile.read(MEDIA / "list.flac", dtype="int16")[0]


def opened(server, query="?intent=transcription", **options):
    address = server.url.replace("http", "ws") + f"/v1/realtime{query}"
    return connect(address, subprotocols=["realtime"], close_timeout=5, **options)


def send(socket, kind, **rest):
    socket.send(json.dumps({"type": kind} | rest))


def append(socket, samples):
    send(socket, "input_audio_buffer.append", audio=base64.b64encode(samples.tobytes()).decode())


def configure(socket, rate=16_000, **audio):
    """The first two events are of the session."""
    assert json.loads(socket.recv())["type"] == "session.created"
    heard = {"format": {"type": "audio/pcm", "rate": rate}} | audio
    send(socket, "session.update", session={"type": "transcription", "audio": {"input": heard}})
    return json.loads(socket.recv())


def until(socket, kind, count=1, timeout=60):
    """Events up to the nth of a kind."""
    found, end = [], time.monotonic() + timeout
    while sum(event["type"] == kind for event in found) < count:
        found.append(json.loads(socket.recv(timeout=end - time.monotonic())))
    return found


def test_a_session_hears_what_it_is_sent(server, samples):
    with opened(server) as socket:
        assert socket.subprotocol == "realtime"
        shown = configure(socket)["session"]["audio"]["input"]
        assert shown["format"]["rate"] == 16_000 and shown["transcription"]["model"] == "phi4-tiny"
        for at in range(0, len(samples), 3200):
            append(socket, samples[at : at + 3200])
        send(socket, "input_audio_buffer.commit")
        events = until(socket, DONE, 4)
    done = [event for event in events if event["type"] == DONE]
    assert [event["transcript"] for event in done] == LIST
    assert [event["item_id"] for event in done] == ["item_1", "item_2", "item_3", "item_4"]
    assert len({event["event_id"] for event in events}) == len(events)
    for number, event in enumerate(done, start=1):
        mine = [each["type"].rpartition(".")[2] for each in events if each.get("item_id") == event["item_id"]]
        mine = [kind for kind in mine if kind != "provisional"]
        assert mine == ["speech_started", "speech_stopped", "committed", "delta", "completed"]
        assert event["start"] < event["end"] and event["usage"]["seconds"] == pytest.approx(
            event["end"] - event["start"], abs=0.01
        )
        (before,) = [each for each in events if "previous_item_id" in each and each["item_id"] == event["item_id"]]
        assert before["previous_item_id"] == (f"item_{number - 1}" if number > 1 else None)
    assert left_alone(server)


def left_alone(server):
    """Whether nothing runs or counts as running any more, before long."""
    end = time.monotonic() + 20
    while (server.service.in_flight or not server.engine.idle) and time.monotonic() < end:
        time.sleep(0.02)
    return server.engine.idle and not server.service.in_flight


def test_the_official_client(server, samples):
    """Its own connection, types and events."""
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any")
    with client.realtime.connect(model="phi4-tiny", extra_query={"intent": "transcription"}) as connection:
        heard = {"format": {"type": "audio/pcm", "rate": 24_000}, "transcription": {"model": "phi4-tiny"}}
        connection.session.update(session={"type": "transcription", "audio": {"input": heard}})
        wave = np.repeat(samples[: 3 * 16_000], 3)[::2]  # 24 kHz, as that protocol has it
        connection.input_audio_buffer.append(audio=base64.b64encode(wave.tobytes()).decode())
        connection.input_audio_buffer.commit()
        for event in connection:
            if event.type == DONE:
                assert event.transcript == LIST[0]
                break


def test_bytes_are_sound_too_and_clear_forgets(server, samples):
    with opened(server) as socket:
        configure(socket)
        socket.send(samples[: 2 * 16_000].tobytes())
        send(socket, "input_audio_buffer.clear")
        until(socket, "input_audio_buffer.cleared")
        socket.send(samples[:40_000].tobytes())
        send(socket, "input_audio_buffer.commit")
        event = until(socket, DONE)[-1]
        assert event["transcript"] == LIST[0] and event["start"] > 2  # counted from the first sample of the session
    assert left_alone(server)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("nonsense", "is not JSON"),
        ({"type": "response.create"}, "type is 'response.create', expected session.update"),
        ({"type": 3}, "type is 3"),
        ({"type": "input_audio_buffer.append"}, "audio is missing"),
        ({"type": "input_audio_buffer.append", "audio": "!"}, "audio is not base64"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "expected 16-bit samples"),
        ({"type": "input_audio_buffer.commit"}, "no sound to commit"),
        ({"type": "transcription_session.update"}, "is of the beta"),
        ({"type": "session.update"}, "session is missing"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type is 'realtime'"),
        ({"type": "session.update", "session": {"voice": "x"}}, "session.voice is not a parameter"),
    ],
)
def test_what_is_wrong_with_an_event_is_told_and_the_session_goes_on(server, event, said):
    with opened(server) as socket:
        socket.recv()
        socket.send(event if isinstance(event, str) else json.dumps(event | {"event_id": "mine"}))
        told = json.loads(socket.recv())
        assert told["type"] == "error" and said in told["error"]["message"]
        assert told["error"]["event_id"] == (None if isinstance(event, str) else "mine")
        assert configure_again(socket)["type"] == "session.updated"


def configure_again(socket):
    send(socket, "session.update", session={})
    return json.loads(socket.recv())


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ({"format": {"type": "audio/pcmu"}}, "audio/pcm"),
        ({"format": {"type": "audio/pcm", "rate": 100}}, "rate is 100"),
        ({"turn_detection": {"type": "semantic_vad"}}, "server_vad"),
        ({"turn_detection": {"type": "server_vad", "silence_duration_ms": 1}}, "silence_duration_ms is 1"),
        ({"turn_detection": None}, "turn_detection null"),
        ({"noise_reduction": {"type": "near_field"}}, "noise_reduction"),
        ({"transcription": {"model": "whisper-1"}}, "there is no model 'whisper-1'"),
        ({"transcription": {"language": "tlh"}}, "language is 'tlh'"),
    ],
)
def test_settings_that_cannot_be_had(server, heard, said):
    with opened(server) as socket:
        socket.recv()
        send(socket, "session.update", session={"type": "transcription", "audio": {"input": heard}})
        told = json.loads(socket.recv())
        assert told["type"] == "error" and said in told["error"]["message"]


def test_settings_come_before_the_first_sound(server, samples):
    with opened(server) as socket:
        configure(socket)
        append(socket, samples[:1600])
        send(socket, "session.update", session={})
        assert until(socket, "error")[-1]["error"]["code"] == "session_began"


def refusal(server, query="?intent=transcription", **options):
    with pytest.raises(InvalidStatus) as refused, opened(server, query, **options):
        pass
    response = refused.value.response
    return response.status_code, json.loads(response.body)["error"]["message"]


def test_who_may_call_is_decided_before_a_session_begins(server):
    """Browsers ask nobody before they open a WebSocket: the server itself has to look where a page comes from."""
    assert refusal(server, origin="https://evil.example")[0] == 403
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    rebound = upgrade | {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Host": "evil.example"}
    assert server.http.get("/v1/realtime", headers=rebound).status_code == 403
    assert refusal(server, "?model=whisper-1")[0] == 404
    assert refusal(server, "?intent=conversation")[0] == 400
    assert server.http.get("/v1/realtime").status_code == 404
    with opened(server, origin=server.url) as socket:
        assert json.loads(socket.recv())["type"] == "session.created"


def test_a_key_is_a_header_or_a_subprotocol(loaded):
    with running(loaded(), api_key="secret") as server:
        address = server.url.replace("http", "ws") + "/v1/realtime"
        assert refusal(server)[0] == 401
        assert refusal(server, additional_headers={"Authorization": "Bearer wrong"})[0] == 401
        with opened(server, additional_headers={"Authorization": "Bearer secret"}) as socket:
            socket.recv()
        with connect(address, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as socket:
            assert socket.subprotocol == "realtime" and socket.recv()
        with pytest.raises(InvalidStatus):
            connect(address, subprotocols=["realtime", "openai-insecure-api-key.other"])


def test_a_text_model_hears_nothing(loaded):
    with running(loaded("text")) as server:
        assert refusal(server)[0] == 400


def test_too_many_sessions(server):
    sockets = [opened(server) for _ in range(SESSIONS)]
    assert refusal(server)[0] == 429
    for socket in sockets:
        socket.close()
    time.sleep(0.2)
    with opened(server) as socket:
        socket.recv()


def test_a_client_that_leaves_leaves_nothing(server, samples):
    for _ in range(3):
        socket = opened(server)
        configure(socket)
        append(socket, samples)
        socket.socket.close()  # without a word
    assert left_alone(server)


def test_a_server_that_stops_hears_the_rest(samples):
    with running() as server:
        with opened(server) as socket:
            configure(socket)
            append(socket, samples[:40_000])
            time.sleep(0.2)
            server.server.stop()
            events = []
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    events.append(json.loads(socket.recv(timeout=30)))
        assert closed.value.rcvd.code == 1012
        assert [event["transcript"] for event in events if event["type"] == DONE] == LIST[:1]
