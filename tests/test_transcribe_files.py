"""``mlx_phi4.transcribe`` as a person runs it: files, outputs, bad input, interruption, several processes."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from interrupting import pressed
from ranks import launch
from samples import ScriptedPool
from test_transcribe import RATE, said, tones

from mlx_phi4.commands.transcribe import command
from mlx_phi4.distributed import join
from mlx_phi4.errors import Phi4Error
from mlx_phi4.generation import pool
from mlx_phi4.ranks.meeting import Launch
from mlx_phi4.ranks.star import Ranks
from mlx_phi4.transcription.files import transcribe_files
from mlx_phi4.transcription.outputs import find_recordings
from mlx_phi4.transcription.records import FOLDER, record_of
from mlx_phi4.transcription.transcript import FORMATS, Transcript

PROGRAM = [sys.executable, "-m", "mlx_phi4", "transcribe"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in; outputs go there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(run_command, checkpoint):
    """A function (arguments) -> (exit code, stdout, stderr), with the reduced random model."""
    return partial(run_command, command, "--model", checkpoint())


@pytest.fixture
def batches(monkeypatch):
    """Answers without a model: each piece says how long it is. The sizes of the batches that were asked for."""
    sizes = []

    def answer(request, options):
        return said(f"{round(len(request.audios[0].features) / 100)} seconds")

    scripted = ScriptedPool(answer)
    monkeypatch.setattr(pool, "AnswerPool", scripted)
    step = scripted.step
    scripted.step = lambda: sizes.append(len(scripted)) or step()
    return sizes


def record(path, lengths=(0.5,)):
    """A recording with tones of these seconds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tones(lengths), RATE)
    return path


def lines(err):
    """The lines of standard error, without the summary's seconds."""
    return [line.partition("; ")[0] for line in err.splitlines()]


def files(folder):
    """All files in a folder but for the records of what made the outputs."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.parent.name != FOLDER]
    return sorted(str(path.relative_to(folder)) for path in paths)


def test_each_file_gets_its_text(run, here, batches):
    record("talk.wav", (0.5, 2.0))
    code, out, err = run("talk.wav")
    assert (code, out) == (0, "")
    assert lines(err) == ["talk.wav: done, 4.6 s of audio in 2 segments", "1 file, 1 done"]
    assert Path("talk.txt").read_text().splitlines() == ["1 seconds", "2 seconds"]


def test_all_formats_in_a_folder_of_their_own(run, here, batches):
    record("in/talk.flac")
    assert run("in", "--format", "all", "--output-dir", "out/deep", "--quiet") == (0, "", "")
    assert files("out") == sorted(f"deep/talk.{format}" for format in FORMATS)
    transcript = Transcript.from_json(Path("out/deep/talk.json").read_text())
    assert transcript.source == "in/talk.flac" and transcript.segments[0].text == "1 seconds"
    assert Path("out/deep/talk.srt").read_text() == transcript.to_srt()


def test_folders_are_searched_and_each_recording_is_taken_once(run, here, batches):
    for name in ("in/b.WAV", "in/a.ogg", "in/sub/a.wav", "in/._a.ogg", "in/.trash/c.wav"):
        record(name)
    Path("in/notes.txt").write_text("no recording")
    Path("in/link.ogg").symlink_to("a.ogg")
    code, _, err = run("in", "in/a.ogg", "-o", "out")
    assert code == 0 and files("out") == ["a.txt", "b.txt"] and lines(err)[-1] == "2 files, 2 done"
    code, _, err = run("in", "--recursive", "-o", "out")
    assert code == 0 and files("out") == ["a.txt", "b.txt", "sub/a.txt"]
    assert lines(err)[-1] == "3 files, 1 done, 2 done before"


def test_finished_outputs_are_kept(run, here, batches):
    record("a.wav"), record("b.wav")
    assert run("a.wav", "-f", "all")[0] == 0
    Path("a.txt").write_text("mine")
    code, _, err = run("a.wav", "b.wav", "-f", "all", "--model", "/no/such/model", "--overwrite")
    assert code == 2 and Path("a.txt").read_text() == "mine"  # nothing goes before something else is there
    code, _, err = run("a.wav", "b.wav", "-f", "all")
    assert code == 0 and Path("a.txt").read_text() == "mine"
    assert lines(err)[0] == "a.wav: done before and changed since (--overwrite does it again)"
    Path("a.vtt").unlink()  # as an interruption between two formats leaves it
    code, _, err = run("a.wav", "b.wav", "-f", "all")
    assert code == 1 and "a.txt is there" in err and not Path("a.vtt").exists() and Path("a.txt").read_text() == "mine"
    Path("a.txt").unlink()
    assert run("a.wav", "b.wav", "-f", "all")[0] == 0
    assert Path("a.vtt").exists() and Path("a.txt").read_text() == "1 seconds\n"
    Path("a.txt").write_text("mine")
    assert run("a.wav", "--overwrite")[0] == 0 and Path("a.txt").read_text() == "1 seconds\n"


def test_what_is_done_before_needs_no_model(run, here, batches, monkeypatch):
    record("a.wav")
    run("a.wav")
    monkeypatch.setattr("mlx_phi4.transcription.files.model_and_processor", None)
    code, _, err = run("a.wav")
    assert code == 0 and lines(err) == [
        "a.wav: done before (--overwrite does it again)",
        "1 file, 0 done, 1 done before",
    ]


@pytest.mark.parametrize(
    "other",
    [
        ("--task", "translate"),
        ("--task", "translate", "--to", "fr"),
        ("--context", "Okonkwo"),
        ("--clip-timestamps", "0,1"),
        ("--segment-seconds", "20"),
        ("--temperatures", "0"),
        ("--seed", "7"),
        ("--max-tokens", "5"),
    ],
)
def test_what_another_job_made_is_not_taken_for_this_one(run, here, batches, other):
    """A translation is no transcript: only what the very same job made counts as done."""
    record("a.wav")
    assert run("a.wav")[0] == 0
    code, _, err = run("a.wav", *other)
    assert code == 0 and "1 done;" in err and "a.txt, which another job had made" in err
    assert "1 done before" in run("a.wav", *other, "--batch-size", "3")[2]  # which changes the speed, not the text
    assert "which another job had made" in run("a.wav")[2]


def test_another_recording_model_or_an_empty_file_is_not_done_before(run, here, batches, checkpoint):
    record("one/a.wav"), record("two/a.wav", (0.5, 2.0))
    assert run("one/a.wav")[0] == 0
    code, _, err = run("two/a.wav")
    assert code == 0 and "which another job had made" in err and Path("a.txt").read_text() == "1 seconds\n2 seconds\n"
    copy = here / "model"
    shutil.copytree(checkpoint(), copy)
    assert "which another job had made" in run("two/a.wav", "--model", copy)[2]
    assert "1 done before" in run("two/a.wav", "--model", copy)[2]
    os.utime(copy / "config.json", ns=(1, 1))  # the folder holds other weights now
    assert "1 done;" in run("two/a.wav", "--model", copy)[2]
    Path("two/a.wav").rename("two/b.wav")  # the same recording by another name, and nothing there yet
    assert "1 done;" in run("two/b.wav", "--model", copy)[2]
    Path("a.txt").write_bytes(b"")
    Path("two/b.wav").rename("two/a.wav")
    assert "1 done;" in run("two/a.wav", "--model", copy)[2] and Path("a.txt").stat().st_size


def test_what_this_program_did_not_write_is_not_replaced_unasked(run, here, batches):
    record("a.wav"), record("b.wav")
    Path("a.txt").write_text("a shopping list")
    code, _, err = run("a.wav", "b.wav")
    assert code == 1 and Path("a.txt").read_text() == "a shopping list" and Path("b.txt").exists()
    assert "error: a.wav: a.txt is there and is not known to be of this program's making; --overwrite" in err
    record_of(Path("b.txt")).write_text("{")  # a spoiled record says nothing
    assert run("b.wav")[0] == 1
    assert run("a.wav", "b.wav", "--overwrite")[0] == 0 and Path("a.txt").read_text() == "1 seconds\n"


def test_outputs_go_through_links_and_devices(run, here, batches):
    """Renaming over them would replace the link instead of what it names, or fail for a device."""
    record("a.wav"), record("b.wav")
    (here / "elsewhere").mkdir()
    Path("a.txt").symlink_to("elsewhere/text.txt")
    Path("b.txt").symlink_to("/dev/null")
    assert run("a.wav", "b.wav")[0] == 0
    assert Path("a.txt").is_symlink() and Path("elsewhere/text.txt").read_text() == "1 seconds\n"
    assert Path("b.txt").is_symlink() and not Path("/dev/null").is_file()


def test_places_where_nothing_can_be_written(run, here, batches):
    """Each of these was a traceback, or told only after the work."""
    record("a.wav")
    for folder in ("circle", "taken", "spoiled"):
        Path(folder).mkdir()
    Path("circle/a.txt").symlink_to("b.txt"), Path("circle/b.txt").symlink_to("a.txt")
    Path("taken/a.txt").mkdir()
    Path("spoiled", FOLDER).touch()
    assert run("a.wav", "-o", "circle")[0] == 1 and Path("circle/a.txt").is_symlink()
    code, _, err = run("a.wav", "-o", "taken", "--model", "/no/such/model")
    assert code == 2 and "taken/a.txt is a folder" in err
    code, _, err = run("a.wav", "-o", "spoiled")
    assert code == 1 and f"spoiled/{FOLDER} is not a folder" in err and files("spoiled") == [FOLDER]


def test_texts_are_shown_where_somebody_looks(run, here, batches, monkeypatch):
    record("a.wav"), record("b.wav")
    assert "1 seconds\na.wav: done, " in run("a.wav", "b.wav", "--verbose", "-o", "out")[2]
    assert "1 seconds" not in run("a.wav", "-o", "again")[2]
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    err = run("a.wav", "-f", "all", "-o", "more")[2]
    assert "1 seconds\n" in err and "; written to more/a.txt, .srt, .vtt, .tsv, .json\n" in err


def test_names_do_not_reach_a_terminal_as_commands(run, here, batches):
    record("a\x1b[31m.wav")
    err = run("a\x1b[31m.wav", "none\x1b]0;title\x07.wav")[2]
    assert "\x1b" not in err and "\x07" not in err and "a\ufffd[31m.wav: done" in err


def test_habits_of_mlx_whisper(run, here, batches):
    record("a.wav")
    assert run("--verbose", "a.wav", "--output_dir", "out", "--output_format", "srt", "--max_line_width", 40)[0] == 0
    assert run("a.wav", "--verbose", "False", "--output-name", "b", "--output-format", "vtt")[0] == 0
    assert files(here) == ["a.wav", "b.vtt", "out/a.srt"]
    code, _, err = run("a.wav", "--language", "en")
    assert code == 2 and "--to names that of a translation" in err
    code, _, err = run("a.wav", "--word_timestamps", "True")
    assert code == 2 and "--segment-seconds" in err and len(err.splitlines()) == 1


def test_one_bad_file_stops_no_other(run, here, batches):
    record("in/a.wav"), record("in/d.wav"), record("in/long.wav", (0.5, 0.5))
    Path("in/b.wav").write_bytes(b"RIFF neither sound nor length")
    Path("in/c.mp3").touch()
    cut = Path("in/long.wav").read_bytes()
    Path("in/long.wav").write_bytes(cut[: len(cut) // 2])
    soundfile.write("in/nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    code, out, err = run("in", "none.wav", "-o", "out")
    assert (code, out) == (1, "") and files("out") == ["a.txt", "d.txt"]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5 and lines(err)[-1] == "7 files, 2 done, 5 failed"
    for name, why in {
        "none.wav": "no such file",
        "in/b.wav": "",
        "in/c.mp3": "is empty",
        "in/long.wav": "is truncated",
        "in/nan.wav": "NaN",
    }.items():
        assert sum(line.startswith(f"error: {name}: ") and why in line for line in errors) == 1, (name, errors)


def test_a_file_that_surprises_a_library_stops_no_other(run, here, batches, monkeypatch):
    from mlx_phi4.audio import reader

    def surprised(source, open_recording=reader.open_recording, **options):
        if "a.wav" in str(source):
            raise IndexError("list index\nout of range")
        return open_recording(source, **options)

    record("a.wav"), record("b.wav")
    monkeypatch.setattr(reader, "open_recording", surprised)
    code, _, err = run("a.wav", "b.wav")
    assert code == 1 and lines(err)[0] == "error: a.wav: IndexError: list index out of range"
    assert Path("b.txt").exists()


def test_nothing_but_bad_arguments(run, here):
    (here / "empty").mkdir()
    (here / "deep/deeper").mkdir(parents=True)
    code, out, err = run("none.wav", "empty", "deep", "--model", "/no/such/model")
    assert (code, out) == (1, "")
    assert lines(err) == [
        "error: none.wav: no such file or folder",
        "error: empty: holds no recordings",
        "error: deep: holds no recordings",
        "3 files, 0 done, 3 failed",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written(run, here, batches):
    record("a.wav").chmod(0)
    (here / "locked").mkdir(mode=0o555)
    assert "Permission denied" in run("a.wav")[2]
    code, _, err = run("a.wav", "-o", "locked")
    assert code == 2 and "locked" in err


def test_outputs_that_would_meet_are_refused_before_any_work(run, here):
    record("a/talk.wav"), record("b/talk.wav"), record("talk.flac"), record("c/x.wav")
    code, _, err = run("a", "b", "--model", "/no/such/model")
    assert code == 2 and "a/talk.wav and b/talk.wav would both be written to talk.txt" in err
    Path("talk.txt").touch(), Path("talk.flac").rename("talk.txt")
    code, _, err = run("a", "talk.txt", "--model", "/no/such/model")
    assert code == 2 and "talk.txt is a recording" in err
    assert files(here) == ["a/talk.wav", "b/talk.wav", "c/x.wav", "talk.txt"]


def test_names_of_outputs(run, here, batches):
    record("a/talk.wav"), record("b/talk.wav")
    assert run("a", "b", "--output-template", "{parent}-{filename}")[0] == 0
    assert run("a", "b", "--output-template", "{index:>02}/{filename}.en", "-o", "out")[0] == 0
    assert files(here)[:2] == ["a-talk.txt", "a/talk.wav"] and files("out") == ["01/talk.en.txt", "02/talk.en.txt"]
    for template in ("{name}", "{filename", "", "{parent}/", "{filename.__class__}", "{}", "{index:{x}}"):
        code, _, err = run("a", "--output-template", template)
        assert code == 2 and "output_template" in err and len(err.splitlines()) == 1, template


def test_standard_input_goes_to_standard_output(run, here, batches):
    data = record("talk.wav").read_bytes()
    Path("talk.wav").unlink()
    code, out, err = run("-", stdin=data)
    assert (code, out) == (0, "1 seconds\n") and files(here) == []
    assert json.loads(run("-", "-f", "json", "--quiet", stdin=data)[1])["segments"]
    assert run("-", "-o", ".", stdin=data)[0] == 0 and files(here) == ["audio.txt"]
    assert run("-", "-o", ".", stdin=data)[0] == 0  # what came through a pipe before was another recording
    Path("audio.txt").write_text("mine")
    assert run("-", "-o", ".", stdin=data)[0] == 1 and Path("audio.txt").read_text() == "mine"
    code, out, err = run("-", stdin=b"")
    assert code == 1 and "error: standard input: is empty\n" in err


def test_without_a_standard_input_files_are_read_and_dash_is_empty(checkpoint, here):
    """As a service is started: a file that got number 0 instead would not be opened by MLX."""
    record("talk.wav")
    closed = ["sh", "-c", '"$@" <&-', "sh", *PROGRAM, "--model", str(checkpoint())]
    done = subprocess.run([*closed, "talk.wav", "-", "-o", "out"], capture_output=True, text=True)
    assert (done.returncode, files("out")) == (1, ["talk.txt"]), done.stderr
    assert "error: standard input: is empty\n" in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_in_a_folder_is_not_waited_for(here):
    """A scan of a folder must not hang because nobody ever writes to a pipe in it."""
    record("in/talk.wav")
    os.mkfifo("in/pipe.wav")
    Path("in/gone.wav").symlink_to("nowhere.wav")  # still found, and then told as one that is missing
    found, problems = find_recordings(["in"])
    assert [each.path.name for each in found] == ["gone.wav", "talk.wav"] and not problems


def test_texts_on_standard_output(run, here, batches):
    record("a.wav"), record("b.wav", (2.0,))
    assert run("a.wav", "b.wav", "--stdout", "--quiet") == (0, "1 seconds\n2 seconds\n", "")
    assert files(here) == ["a.wav", "b.wav"]


def test_a_pipe_is_read_once_and_is_new_each_time(run, here, batches, monkeypatch):
    """As in ``mlx_phi4.transcribe <(ffmpeg ...)``; the bar on a terminal must not read it first."""
    data = record("talk.wav").read_bytes()
    os.mkfifo("pipe")
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    for _ in range(2):
        writer = threading.Thread(target=lambda: Path("pipe").write_bytes(data))
        writer.start()
        code, _, err = run("pipe")
        writer.join()
        assert code == 0 and "1 file, 1 done;" in err, err
    assert Path("pipe.txt").read_text() == "1 seconds\n" and batches == [1, 1]


def test_names_that_are_not_unicode(run, here, batches):
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        record("talk.wav").rename(name)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert run(name, "-f", "json")[0] == 0
    assert Transcript.from_json(next(here.glob("*.json")).read_text("utf-8")).source == "caf\ufffd.wav"


def test_pieces_of_several_files_share_batches(run, here, batches):
    for number in range(5):
        record(f"{number}.wav", (0.3,) * (1 + number % 2))
    assert run(*[f"{number}.wav" for number in range(5)], "--batch-size", "4", "--jobs", "3")[0] == 0
    assert batches == [4, 3]
    assert [len(Path(f"{number}.txt").read_text().splitlines()) for number in range(5)] == [1, 2, 1, 2, 1]


def test_a_full_disk_fails_its_file_and_leaves_nothing_half_written(run, here, batches, monkeypatch):
    write = Path.write_text

    def full(self, text, **options):
        if "a.srt" in self.name:
            write(self, text[: len(text) // 2], **options)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, text, **options)

    record("a.wav"), record("b.wav")
    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = run("a.wav", "b.wav", "-f", "all", "-o", "out")
    assert code == 1 and lines(err)[0] == "error: a.wav: No space left on device: out/a.srt"
    assert files("out") == sorted(f"b.{format}" for format in FORMATS)
    assert lines(err)[-1] == "2 files, 1 done, 1 failed"


def test_silence_is_a_warning_and_its_files_are_written(run, here):
    soundfile.write("quiet.wav", np.zeros(2 * RATE), RATE)
    code, _, err = run("quiet.wav", "-f", "all", "-o", "out")
    assert code == 0 and lines(err)[0] == "warning: quiet.wav: no speech found" and len(files("out")) == len(FORMATS)


def test_a_bar_on_a_terminal(run, here, batches, monkeypatch):
    record("a.wav"), record("b.wav")
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    code, _, err = run("a.wav", "b.wav", "none.wav")
    assert code == 1 and "/2 files" in err and "s of audio [" in err and " left]" in err
    assert "error: none.wav: no such file or folder\n" in err and "3 files, 2 done, 1 failed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--segment-seconds", "60"), "segment_seconds is 60"),
        (("--jobs", "0"), "jobs is 0"),
        (("--to", "fr"), "--to goes with"),
        (("--temperatures", "0,warm"), "temperatures"),
        (("--clip-timestamps", "5,3"), "clip_timestamps"),
        (("--max-line-width", "40"), "--max-line-width goes with"),
        (("--max-line-width", "0", "--format", "srt"), "max_line_width is 0"),
        (("--stdout", "--format", "all"), "one format"),
        (("--output-dir", "a.wav"), "not a folder"),
        (("--format", "doc"), "--format"),
        (("--task", "sing"), "--task"),
        (("--model", "/no/such/model"), "no such model folder"),
    ],
)
def test_bad_options_get_one_line(run, here, arguments, message):
    record("a.wav")
    code, out, err = run("a.wav", *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err, err
    assert len(err.splitlines()) == 1 and files(here) == ["a.wav"]


def test_an_interruption_leaves_what_is_finished_and_nothing_half_written(checkpoint, here):
    record("1.wav"), record("2.wav"), record("3.wav", (0.2,) * 40)
    arguments = ["--model", str(checkpoint()), "--temperatures", "0", "--batch-size", "1", "-f", "json", "-o", "out"]
    process = subprocess.Popen(
        [*PROGRAM, "1.wav", "2.wav", "3.wav", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not Path("out/2.json").exists() and process.poll() is None:
        time.sleep(0.01)
    out, err = pressed(process)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("stopped: 2 of 3 files are done") and len(err.splitlines()) == 3
    assert files("out") == ["1.json", "2.json"]
    assert all(Transcript.from_json(path.read_text()).segments for path in Path("out").glob("*.json"))


def test_two_processes_share_a_folder_and_give_what_one_gives(checkpoint, here):
    for number in range(5):
        record(f"in/{number}.wav", (0.2,) * (1 + number % 3))
    Path("in/bad.wav").write_bytes(b"no sound")
    options = {"format": "json", "temperatures": (0.0,), "max_tokens": 8}
    alone = transcribe_files(["in"], checkpoint(), output_dir="one", **options)
    assert (alone.done, alone.failed) == (5, 1)
    Path("two").mkdir()
    for done_before in (Path("4.json"), record_of(Path("4.json"))):
        (Path("two") / done_before).parent.mkdir(exist_ok=True)
        (Path("two") / done_before).write_bytes((Path("one") / done_before).read_bytes())
    arguments = ["in", "--model", checkpoint(), "-f", "json", "--temperatures", "0", "-m", "8", "-o", "two"]
    ended = launch("transcribe", *arguments)
    assert [code for code, _, _ in ended] == [1, 1]
    assert files("two") == [f"{number}.json" for number in range(5)]
    for number in range(5):
        assert Path(f"two/{number}.json").read_text() == Path(f"one/{number}.json").read_text()
    said = [line for _, _, err in ended for line in lines(err)]
    for number in range(4):
        assert sum(line.startswith(f"in/{number}.wav: done, ") for line in said) == 1
    assert all(any(": done, " in line for line in lines(err)) for _, _, err in ended)  # both had work
    assert sum("files, " in line for line in said) == 1
    assert lines(ended[0][2])[-1] == "6 files, 4 done, 1 done before, 1 failed"


def test_one_process_of_a_launcher_is_alone(monkeypatch, here):
    """``mlx.launch -n 1`` writes an empty file of hosts, which MLX refuses."""
    Path("hosts.json").write_text("\n")
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", "hosts.json")
    assert join("data").size == 1


def test_standard_input_is_not_shared_out(monkeypatch, here, checkpoint):
    ranks = Ranks(Launch(1, 2, ("", 0), ()), "data")
    monkeypatch.setattr("mlx_phi4.transcription.files.join", lambda mode: ranks)
    with pytest.raises(Phi4Error, match="standard input"):
        transcribe_files(["-"], checkpoint())


def test_arguments_without_recordings_are_named(here):
    record("a.wav")
    found, problems = find_recordings(["a.wav", "./a.wav", "b.wav"])
    assert [each.name for each in found] == ["a.wav"] and problems == ["b.wav: no such file or folder"]
