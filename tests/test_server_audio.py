"""Transcriptions and translations over HTTP: every format, streams, what is refused, rows that are freed."""

import io
import time
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile
import srt
import webvtt
from serving import running

from mlx_phi4.generation.batch import Batch
from mlx_phi4.transcription.transcribe import transcribe

MEDIA = Path(__file__).parents[1] / "examples" / "media"
COMMAND = MEDIA / "command.flac"
SAID = "turn on the radio"


@pytest.fixture(scope="module")
def server():
    with running() as here:
        yield here


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory):
    """The command eight times, with pauses between them."""
    samples, rate = soundfile.read(COMMAND, dtype="float32")
    path = tmp_path_factory.mktemp("long") / "long.flac"
    soundfile.write(path, np.concatenate([samples, np.zeros(rate, np.float32)] * 8), rate)
    return path


def hear(server, path=COMMAND, **options):
    with path.open("rb") as file:
        return server.openai.audio.transcriptions.create(model="phi4-tiny", file=file, **options)


def test_every_format(server):
    answer = hear(server)
    assert (answer.text, answer.usage.seconds) == (SAID, 2)
    assert hear(server, response_format="text") == f"{SAID}\n"
    (cue,) = srt.parse(hear(server, response_format="srt"))
    assert cue.content == SAID and cue.end > cue.start
    (caption,) = webvtt.from_buffer(io.StringIO(hear(server, response_format="vtt")))
    assert caption.text == SAID
    whole = hear(server, response_format="verbose_json", timestamp_granularities=["segment"], language="en")
    (segment,) = whole.segments
    assert (whole.text, segment.text, whole.language) == (SAID, SAID, "english")
    assert 0 <= segment.start < segment.end <= whole.duration < 3
    assert segment.avg_logprob <= 0 and segment.compression_ratio > 0 and segment.no_speech_prob == 0


def test_a_stream_tells_each_segment(server, long_recording):
    events = list(hear(server, long_recording, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1 and events[-1].type == "transcript.text.done"
    expected = transcribe(long_recording, server.loaded[0], processor=server.loaded[1]).text
    assert "".join(deltas) == events[-1].text == expected == hear(server, long_recording).text


def test_a_stream_tells_the_times_of_segments(server):
    path = COMMAND.with_name("list.flac")
    events = list(hear(server, path, stream=True, response_format="verbose_json"))
    segments = [event for event in events if event.type == "transcript.text.segment"]
    whole = hear(server, path, response_format="verbose_json")
    assert [(each.start, each.end, each.text) for each in segments] == [
        (each.start, each.end, each.text) for each in whole.segments
    ]
    assert len(segments) > 1 and events[-1].duration == whole.duration and events[-1].text == whole.text


def test_options_are_heard(server):
    assert hear(server, temperature=0.1, prompt="radio").text
    with COMMAND.open("rb") as file:
        assert server.openai.audio.translations.create(model="phi4-tiny", file=file).text == SAID


def test_other_containers(server, tmp_path):
    samples, rate = soundfile.read(COMMAND, dtype="float32")
    for suffix in ("wav", "mp3", "ogg"):
        soundfile.write(tmp_path / f"a.{suffix}", samples, rate)
        assert hear(server, tmp_path / f"a.{suffix}").text == SAID


def post(server, files=None, path="transcriptions", **data):
    given = {"file": COMMAND.read_bytes()} if files is None else files
    return server.http.post(f"/v1/audio/{path}", files=given, data={"model": "phi4-tiny"} | data)


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"model": "whisper-1"}, "model"),
        ({"model": ""}, "model"),
        ({"model": "phi4-tiny:speech"}, "model"),
        ({"response_format": "docx"}, "response_format"),
        ({"response_format": "srt", "stream": "true"}, "stream"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "-1"}, "temperature"),
        ({"temperature": "1e999"}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"stream": "maybe"}, "stream"),
        ({"language": "tlh"}, "language"),
        ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, "timestamp_granularities[]"),
        ({"timestamp_granularities[]": ["segment", "word"], "response_format": "verbose_json"}, None),
        ({"timestamp_granularities[]": "segment"}, "timestamp_granularities[]"),
        ({"include[]": "logprobs"}, "include[]"),
        ({"chunking_strategy": "auto"}, "chunking_strategy"),
        ({"speed": "2"}, "speed"),
        ({"model": ["phi4-tiny", "phi4-tiny"]}, "model"),
    ],
)
def test_a_wrong_field_is_named(server, data, param):
    response = post(server, **data)
    error = response.json()["error"]
    assert response.status_code == (404 if data == {"model": "whisper-1"} else 400)
    assert param is None or error["param"] == param
    assert hear(server).text == SAID


def test_translations_take_no_language(server):
    assert post(server, path="translations", language="en").json()["error"]["param"] == "language"


@pytest.mark.parametrize("data", [b"", b"hello", b"RIFF\0\0\0\0WAVE", COMMAND.read_bytes()[:3000], b"\0" * 100_000])
def test_uploads_that_are_no_recording(server, data):
    response = post(server, {"file": data})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "file")
    assert "tmp" not in error["message"] and "mlx_phi4-" not in error["message"], error
    stream = post(server, {"file": data}, stream="true")
    assert '"error"' in stream.text and '"param":"file"' in stream.text


FORM = {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{}", {"content-type": "application/json"}),
        (b"", {"content-type": "multipart/form-data"}),
        (b"", FORM),
        (b"hello", FORM),
        (b"--b\r\n\r\n\r\n--b--\r\n", FORM),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--b--\r\n', FORM),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc', FORM),
        (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\xfe\r\n--b--\r\n', FORM),
    ],
)
def test_forms_that_are_none(server, content, headers):
    response = server.http.post("/v1/audio/transcriptions", content=content, headers=headers)
    assert response.status_code == 400 and set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert hear(server).text == SAID


def test_two_files_are_one_too_many(server):
    files = [("file", COMMAND.read_bytes()), ("file", COMMAND.read_bytes())]
    assert post(server, files).status_code == 400
    assert post(server, {"file": COMMAND.read_bytes(), "other": b"x"}).status_code == 400


def test_a_listener_that_leaves_frees_its_rows(server, long_recording, monkeypatch):
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: time.sleep(0.1) or step(self))  # longer than anyone waits
    with pytest.raises(openai.APITimeoutError), long_recording.open("rb") as file:
        impatient = server.openai.with_options(timeout=0.3, max_retries=0)
        impatient.audio.transcriptions.create(model="phi4-tiny", file=file)
    assert server.free(3)
    stream = hear(server, long_recording, stream=True)
    next(iter(stream))
    stream.close()
    assert server.free(3)
    time.sleep(0.3)
    assert server.engine.idle  # no later piece came


def test_a_text_only_model_says_so(loaded):
    with running(loaded("text")) as server:
        assert "text-only" in post(server).json()["error"]["message"]
