"""Evaluation: rates and answers that can be counted by hand, and the command on a model of noise."""

import dataclasses
import errno
import json
import math
import sys
from pathlib import Path

import pytest
import soundfile
from cases import clip, picture
from samples import ScriptedPool

import mlx_phi4
from mlx_phi4 import Phi4Error, Request
from mlx_phi4.commands.evaluate import command
from mlx_phi4.evaluation import speech
from mlx_phi4.evaluation.answers import evaluate_pictures
from mlx_phi4.evaluation.manifest import read_questions
from mlx_phi4.evaluation.speech import evaluate_asr
from mlx_phi4.evaluation.word_errors import Normalizer, error_rates
from mlx_phi4.generation.responses import GenerationResponse
from mlx_phi4.transcription.transcript import Segment, Transcript


@pytest.fixture
def manifest(tmp_path):
    """A function (lines) -> the path of a manifest; files named in lines as audio are made, empty."""

    def write(*lines):
        for line in lines:
            if isinstance(line, dict) and isinstance(line.get("audio"), str):
                (tmp_path / line["audio"]).touch()
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        path = tmp_path / "manifest.jsonl"
        path.write_text(text, encoding="utf-8")
        return path

    return write


class Phi4:
    """Stands for a model that is never asked."""


class Processor:
    """Stands for its processor."""


@pytest.fixture
def heard(monkeypatch, manifest):
    """A function (lines of dictionaries with "heard") -> their scores; "heard" is a text, or an exception's message."""

    def score(*lines, **options):
        names = [{**line, "audio": f"{index}.wav"} for index, line in enumerate(lines)]
        said = {line["audio"]: line["heard"] for line in names}

        def transcribed(model, processor, items, batch_size, order, adapter):
            for index in order:
                item = items[index]
                text = said[item.audio.name]
                yield index, f"{item.audio}: broken" if text is None else (text, 2.0)

        monkeypatch.setattr(speech, "_transcribed", transcribed)
        return evaluate_asr(manifest(*names), Phi4(), processor=Processor(), **options)

    return score


def test_error_rates_count_errors_of_all_over_words_of_all(heard):
    """A mean of the recordings' own rates would be 50 %."""
    nine = "one fish two fish red fish blue fish swims"
    scores = heard({"text": "yes", "heard": "no"}, {"text": nine, "heard": nine}, normalizer="none")
    assert (scores.wer, scores.scored) == (1 / 10, 2)
    assert scores.cer == 3 / (3 + len(nine))  # "yes" to "no": two substitutions and a deletion
    assert [file.wer for file in scores.files] == [1.0, 0.0]
    assert scores.audio_seconds == 4.0
    assert scores.real_time_factor * scores.speed == pytest.approx(1)


@pytest.mark.parametrize(
    ("said", "also", "language"),
    [
        ("Mr. Smith's twenty-one dogs, uh, don't bark!", "mister smith's 21 dogs do not bark", None),
        ("The colour: $5.50", "the color $5.50", "English"),
        ("[noise] Hello (laughs)", "hello", "en"),
        ("Ça va, déjà ?", "ça va déjà", "fr"),
        ("你好\uff0c世界。", "你好 世界", "zh"),
    ],
)
def test_what_is_written_otherwise_is_no_error(said, also, language):
    normalize = Normalizer()
    assert error_rates([normalize(said, language)], [normalize(also, language)]).wer == 0


def test_english_rules_are_not_for_other_languages(heard):
    """The English normalizer takes "um" for a hesitation; in German it is a word."""
    line = {"text": "um acht", "heard": "acht"}
    assert heard(line).wer == 0
    assert heard({**line, "language": "German"}).wer == heard({**line, "language": "de"}).wer == 1 / 2
    assert heard(line, normalizer="basic").wer == 1 / 2
    assert heard({**line, "language": "German"}, normalizer="english").wer == 0


def test_chinese_and_japanese_are_counted_by_characters(heard):
    scores = heard({"text": "今天天气很好。", "heard": "今天天汽很好", "language": "zh"})
    assert scores.wer == scores.cer == 1 / 6


def test_references_without_words_are_left_out_and_never_heard(heard):
    """As OpenASR does: inserted words would have nothing to be divided by."""
    scores = heard({"text": "[music] uh", "heard": "words"}, {"text": "yes", "heard": "yes"})
    assert (scores.wer, scores.scored, scores.skipped, scores.failed) == (0, 1, 1, 0)
    assert scores.files[0].skipped and scores.files[0].hypothesis is None and scores.files[0].wer is None


def test_one_that_cannot_be_heard_is_counted_and_no_more(heard):
    scores = heard({"text": "yes", "heard": None}, {"text": "good day", "heard": "good"})
    assert (scores.wer, scores.scored, scores.failed) == (1 / 2, 1, 1)
    assert scores.files[0].error.endswith("0.wav: broken")
    nothing = heard({"text": "yes", "heard": None})
    assert (nothing.wer, nothing.cer, nothing.real_time_factor, nothing.speed) == (None,) * 4


def test_silence_heard_is_all_deletions(heard):
    assert heard({"text": "good day", "heard": ""}).wer == 1


@pytest.mark.parametrize("missing", ["jiwer", "whisper_normalizer.english"])
def test_what_is_not_installed_is_named_before_any_work(missing, monkeypatch, manifest, run_command):
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, err = run_command(command, "asr", manifest({"audio": "a.wav", "text": "a"}), "--model", "nowhere")
    assert (code, out) == (2, "")
    assert err == f'error: error rates need {missing}: pip install "mlx_phi4[eval]"\n'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        (["", "  "], "is empty"),
        (['{"audio": "a.wav", "text": "a"}', "", "{"], "line 3: is not JSON"),
        (["[" * 100_000], "line 1: is not JSON"),
        (["3"], "line 1: is 3, expected an object"),
        ([{"text": "a"}], "line 1: lacks 'audio'"),
        ([{"audio": "a.wav"}], "line 1: lacks 'text'"),
        ([{"audio": "a.wav", "text": None}], "line 1: lacks 'text'"),
        ([{"audio": "a.wav", "text": 3}], "line 1: text is 3, expected a string"),
        ([{"audio": ["a", "b"], "text": "a"}], "line 1: audio is"),
        (['{"audio": "gone.wav", "text": "a"}'], "line 1: audio 'gone.wav': no such file"),
        (['{"audio": ".", "text": "a"}'], "line 1: audio '.': is a folder"),
        ([json.dumps({"audio": "x" * 5000, "text": "a"})], "File name too long"),
        ([r'{"audio": "a\u0000b", "text": "a"}'], "no such file"),
    ],
)
def test_bad_manifests_are_refused_in_a_line_before_any_work(lines, message, manifest, run_command):
    path = manifest(*lines)
    (path.parent / "a.wav").touch()
    code, out, err = run_command(command, "asr", path, "--model", "nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err and str(path) in err


def test_manifests_that_are_none(tmp_path, run_command):
    code, _, err = run_command(command, "asr", tmp_path / "gone", "--model", "nowhere")
    assert (code, err) == (2, f"error: {tmp_path / 'gone'}: No such file or directory\n")
    (tmp_path / "latin").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}')
    assert "line 1: lacks 'audio'" in run_command(command, "asr", tmp_path / "latin", "--model", "nowhere")[2]
    (tmp_path / "latin").write_bytes(b'\n{"text": "\xe9"}')
    assert "line 2: is not JSON" in run_command(command, "asr", tmp_path / "latin", "--model", "nowhere")[2]


def test_limit_takes_the_first_items_and_looks_at_no_more(manifest):
    path = manifest({"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}, "no JSON")
    assert [item.question for item in read_questions(path, limit=2)] == ["a", "c"]
    with pytest.raises(Phi4Error, match="limit is 0"):
        read_questions(path, limit=0)


@pytest.fixture
def recordings(tmp_path):
    """Two short recordings, one that is none and one without words, in a manifest; and its path."""
    soundfile.write(tmp_path / "one.wav", clip(0.6), 16_000)
    soundfile.write(tmp_path / "two.flac", clip(1.0, 1), 16_000)
    (tmp_path / "bad.wav").write_text("no sound")
    names = {"one.wav": "one", "bad.wav": "bad", "two.flac": "two words"}
    lines = [json.dumps({"audio": name, "text": text, "id": text}) for name, text in names.items()]
    lines.append(json.dumps({"audio": "one.wav", "text": "[music]"}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path / "manifest.jsonl"


def test_the_command_hears_what_the_model_says_of_each_recording(recordings, checkpoint, loaded, run_command):
    out = recordings.parent / "scores.json"
    arguments = ("asr", recordings, "--model", checkpoint(), "--json", out, "--each")
    code, text, err = run_command(command, *arguments)
    assert code == 1  # one could not be read
    assert err.count("\n") == 1 and "bad.wav" in err
    assert "2 scored, 1 skipped (no words in the reference), 1 failed" in text
    assert text.splitlines()[1].split() == ["-", "bad"]
    scores = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert all(math.isfinite(scores[key]) for key in ("wer", "cer", "real_time_factor", "speed"))
    assert scores["audio_seconds"] == pytest.approx(1.6, abs=0.02)
    assert sorted(path.name for path in recordings.parent.iterdir() if "part" in path.name) == []
    by_id = {file["id"]: file for file in scores["files"]}
    model, processor = loaded()
    for id, name, seconds in (("one", "one.wav", 0.6), ("two words", "two.flac", 1.0)):
        request = Request("Transcribe the audio clip into text.", audios=[recordings.parent / name])
        # the very answer to the published prompt, alone and greedily
        limit = len(processor.tokenizer.encode(by_id[id]["hypothesis"])) + 100
        (alone,) = mlx_phi4.batch_generate(model, processor, [request], max_tokens=limit)
        assert alone.text.strip().startswith(by_id[id]["hypothesis"]) and by_id[id]["hypothesis"]
        assert by_id[id]["seconds"] == pytest.approx(seconds, abs=0.01)
        assert by_id[id]["wer"] > 0


def test_json_on_standard_output_is_all_there_is(recordings, checkpoint, run_command):
    _, out, _ = run_command(command, "asr", recordings, "--model", checkpoint(), "--json", "-", "--limit", 1)
    assert json.loads(out)["scored"] == 1
    code, out, err = run_command(command, "asr", recordings, "--model", "nowhere", "--json", "gone/scores.json")
    assert (code, out, err) == (2, "", "error: gone/scores.json: its folder does not exist\n")
    code, out, err = run_command(command, "asr", recordings, "--model", "nowhere", "--json", recordings.parent)
    assert (code, out) == (2, "") and "is a folder" in err


def test_results_replace_earlier_results_and_nothing_else(recordings, checkpoint, run_command, monkeypatch):
    """A picture was replaced without a word once, and so was the device that should only have heard them."""
    asked = ("asr", recordings, "--model", checkpoint(), "--limit", 1, "--json")
    monkeypatch.chdir(recordings.parent)
    Path("mine.json").write_text('{"mine": true}')
    Path("link.json").symlink_to("real.json")
    code, _, err = run_command(command, *asked, "mine.json", "--model", "nowhere")
    assert code == 2 and "was not written by this command; --overwrite replaces it" in err
    assert Path("mine.json").read_text() == '{"mine": true}'
    for _ in range(2):
        assert run_command(command, *asked, "link.json")[0] == 0
    assert Path("link.json").is_symlink() and json.loads(Path("real.json").read_text())["scored"] == 1
    assert run_command(command, *asked, "mine.json", "--overwrite")[0] == 0
    assert json.loads(Path("mine.json").read_text())["made_by"] == "mlx_phi4.evaluate asr"
    assert run_command(command, *asked, "/dev/null")[0] == 0 and Path("/dev/null").is_char_device()
    assert json.loads(run_command(command, *asked, "/dev/stdout")[1])["scored"] == 1
    for name in ("x" * 300, "nul\0", "/proc/none/x", "~nobody-here/x"):
        code, _, err = run_command(command, *asked, name, "--model", "nowhere")
        assert code == 2 and len(err.splitlines()) == 1


def test_a_full_disk_does_not_cost_the_summary(recordings, checkpoint, run_command, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlx_phi4.commands.evaluate.write_whole", full)
    out_path = recordings.parent / "scores.json"
    code, out, err = run_command(command, "asr", recordings, "--model", checkpoint(), "--json", out_path, "--limit", 1)
    assert code == 2 and "word error rate" in out and err == f"error: {out_path}: No space left on device\n"


def test_long_recordings_are_transcribed_in_pieces(recordings, loaded, monkeypatch):
    """Longer than the encoder's window, 40 s; here the window is made shorter instead."""
    asked = []

    def transcribe(source, model, *, processor, batch_size, adapter):
        asked.append(source.name)
        return Transcript([Segment(0, 0.5, "two"), Segment(0.5, 1, "words")], 1.0)

    monkeypatch.setattr("mlx_phi4.evaluation.speech.WINDOW_SECONDS", 0.8)
    monkeypatch.setattr("mlx_phi4.transcription.transcribe.transcribe", transcribe)
    model, processor = loaded()
    scores = evaluate_asr(recordings, model, processor=processor)
    assert asked == ["two.flac"]
    assert [file.wer for file in scores.files][2] == 0
    assert scores.scored == 2


def test_a_text_model_hears_nothing(recordings, checkpoint, run_command):
    code, _, err = run_command(command, "asr", recordings, "--model", checkpoint("text"))
    assert code == 2 and "text-only" in err


@pytest.fixture
def answered(monkeypatch, loaded, tmp_path):
    """A function (lines of dictionaries with "said") -> scores of a model that says just that, and its batches."""
    from PIL import Image

    Image.fromarray(picture(60, 40)).save(tmp_path / "picture.png")
    soundfile.write(tmp_path / "question.wav", clip(0.6), 16_000)
    (tmp_path / "bad.png").write_text("no picture")

    def score(*lines, **options):
        said, batches = iter([line["said"] for line in lines if "said" in line]), []

        class Recorded(ScriptedPool):
            def step(self):
                batches.append([self.processor.row(request).mode for _, request, _ in self.asked])
                return super().step()

        answer = GenerationResponse("", 0, "", 0, 0, 0, 0, 0)
        scripted = Recorded(lambda request, options: dataclasses.replace(answer, text=next(said)))
        monkeypatch.setattr("mlx_phi4.generation.pool.AnswerPool", scripted)
        path = tmp_path / "questions.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        model, processor = loaded()
        return evaluate_pictures(path, model, processor=processor, **options), batches

    return score


@pytest.mark.parametrize(
    ("said", "accepted", "right"),
    [
        ("Boat", "boat", True),
        (" a boat.\n", "A boat", True),
        ("U.S.", "u.s", True),
        ("ΟΔΟΣ", "οδος", True),
        ("42", ["41", "42"], True),
        ("a boat", "boat", False),
        ("", "boat", False),
        ("boat..", "boat", False),
    ],
)
def test_answers_are_right_but_for_case_and_the_last_period(said, accepted, right, answered):
    scores, _ = answered({"question": "What?", "answer": accepted, "said": said})
    assert (scores.accuracy, scores.correct) == (float(right), int(right))


def test_questions_of_all_modes_in_one_manifest(answered):
    scores, batches = answered(
        {"question": "What is this?", "image": "picture.png", "answer": "a boat", "said": "A boat."},
        {"question": "Which is larger?", "images": ["picture.png", "picture.png"], "answer": "first", "said": "none"},
        {"image": "picture.png", "audio": "question.wav", "answer": "blue", "said": "blue"},
        {"question": "1 + 1?", "answer": ["2", "two"], "said": "two"},
        {"audio": "question.wav", "answer": "yes", "said": "no"},
        batch_size=2,
    )
    assert (scores.correct, scores.answered, scores.accuracy) == (3, 5, 3 / 5)
    modes = [str(mode) for batch in batches for mode in batch]
    assert modes == ["vision", "vision", "vision-speech", "text", "speech"]
    assert [len(batch) for batch in batches] == [2, 2, 1]


def test_a_bad_picture_does_not_end_the_others(answered):
    scores, batches = answered(
        {"question": "What?", "image": "bad.png", "answer": "a"},
        {"question": "What?", "image": "picture.png", "answer": "b", "said": "b"},
        {"question": "<|image_1|> or <|image_2|>?", "image": "picture.png", "answer": "a"},
    )
    assert (scores.accuracy, scores.answered, scores.failed) == (1, 1, 2)
    assert "bad.png" in scores.items[0].error and "2 picture placeholder(s)" in scores.items[2].error
    assert len(batches[0]) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "a"}, "lacks 'answer'"),
        ({"question": "a", "answer": []}, "answer is []"),
        ({"question": "a", "answer": [1]}, "answer is [1]"),
        ({"answer": "a"}, "lacks 'question'"),
        ({"answer": "a", "image": "gone.png"}, "lacks 'question'"),
        ({"question": "a", "answer": "a", "image": "gone.png"}, "image 'gone.png': no such file"),
        ({"question": "a", "answer": "a", "images": ["gone.png"]}, "images 'gone.png': no such file"),
    ],
)
def test_bad_questions_are_refused_in_a_line(line, message, manifest, run_command):
    code, out, err = run_command(command, "pictures", manifest(line), "--model", "nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"line 1: {message}" in err


def test_the_command_finds_the_models_own_answer_right(answered, checkpoint, loaded, tmp_path, run_command):
    """A model of noise says the same again; what it says is taken for the truth."""
    model, processor = loaded()
    own = mlx_phi4.generate(model, processor, "What is this?", images=[tmp_path / "picture.png"], max_tokens=8)
    lines = [
        {"question": "What is this?", "image": "picture.png", "answer": own.strip() or own, "id": "first"},
        {"question": "What is this?", "answer": "surely not this"},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = (tmp_path / "questions.jsonl", "--model", checkpoint(), "--max-tokens", 8, "--each")
    code, out, err = run_command(command, "pictures", *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("right  first: ") and "\nwrong  line 2: " in out
    assert "accuracy    50.00 %" in out and "1 of 2 right" in out


def test_pictures_need_a_model_that_sees(tmp_path, answered, checkpoint, run_command):
    (tmp_path / "questions.jsonl").write_text('{"question": "a", "image": "picture.png", "answer": "a"}')
    code, _, err = run_command(command, "pictures", tmp_path / "questions.jsonl", "--model", checkpoint("text"))
    assert code == 2 and "text-only" in err


def test_the_command_without_a_subcommand(run_command):
    assert run_command(command) == (2, "", "error: Missing command. (see --help)\n")
    code, out, _ = run_command(command, "--help")
    assert code == 0 and all(name in out for name in ("asr", "pictures", "text"))


def test_lm_eval_is_named_where_it_is_missing(run_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, out, err = run_command(command, "text", "--tasks", "arc_easy", "--model", "nowhere")
    assert (code, out) == (2, "")
    assert err == 'error: lm-eval-harness needs lm_eval: pip install "mlx_phi4[lm-eval]"\n'
