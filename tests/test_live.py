"""Text while somebody speaks: what a file of the same sound holds, soon after each pause, whatever brings the sound."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import srt
import webvtt
from microphones import sounddevice

import mlx_phi4
from mlx_phi4 import Phi4Error, live, transcribe
from mlx_phi4.audio.segmentation import Segmenter
from mlx_phi4.commands import transcribe as command
from mlx_phi4.commands.repl import Repl
from mlx_phi4.generation.chat import Chat
from mlx_phi4.transcription.live_events import Behind, Failed, Heard, Provisional, SpeechStarted, SpeechStopped

ROOT = Path(__file__).parents[1]
MEDIA = ROOT / "examples" / "media"
LIST = ["four zero seven two", "open the window", "nine one one five three", "stop the music"]
PROGRAM = [sys.executable, "-m", "mlx_phi4", "transcribe", "--live", "-", "--model", "phi4-tiny"]
sys.path.insert(0, str(ROOT / "benchmarks"))
from live import run_live  # noqa: E402, what the benchmark runs for ten minutes


@pytest.fixture(scope="module")
def tiny():
    return mlx_phi4.load("phi4-tiny")


@pytest.fixture(scope="module")
def sound():
    """The four sentences of list.flac, int16 at 16 kHz."""
    return soundfile.read(MEDIA / "list.flac", dtype="int16")[0]


def hear(tiny, samples, block=1600, rate=16_000, **options):
    """The segments of samples that are fed at once, and all that was told."""
    events = []
    with live(*tiny, rate=rate, told=events.append, **options) as ears:
        for at in range(0, len(samples), block):
            ears.feed(samples[at : at + block])
    return [event.segment for event in events if isinstance(event, Heard)], events


def test_20_seconds_through_a_pipe_at_real_time(sound):
    """Ten minutes: ``benchmarks/live.py``. Timings of a busy machine are no test; that text comes meanwhile is."""
    command, question = (soundfile.read(MEDIA / f"{name}.flac", dtype="int16")[0] for name in ("command", "question"))
    pause = np.zeros(9_600, np.int16)
    samples = np.concatenate([sound, pause, command, pause, question, pause, command, pause, question, pause, command])
    found = run_live(samples[: 20 * 16_000])
    said = [segment["text"] for segment in found.segments]
    assert said[:8] == [*LIST, "turn on the radio", "what shape is it", "turn on the radio", "what shape is it"]
    assert found.provisional >= len(said)  # one before each
    first = found.segments[0]["end"] + found.latencies[0]
    assert first < 20  # seconds of sound that were still being fed


@pytest.mark.parametrize("block", [160, 1234, 40_000])
def test_the_text_and_the_times_are_those_of_the_file(tiny, sound, block):
    file = transcribe((sound, 16_000), tiny[0], processor=tiny[1])
    segments, events = hear(tiny, sound, block)
    assert [segment.text for segment in segments] == [segment.text for segment in file.segments] == LIST
    for ours, theirs in zip(segments, file.segments, strict=True):
        assert ours.start == pytest.approx(theirs.start, abs=0.15) and ours.end == pytest.approx(theirs.end, abs=0.15)
    order = [event for event in events if isinstance(event, (SpeechStarted, SpeechStopped, Heard))]
    for number in range(4):
        mine = [type(event) for event in order if event.number == number]
        assert mine == [SpeechStarted, SpeechStopped, Heard]


def test_segments_are_kept_where_nobody_is_told(tiny, sound):
    with live(*tiny, rate=16_000) as ears:
        ears.feed(sound.astype(np.float32) / 32768)
        ears.feed(np.zeros(0, np.float32))
    assert [segment.text for segment in ears.segments] == LIST and ears.text == " ".join(LIST)
    assert ears.seconds == len(sound) / 16_000 and ears.behind == 0


def test_other_rates_and_channels(tiny):
    for rate in (8_000, 44_100):
        import soxr

        samples, _ = soundfile.read(MEDIA / "list.flac", dtype="float32")
        samples = soxr.resample(samples, 16_000, rate)
        segments, _ = hear(tiny, np.stack([samples, samples], axis=1), rate // 10, rate)
        expected = transcribe((samples, rate), tiny[0], processor=tiny[1]).segments
        assert [segment.text for segment in segments] == [segment.text for segment in expected]


def test_what_is_open_can_be_ended(tiny, sound):
    """Without a pause: a client that says that it is done wants its text."""
    events = []
    with live(*tiny, told=events.append) as ears:
        ears.feed(sound[:40_000])  # within the pause after the first sentence, and before it ends
        ears.flush()
        until = time.monotonic() + 90
        while not any(isinstance(event, Heard) for event in events) and time.monotonic() < until:
            time.sleep(0.01)
        assert [event.segment.text for event in events if isinstance(event, Heard)] == LIST[:1]
        ears.feed(sound[40_000:])
    assert [event.segment.text for event in events if isinstance(event, Heard)] == LIST


def test_noise_before_the_first_word_is_no_word():
    """Nothing quieter was heard yet, so it is held back, and what it is turns out with the first word."""
    rng, rate = np.random.default_rng(0), 8_000
    noise = (rng.standard_normal(3 * rate) * 0.003).astype(np.float32)
    word = noise[:rate] + (0.2 * np.sin(np.arange(rate) / 3)).astype(np.float32)
    samples, segmenter, found = np.concatenate([noise, word, noise]), Segmenter(rate, 0, 30.0, 0.5, live=True), []
    for at in range(0, len(samples), rate // 10):
        segmenter.add(samples[at : at + rate // 10])
        found += segmenter.finished()
    found += segmenter.finished(last=True)
    assert [(piece.start_seconds, piece.end_seconds) for piece in found] == [pytest.approx((2.8, 4.2), abs=0.05)]


def test_no_sample_is_lost_at_cuts():
    """A voice without pauses: pieces follow each other sample by sample, and none is longer than asked for."""
    rate = 8_000
    time_of = np.arange(20 * rate) / rate
    voice = (0.2 * np.sin(2 * np.pi * 300 * time_of) * (1.2 + np.sin(2 * np.pi * 3 * time_of))).astype(np.float32)
    segmenter, found = Segmenter(rate, 0, 4.0, 0.5, live=True), []
    for at in range(0, len(voice), rate // 10):
        segmenter.add(voice[at : at + rate // 10])
        found += segmenter.finished()
    found += segmenter.finished(last=True)
    assert np.array_equal(np.concatenate([piece.samples for piece in found]), voice)
    assert all(len(piece.samples) <= 4 * rate for piece in found) and len(segmenter.held) < 60


def test_falling_behind_is_told_and_made_up_for_by_larger_batches(tiny, sound, monkeypatch):
    from mlx_phi4.generation.pool import AnswerPool

    rows, step = [], AnswerPool.step

    def slow(self):
        rows.append(len(self))
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(AnswerPool, "step", slow)
    segments, events = hear(tiny, np.concatenate([sound] * 2), batch_size=4)
    assert [segment.text for segment in segments] == LIST * 2  # nothing is lost
    late = [event.seconds for event in events if isinstance(event, Behind)]
    assert max(late) > 2 and late[-1] == 0 and max(rows) >= 3


def test_feeding_waits_for_memory(tiny, sound, monkeypatch):
    """Whoever brings more than a full batch is held up: an hour fed at once is not an hour in memory."""
    held = []
    with live(*tiny, batch_size=1, told=lambda event: None) as ears:
        for at in range(0, 2 * len(sound), 8_000):
            ears.feed(np.concatenate([sound] * 2)[at : at + 8_000])
            held.append(ears._held)
    assert max(held) < 6 + 1  # one piece of six seconds, and what was fed last


def test_a_piece_that_fails_is_told_and_the_rest_goes_on(tiny, sound, monkeypatch):
    from mlx_phi4.transcription.decoding import PiecesInHand

    judge, count = PiecesInHand._judge, []

    def fail_once(self, slot, answer):
        count.append(slot)
        if len(count) == 1:
            slot.finish(ValueError("no such luck"))
        else:
            judge(self, slot, answer)

    monkeypatch.setattr(PiecesInHand, "_judge", fail_once)
    segments, events = hear(tiny, sound)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert [segment.text for segment in segments] == LIST[: failed.number] + LIST[failed.number + 1 :]
    count.clear()
    with pytest.raises(ValueError, match="no such luck"), live(*tiny) as ears:  # nobody else would know
        ears.feed(sound)


def test_bad_arguments(tiny):
    for options, said in (
        ({"rate": 4000}, "rate is 4000"),
        ({"task": "summarize"}, "takes a recording as a whole"),
        ({"clip_timestamps": "1,2"}, "recordings that are there already"),
        ({"told": 3}, "told is 3"),
        ({"batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(Phi4Error, match=said):
            live(*tiny, **options)
    ears = live(*tiny)
    with pytest.raises(Phi4Error, match="inside of the block"):  # nobody would ever take it
        ears.feed(np.zeros(100, np.float32))
    for wrong in ([0.5, np.nan], [40.0, 2.0], ["a", "b"]):
        with pytest.raises(Phi4Error), live(*tiny) as ears:
            ears.feed(np.array(wrong))


def encoded(form, samples=None):
    """list.flac, or samples, as another program would write it to a pipe."""
    samples = soundfile.read(MEDIA / "list.flac", dtype="int16")[0] if samples is None else samples
    if form == "raw":
        return samples.tobytes()
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=form, subtype="PCM_24" if form == "WAV" else None)
    data = bytearray(file.getvalue())
    if form == "WAV":  # a program that writes to a pipe cannot know how long it will be
        data[4:8] = data[data.index(b"data") + 4 : data.index(b"data") + 8] = b"\xff\xff\xff\xff"
    return bytes(data)


@pytest.mark.parametrize("form", ["raw", "WAV", "FLAC", "OGG", "MP3"])
def test_standard_input_in_every_form(run_command, form):
    code, out, error = run_command(
        command.command, "--live", "-", "--model", "phi4-tiny", "--quiet", stdin=encoded(form)
    )
    assert (code, out.splitlines(), error) == (0, LIST, "")


def test_every_format_grows_by_whole_segments(run_command):
    def written(form):
        given = ("--live", "-", "--model", "phi4-tiny", "-f", form)
        code, out, error = run_command(command.command, *given, stdin=encoded("raw"))
        assert code == 0 and "4 segments" in error and "raw, 16 bits, 1 channel, 16000 Hz" in error
        return out

    assert [cue.content for cue in srt.parse(written("srt"))] == LIST
    assert [cue.index for cue in srt.parse(written("srt"))] == [1, 2, 3, 4]
    assert [caption.text for caption in webvtt.from_buffer(io.StringIO(written("vtt")))] == LIST
    rows = [json.loads(line) for line in written("jsonl").splitlines()]
    assert [row["text"] for row in rows] == LIST and all(row["end"] > row["start"] for row in rows)
    assert len(written("tsv").splitlines()) == 5


def test_bad_sound_is_one_sentence(run_command):
    noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    for stdin, arguments, said in (
        (b"", (), "standard input: is empty"),
        (b"what a day\n" * 99, (), "is text, expected sound"),
        (noise, (), "is no sound in a known format"),
        (encoded("WAV"), ("--rate", 48_000), "its sound says 16000 Hz, and --rate says 48000"),
        (encoded("WAV")[:20], (), "wav without samples"),
        (b"fLaC" + noise, (), "not sound that can be read"),
        (encoded("raw"), ("--rate", 5), "sample rate is 5 Hz"),
        (encoded("raw"), ("--task", "summarize"), "takes a recording as a whole"),
        (encoded("raw"), ("--output-dir", "x"), "--output-dir go without --live"),
        (encoded("raw"), ("-f", "json"), "format is 'json', with --live expected"),
    ):
        code, out, error = run_command(command.command, "--live", "-", "--model", "phi4-tiny", *arguments, stdin=stdin)
        (line,) = [each for each in error.splitlines() if each.startswith("error: ")]
        assert code == 2 and not out and said in line, (line, said)
    assert "error: Missing argument" in run_command(command.command, "--model", "phi4-tiny")[2]
    assert "go with --live" in run_command(command.command, "--rate", 9, "x.wav")[2]


def _press_until(child: subprocess.Popen, seen: threading.Event) -> None:
    while child.poll() is None:
        os.kill(child.pid, signal.SIGINT)
        if seen.wait(10):
            return


def test_ctrl_c_ends_with_everything_written(sound):
    """Also what was said right before it, and is still being said."""
    with subprocess.Popen(PROGRAM, stdin=-1, stdout=-1, stderr=-1, text=False, cwd=ROOT) as child:
        child.stdin.write(sound[: 5 * 16_000].tobytes())
        child.stdin.flush()
        lines = [child.stdout.readline().decode().strip() for _ in range(2)]
        child.stdin.write(sound[5 * 16_000 : 7 * 16_000].tobytes())
        child.stdin.flush()
        while b"nine" not in child.stderr.readline():
            pass
        # MLX's CPU backend compiles kernels by programs that it waits for, and a Ctrl-C meanwhile is lost: press again
        noted, seen = b"", threading.Event()
        presser = threading.Thread(target=lambda: _press_until(child, seen))
        presser.start()
        while b"is being heard" not in noted and (line := child.stderr.readline()):
            noted += line
        seen.set()
        presser.join()
        out, error = child.stdout.read().decode(), (noted + child.stderr.read()).decode()
    assert child.returncode == 0 and "Traceback" not in error
    assert lines == LIST[:2] and out.startswith("nine one one")


def test_the_library_is_not_asked_for_a_pipe(monkeypatch, run_command):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert run_command(command.command, "--live", "-", "--model", "phi4-tiny", stdin=encoded("raw"))[0] == 0
    code, _, error = run_command(command.command, "--live", "--model", "phi4-tiny")
    assert code == 2 and 'pip install "mlx_phi4[live]"' in error


def test_the_microphone_until_it_is_unplugged(monkeypatch, run_command, sound):
    """What was said before is heard to its end."""
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(sound, unplugged=7.7))
    code, out, error = run_command(command.command, "--live", "--model", "phi4-tiny")
    assert code == 2 and out.splitlines()[:3] == LIST[:3]
    assert "listening: Built-in, 16000 Hz" in error and error.count("was it unplugged?") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"absent": True}, "no microphone was found"),
        ({"refused": True}, "the microphone cannot be used: Device unavailable"),
    ],
)
def test_no_microphone_is_one_sentence(monkeypatch, run_command, given, said):
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(**given))
    code, out, error = run_command(command.command, "--live", "--model", "phi4-tiny")
    assert code == 2 and not out and said in error and error.count("error: ") == 1


def test_a_microphone_that_gives_silence_only_is_told(monkeypatch, run_command):
    """On a Mac a program that may not hear is given zeros."""
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(unplugged=6, speed=50))
    _, out, error = run_command(command.command, "--live", "--model", "phi4-tiny")
    assert not out and error.count("nothing but silence: is it muted") == 1


def test_ctrl_c_at_the_microphone(monkeypatch, run_command, sound):
    module = sounddevice(sound)
    monkeypatch.setitem(sys.modules, "sounddevice", module)

    def press():
        until = time.monotonic() + 60
        while time.monotonic() < until and not (module.opened and module.opened[0].at > len(sound)):
            time.sleep(0.01)
        while not module.opened[0].stopped.is_set():  # one that comes while a kernel is compiled is lost
            signal.raise_signal(signal.SIGINT)
            module.opened[0].stopped.wait(5)

    threading.Thread(target=press, daemon=True).start()
    code, out, _ = run_command(command.command, "--live", "--model", "phi4-tiny")
    assert code == 0 and out.splitlines() == LIST and module.opened[0].stopped.is_set()


def test_record_is_a_turn_of_a_chat(tiny, monkeypatch, capsys, tmp_path):
    """A spoken question about a picture: the answer comes at once, and the conversation can be saved."""
    question, _ = soundfile.read(MEDIA / "question.flac", dtype="int16")
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(question, device_rate=None))
    talk = Chat(*tiny, max_tokens=5)
    repl = Repl(talk, quiet=True)
    repl._take(f"/image {MEDIA / 'sign.png'}")
    repl._take("/record 2.5")
    assert capsys.readouterr().out.strip() == "star" and talk.last.mode == "vision-speech"
    repl._take("/undo")
    repl._take("/record")  # no terminal: nobody could press Enter
    repl._take("/record soon")
    error = capsys.readouterr().err
    assert "from the microphone" in error and "takes a terminal" in error and "not soon" in error
    repl._take("/record 0.5")
    repl._take(f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert mlx_phi4.generate(*tiny, saved[:1], max_tokens=5) == talk.turns[-1]["content"]
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice())
    repl._take("/record 0.5")
    assert "nothing but silence was recorded" in capsys.readouterr().err


def test_provisional_lines_come_before_their_segment(tiny, sound):
    events = []
    with live(*tiny, told=events.append) as ears:
        for at in range(0, 3 * 16_000, 1600):
            ears.feed(sound[at : at + 1600])
            time.sleep(0.05)
    first = next(index for index, event in enumerate(events) if isinstance(event, Heard))
    guesses = [event for event in events[:first] if isinstance(event, Provisional)]
    assert guesses and all(guess.number == 0 and guess.text for guess in guesses)


def test_record_ends_with_enter_in_a_terminal(tmp_path):
    """Ctrl-C drops what was said, and the conversation goes on."""
    import pexpect

    (tmp_path / "sounddevice.py").write_text(
        "import sys, soundfile, microphones\n"
        f"samples = soundfile.read({str(MEDIA / 'command.flac')!r}, dtype='int16')[0]\n"
        "sys.modules[__name__] = microphones.sounddevice(samples)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "tests"), str(ROOT)])
    chat = [*PROGRAM[1:3], "chat", "--model", "phi4-tiny", "--stats", "--max-tokens", "9"]
    talk = pexpect.spawn(
        sys.executable, chat, env=os.environ | {"PYTHONPATH": paths, "TERM": "dumb"}, encoding="utf-8", timeout=60
    )
    talk.expect(">>> ")
    talk.sendline("/record")
    talk.expect("recording; Enter ends it")
    time.sleep(0.3)
    talk.sendintr()
    talk.expect("the recording was dropped")
    talk.expect(">>> ")
    talk.sendline("/record")
    talk.expect("recording; Enter ends it")
    time.sleep(0.5)
    talk.sendline("")
    talk.expect("s recorded")
    talk.expect(r"\[speech: prompt")
    talk.expect(">>> ")
    talk.sendline("/attached")
    talk.expect("nothing is attached")
    talk.sendline("/exit")
    talk.expect(pexpect.EOF)
