"""``mlx_phi4.generate`` as a person runs it: answers, statistics, bad input, interruption, full disk."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cases import clip, picture
from interrupting import pressed
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


def test_cheap_mistakes_are_told_before_the_hub_is_asked(run, media, monkeypatch):
    """An unreachable hub costs seconds, and loading may cost minutes: a missing picture need not wait for either."""
    monkeypatch.setattr("mlx_phi4.loading.load", None)
    for message, arguments in {
        "none.png: no such file": ("--image", "none.png"),
        "is a folder": ("--audio", media[0].parent),
        "path of a picture or a recording is empty": ("--image", ""),
        "File name too long": ("--image", "x" * 300),
        "~nobody-here/x: no such file": ("--image", "~nobody-here/x"),
        "max_tokens is 0": ("-p", "x", "-m", 0),
        "prefill_step_size is 0": ("-p", "x", "--prefill-step-size", 0),
        "logit_bias is 1=nan": ("-p", "x", "--logit-bias", "1=nan"),
        "'--model': is empty": ("-p", "x", "--model", ""),
        "none.safetensors: no such file": ("-p", "x", "--prompt-cache-file", "none.safetensors"),
    }.items():
        code, _, err = run(*arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1, err


def test_a_hub_that_cannot_be_reached_is_named_and_not_waited_for(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "*"}
    environment |= {"MLX_PHI4_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    began = time.monotonic()
    done = subprocess.run([*PROGRAM, "-p", "Hi"], env=environment, capture_output=True, text=True)
    said = done.stderr.splitlines()
    assert said[0] == "Asking the hub for microsoft/Phi-4-multimodal-instruct ..." and len(said) == 2
    assert said[1].startswith("error: microsoft/") and "the hub cannot be reached" in said[1] and done.returncode == 2
    assert time.monotonic() - began < 15  # 24 s and more by the library's own patience


def test_names_and_answers_do_not_reach_a_terminal_as_commands(run, checkpoint):
    code, _, err = run("--model", checkpoint(), "--image", "\x1b[31mred\x9b.png")
    assert code == 2 and err == "error: \\x1b[31mred\\x9b.png: no such file\n"


def test_a_name_that_begins_with_a_tilde_is_a_name(run, checkpoint, media, monkeypatch):
    monkeypatch.chdir(media[0].parent)
    media[0].rename("~draft.png")
    assert run("--model", checkpoint(), "-m", 2, "--image", "~draft.png", "--quiet")[0] == 0


def test_habits_of_mlx_lm(run, checkpoint):
    model = ("--model", checkpoint(), "-p", "Hello", "-m", 3)
    plain = run(*model, "--system", "Be brief.", "--quiet")
    assert run(*model, "--system_prompt", "Be brief.", "--verbose", "False", "--temp", 0, "--top_p", 1) == plain
    assert run(*model, "--verbose")[2] and run(*model, "--verbose", "True")[2]
    for option, ours in {"--extra-eos-token": "--stop", "--ignore_chat_template": "--raw"}.items():
        code, _, err = run(*model, option, "x")
        assert code == 2 and option.replace("_", "-") in err and ours in err and len(err.splitlines()) == 1
    assert run(*model, "--quiet", "--verbose", "True")[0] == 2


def test_imports_are_not_counted_as_the_prompts_time(checkpoint):
    """mlx_lm takes seconds to import, once; figures of a first answer were those of its imports."""
    code = (
        "import sys\n"
        "from mlx_phi4 import load, stream_generate\n"
        "from mlx_phi4.generation.batch import Batch\n"
        "def step(self, step=Batch.step):\n"
        "    before = set(sys.modules)\n"
        "    found = step(self)\n"
        "    assert not (late := set(sys.modules) - before), late\n"
        "    return found\n"
        "Batch.step = step\n"
        "for options in ({}, {'repetition_penalty': 1.1}, {'temperature': 1.0, 'top_p': 0.5}, {'stop': 'x'}, KV):\n"
        "    for _ in stream_generate(*load(MODEL), 'Hi', max_tokens=2, **options): pass\n"
    )
    values = f"MODEL, KV = {str(checkpoint())!r}, {{'kv_bits': 8, 'kv_group_size': 32}}\n"
    subprocess.run([sys.executable, "-c", values + code], check=True)
    kv_first = code.replace("({}, ", "(KV, ")
    subprocess.run([sys.executable, "-c", values + kv_first], check=True)


def test_import_is_light():
    code = (
        "import sys, mlx_phi4\n"
        "heavy = {'torch', 'transformers', 'mlx_lm', 'mlx', 'numpy', 'PIL', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "mlx_phi4.load, mlx_phi4.generate, mlx_phi4.batch_generate, mlx_phi4.Request\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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
    _, err = pressed(process)
    assert process.returncode == 130
    assert err == b""


def test_terminals_that_cannot_show_or_take_anything(checkpoint):
    arguments = ["--model", str(checkpoint()), "-p", "Hi", "-m", "5"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*PROGRAM, *arguments], env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0 and "?" in done.stdout
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *PROGRAM, *arguments], capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (2, "error: standard output is closed\n")
    answer = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=True).stdout
    for silent in ('"$@" 2>&-', '"$@" 2>&- <&-', '"$@" 2>/dev/full' if Path("/dev/full").exists() else '"$@" 2>&-'):
        done = subprocess.run(["sh", "-c", silent, "sh", *PROGRAM, *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, answer), silent
    for silent in ('"$@" 2>&-', '"$@" 2>&- >&-'):
        done = subprocess.run(["sh", "-c", silent, "sh", *PROGRAM, "--image", "none"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_standard_error_that_breaks_costs_no_work(checkpoint, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ["--model", str(checkpoint("text")), "--mlx-path", str(tmp_path / "made")]
    done = subprocess.run([*PROGRAM[:-1], "convert", *arguments], stdout=subprocess.PIPE, stderr=writing)
    os.close(writing)
    assert done.returncode == 0 and (tmp_path / "made" / "config.json").exists()


def test_closed_pipe_and_full_disk(checkpoint):
    arguments = ["--model", str(checkpoint()), "-p", "Hi", "-m", "400", "--temperature", "2", "--seed", "1"]
    endless = [*arguments, "-m", "100000", "--min-tokens", "100000"]  # not done before its pipe is closed
    process = subprocess.Popen([*PROGRAM, *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 1 and b"Traceback" not in err
    if Path("/dev/full").exists():  # Linux has it, macOS does not
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([*PROGRAM, *arguments[:4], "-m", "5"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1] == "error: No space left on device"
