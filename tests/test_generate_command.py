"""``mlx_phi4.generate`` as a person runs it: answers, statistics, bad input, interruption, full disk."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cases import clip, picture
from PIL import Image

import mlx_phi4
from mlx_phi4.commands.generate import command

PROGRAM = [sys.executable, "-m", "mlx_phi4", "generate"]


@pytest.fixture
def run(run_command):
    """A function (arguments) -> (exit code, stdout, stderr)."""
    return partial(run_command, command)


@pytest.fixture
def media(tmp_path):
    Image.fromarray(picture(120, 90)).save(tmp_path / "picture.png")
    soundfile.write(tmp_path / "clip.wav", clip(0.5), 16_000)
    return tmp_path / "picture.png", tmp_path / "clip.wav"


def test_text_goes_to_stdout_and_statistics_to_stderr(run, checkpoint, loaded):
    code, out, err = run("--model", checkpoint(), "-p", "Hello", "-m", 8)
    assert code == 0
    assert out == mlx_phi4.generate(*loaded(), "Hello", max_tokens=8) + "\n"
    assert err.startswith("text: prompt") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "mode"),
    [((), "text"), (("--image",), "vision"), (("--audio",), "speech"), (("--image", "--audio"), "vision-speech")],
)
def test_every_mode_and_json(run, checkpoint, media, flags, mode):
    paths = dict(zip(("--image", "--audio"), media, strict=True))
    arguments = [item for flag in flags for item in (flag, paths[flag])]
    code, out, err = run("--model", checkpoint(), "-p", "What?", "-m", 3, "--json", "--quiet", *arguments)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["mode"] == mode and answer["generation_tokens"] <= 3
    assert answer["finish_reason"] in ("stop", "length")


def test_prompt_from_stdin_and_raw(run, checkpoint):
    expected = run("--model", checkpoint(), "-p", "Grüße", "-m", 4, "--quiet")
    assert run("--model", checkpoint(), "-p", "-", "-m", 4, "--quiet", stdin="Grüße".encode()) == expected
    raw = "<|user|>Grüße<|end|><|assistant|>"
    assert run("--model", checkpoint(), "-p", raw, "--raw", "-m", 4, "--quiet") == expected


def test_seed_reproduces(run, checkpoint):
    arguments = ("--model", checkpoint(), "-p", "Hi", "-m", 8, "--temperature", 1.5, "--quiet", "--seed")
    first, second, other = run(*arguments, 1), run(*arguments, 1), run(*arguments, 2)
    assert first == second and first[1] != other[1]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def test_bad_input_gets_one_line(run, checkpoint, media, tmp_path):
    image, audio = media
    files = {
        "empty": b"",
        "nonsense": b"neither picture nor sound",
        "cut.png": cut(image.read_bytes()),
        "cut.wav": cut(audio.read_bytes()),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    soundfile.write(tmp_path / "short.wav", clip(0.01), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    Image.new("L", (9000, 4)).save(tmp_path / "long.png")
    model = ("--model", checkpoint())
    bad = {
        "no such file": (*model, "--image", tmp_path / "none.png"),
        "is empty": (*model, "--image", tmp_path / "empty"),
        "not a picture": (*model, "--image", tmp_path / "nonsense"),
        "cut.png": (*model, "--image", tmp_path / "cut.png"),
        "elongated": (*model, "--image", tmp_path / "long.png"),
        "not audio": (*model, "--audio", tmp_path / "nonsense"),
        "truncated": (*model, "--audio", tmp_path / "cut.wav"),
        "shorter than one frame": (*model, "--audio", tmp_path / "short.wav"),
        "NaN": (*model, "--audio", tmp_path / "nan.wav"),
        "placeholder": (*model, "-p", "<|image_1|><|image_2|>", "--image", image),
        "1 picture placeholder": (*model, "-p", "<|image_1|>"),
        "exceed the context": (*model, "-p", "x", "-m", 131_072),
        "the context holds": (*model, "-p", "z " * 140_000),
        "no such model folder": ("--model", tmp_path / "none", "-p", "x"),
        "text-only": ("--model", checkpoint("text"), "-p", "x", "--image", image),
        "config.json": ("--model", tmp_path, "-p", "x"),
        "~nobody-here": ("--model", "~nobody-here/x", "-p", "x"),
        "Unicode": (*model, "-p", "a \udcff"),
        "temperature": (*model, "-p", "x", "--temperature", "-1"),
        "top_p": (*model, "-p", "x", "--top-p", "2"),
        "max_tokens": (*model, "-p", "x", "-m", "0"),
        "repetition_penalty": (*model, "-p", "x", "--repetition-penalty", "0"),
        "seed": (*model, "-p", "x", "--seed", "one"),
        "--prompt": (*model,),
        "No such option": (*model, "-p", "x", "--colour"),
        "UTF-8": (*model, "-p", "-"),
    }
    for message, arguments in bad.items():
        code, out, err = run(*arguments, stdin=b"\xff\xfe\xfa")
        assert code == 2, (message, err)
        assert out.strip() == "", message
        assert err.startswith("error: ") and message in err, err
        assert len(err.splitlines()) == 1


def test_import_is_light():
    code = (
        "import sys, mlx_phi4\n"
        "heavy = {'torch', 'transformers', 'mlx_lm', 'mlx', 'numpy', 'PIL', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "mlx_phi4.load, mlx_phi4.generate, mlx_phi4.batch_generate, mlx_phi4.Request\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "code",
    [
        "from mlx_phi4 import generate, load; generate, load",
        "import mlx_phi4.generation.generate; from mlx_phi4 import generate",
        "from mlx_phi4.generation.generate import GenerationResponse; from mlx_phi4 import generate, stream_generate",
        "import mlx_phi4; from mlx_phi4 import generate; import mlx_phi4.generation.generate; generate = mlx_phi4.generate",  # noqa: E501
        "from mlx_phi4.checkpoint.hub import find_folder; from mlx_phi4 import load; import mlx_phi4.generation.generate as generate",  # noqa: E501
    ],
)
def test_a_function_named_like_its_module_is_callable_in_every_import_order(code):
    check = f"{code}\nimport mlx_phi4\nassert callable(mlx_phi4.generate) and callable(mlx_phi4.load)\n"
    check += (
        "try: mlx_phi4.load('/nowhere/at/all')\nexcept mlx_phi4.Phi4Error as error: assert 'no such' in str(error)\n"
    )
    check += "try: mlx_phi4.generate()\nexcept TypeError as error: assert 'model' in str(error), error\n"
    subprocess.run([sys.executable, "-W", "error", "-c", check], check=True)


def test_interrupt_ends_quietly(checkpoint):
    # no end token may come before the signal does
    arguments = ["--model", str(checkpoint()), "-p", "Hi", "-m", "100000", "--min-tokens", "100000"]
    process = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""


def test_terminals_that_cannot_show_or_take_anything(checkpoint):
    arguments = ["--model", str(checkpoint()), "-p", "Hi", "-m", "5"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*PROGRAM, *arguments], env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0 and "?" in done.stdout
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *PROGRAM, *arguments], capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (2, "error: standard output is closed\n")


def test_closed_pipe_and_full_disk(checkpoint):
    arguments = ["--model", str(checkpoint()), "-p", "Hi", "-m", "400", "--temperature", "2", "--seed", "1"]
    process = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 1 and b"Traceback" not in err
    if Path("/dev/full").exists():  # Linux has it, macOS does not
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([*PROGRAM, *arguments[:4], "-m", "5"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1] == "error: No space left on device"
