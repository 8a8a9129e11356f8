"""The small trained model inside the package: every mode from file to right answer."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_phi4 import MediaCache, Request, batch_generate, load, transcribe
from mlx_phi4.checkpoint import hub
from mlx_phi4.commands.generate import command
from mlx_phi4.decoder.adapters import RoutedLinear
from mlx_phi4.errors import CheckpointError

ROOT = Path(__file__).parent.parent
MEDIA = ROOT / "examples" / "media"
EXPECTED = json.loads((MEDIA / "answers.json").read_text())


def request(case):
    media = [[str(MEDIA / case[kind])] if case.get(kind) else None for kind in ("image", "audio")]
    return Request(case["prompt"], *media)


@pytest.fixture(scope="module")
def tiny():
    return load("phi4-tiny")


@pytest.fixture(scope="module")
def seen():
    return MediaCache()


def test_every_mode_answers_its_example_right_all_in_one_batch(tiny, seen):
    answers = batch_generate(*tiny, [request(case) for case in EXPECTED], media_cache=seen)
    assert [answer.text for answer in answers] == [case["answer"] for case in EXPECTED]
    assert {answer.mode for answer in answers} == {"text", "vision", "speech", "vision-speech"}


def test_four_bits_answer_the_examples_right(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_PHI4_CACHE", str(tmp_path))
    packed = load("phi4-tiny", quantize=4)
    cases = [case for case in EXPECTED if not case.get("image")]  # packed products are slow on CPUs
    answers = batch_generate(*packed, [request(case) for case in cases])
    assert [answer.text for answer in answers] == [case["answer"] for case in cases]


def test_text_beside_media_gets_the_tokens_that_it_gets_alone(tiny, seen):
    alone = batch_generate(*tiny, [request(case) for case in EXPECTED if case["mode"] == "text"])
    mixed = batch_generate(*tiny, [request(case) for case in EXPECTED], media_cache=seen)
    together = [answer for answer, case in zip(mixed, EXPECTED, strict=True) if case["mode"] == "text"]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_text_is_the_same_with_no_adapter_loaded(tiny):
    cases = [case for case in EXPECTED if case["mode"] == "text"]
    bare, processor = load("phi4-tiny")
    for module in bare.modules():
        if isinstance(module, RoutedLinear):
            module.lora = {}
    answers = [batch_generate(model, processor, [request(case) for case in cases]) for model in (tiny[0], bare)]
    assert [answer.tokens for answer in answers[0]] == [answer.tokens for answer in answers[1]]


def test_a_recording_of_several_sentences_becomes_subtitles(tiny):
    model, processor = tiny
    found = transcribe(MEDIA / "list.flac", model, processor=processor)
    assert found.text == "four zero seven two open the window nine one one five three stop the music"
    assert all(segment.text and not segment.flags for segment in found.segments)


def test_the_command_answers_from_any_folder_even_beside_a_folder_of_that_name(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phi4-tiny").mkdir()
    code, out, _ = run_command(command, "--model", "phi4-tiny", "-p", "What is the capital of France?", "--quiet")
    assert (code, out) == (0, "Paris\n")


SCRIPTS = {
    "text": "Paris\n",
    "picture": "Read the number. 7\nWhat shape is it? star\nName the color. blue\n",
    "speech": "turn on the radio\n",
    "picture_and_speech": "star\n",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_scripts_give_the_right_answers_from_any_folder(script, tmp_path):
    file = ROOT / "examples" / f"{script}.py"
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith(SCRIPTS[script].rstrip())


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A copy of the assets that may be damaged."""
    shutil.copytree(hub.ASSETS, tmp_path / "assets")
    monkeypatch.setattr(hub, "ASSETS", tmp_path / "assets")
    return tmp_path / "assets" / "phi4-tiny"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "SHA256SUMS"])
def test_a_missing_asset_is_one_line_that_names_the_file(run_command, broken, name):
    (broken / name).unlink()
    code, out, err = run_command(command, "--model", "phi4-tiny", "-p", "hi")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert str(broken / name) in err


@pytest.mark.parametrize("quantize", [None, 4])
def test_a_model_missing_as_a_whole_is_not_looked_for_on_the_hub(broken, quantize):
    shutil.rmtree(broken)
    with pytest.raises(CheckpointError, match=re.escape(str(broken / "SHA256SUMS"))):
        load("phi4-tiny", quantize=quantize)


def test_a_damaged_asset_is_one_line_that_names_the_file(run_command, broken):
    file = broken / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # a weight: no header tells
    file.write_bytes(data)
    code, _, err = run_command(command, "--model", "phi4-tiny", "-p", "hi")
    assert (code, err) == (2, f"error: {file}: is damaged; install mlx_phi4 again\n")


def test_a_folder_of_the_name_is_read_when_it_is_given_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such model folder"):
        load(Path("phi4-tiny"))
