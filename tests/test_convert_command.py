"""``mlx_phi4.convert`` as a person runs it, and publishing."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import mlx_phi4
from mlx_phi4.commands.convert import command

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(run_command):
    """A function (arguments) -> (exit code, stdout, stderr)."""
    return partial(run_command, command)


def test_convert_verify_and_dequantize(run, checkpoint, tmp_path):
    packed, back = tmp_path / "packed", tmp_path / "back"
    code, output, errors = run("--hf-path", checkpoint(), "--mlx-path", packed, "-q", "--q-bits", 6, "--verify")
    assert code == 0 and "decoder" in output and "vision adapter" in output and "bits each" in output
    assert "Converting" in errors and "100%" in errors
    assert run("--verify", "--mlx-path", packed, "--quiet")[:2] == (0, output)
    code, output, errors = run("--model", packed, "--mlx-path", back, "-d", "--quiet")
    assert (code, output, errors) == (0, "", "")
    assert mlx_phi4.load(back)[0].config.quantization is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--model'"),
        (["--model", "{source}", "--q-bits", "7"], "quantization bits of mode affine is 7"),
        (["--model", "{source}", "--q-bits", "four"], "'four' is not a valid integer"),
        (["--model", "{source}", "--no-quantize", "--adapter-bits", "4"], "does not go together"),
        (["--model", "{nothing}"], "no such model folder"),
        (["--verify", "--mlx-path", "{nothing}"], "config.json is missing"),
        (["--verify", "--mlx-path", "{source}", "--q-bits", "4"], "--q-bits needs --model"),
        (["--verify", "--mlx-path", "{source}", "--no-quantize"], "needs --model"),
        (["--verify", "--mlx-path", "{source}", "--upload-repo", "me/model"], "--upload-repo needs --model"),
        (["--model", "{source}", "--upload-repo", "me/model"], "no hub token to upload with"),
    ],
)
def test_bad_input_gets_one_line(run, checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.chdir(tmp_path)
    places = {"source": checkpoint(), "nothing": tmp_path / "nothing"}
    code, output, errors = run(*(argument.format(**places) for argument in arguments))
    assert code == 2 and output == "" and message in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_upload(run, checkpoint, tmp_path, monkeypatch):
    calls = []

    class Api:
        def whoami(self):
            return {}

        def create_repo(self, **options):
            calls.append(options)

        def upload_folder(self, **options):
            assert (options["folder_path"] / "README.md").read_text().startswith("---\nlibrary_name: mlx\n")
            calls.append(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret-token")
    code, output, errors = run("--model", checkpoint("text"), "--mlx-path", tmp_path / "out", "--upload-repo", "me/it")
    assert code == 0 and [call["repo_id"] for call in calls] == ["me/it", "me/it"]
    assert "secret-token" not in output + errors
    assert f"The converted model is in {tmp_path / 'out'}, and https://huggingface.co/me/it" in errors
    Api.create_repo = lambda self, **options: (_ for _ in ()).throw(OSError("the hub said no"))
    again = ("--model", checkpoint("text"), "--mlx-path", tmp_path / "again", "--upload-repo", "me/it", "--quiet")
    code, _, errors = run(*again)
    assert code == 2 and "is complete, but the upload to me/it failed: the hub said no" in errors
    assert (tmp_path / "again" / "config.json").exists()


def test_an_upload_that_cannot_be_is_refused_before_the_work_and_in_a_line(checkpoint, tmp_path):
    """Without a network it was a traceback of 80 lines, hours later."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "x", "no_proxy": "*"}
    environment |= {"HF_HUB_OFFLINE": "0"}
    program = [sys.executable, "-m", "mlx_phi4", "convert", "--model", str(checkpoint("text")), "--mlx-path", "out"]
    for repo in ("me/model", "no//name"):
        done = subprocess.run(
            [*program, "--upload-repo", repo], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
        assert done.stderr.startswith(f"error: the hub would not take an upload to {repo}: ")


def test_publishing_calls_what_the_hubs_library_has():
    """A method that a new version of it lacks was only missed after the conversion."""
    from huggingface_hub import HfApi

    assert all(callable(getattr(HfApi, name)) for name in ("whoami", "create_repo", "upload_folder"))


def test_model_card():
    from huggingface_hub import ModelCard

    from mlx_phi4.converter.publish import model_card

    card = ModelCard(
        model_card("microsoft/Phi-4-multimodal-instruct", True, {"bits": 4, "group_size": 64, "mode": "affine"})
    )
    assert card.data.base_model == "microsoft/Phi-4-multimodal-instruct" and card.data.library_name == "mlx"
    assert card.data.pipeline_tag == "image-text-to-text" and "mlx" in card.data.tags and card.data.license == "mit"
    assert "4-bit" in card.text
    assert "not quantized" in ModelCard(model_card(None, False, None)).text


def test_the_script_is_the_command():
    done = subprocess.run([sys.executable, ROOT / "convert.py", "--help"], capture_output=True, text=True, check=True)
    assert "--adapter-bits" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    "imports",
    [
        "from mlx_phi4 import convert",
        "import mlx_phi4.converter.convert; convert = mlx_phi4.convert",
        "import mlx_phi4; mlx_phi4.load; convert = mlx_phi4.convert",
        "import mlx_phi4.converter.first_use; from mlx_phi4 import convert",
    ],
)
def test_callable_in_every_import_order(imports):
    code = f"{imports}\ntry:\n    convert('nothing here')\nexcept ValueError as error:\n    print(error)"
    assert "no such model folder" in subprocess.check_output([sys.executable, "-c", code], text=True)


def test_interrupt_ends_quietly_and_leaves_nothing_finished(checkpoint, tmp_path):
    code = (
        "import sys, time; from mlx_phi4.converter import writer\n"
        "def slow(*arguments): print('writing', flush=True); time.sleep(30)\n"
        "writer._write_companions = slow; from mlx_phi4.commands.convert import command; command()"
    )
    arguments = ["--model", checkpoint(), "--mlx-path", tmp_path / "out", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.strip() == ""
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").exists()
