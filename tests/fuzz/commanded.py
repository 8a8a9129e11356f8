"""Kinds of what people type, and a conversion that is killed: exit codes 0, 1 and 2, and one line for a person."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from random import Random

import click
from driver import Kind
from hypothesis import strategies as st
from made_up import MEDIA, as_bytes, now_and_then, text

from mlx_phi4.__main__ import main as commands
from mlx_phi4.commands import cli
from mlx_phi4.terminal import shown

SECONDS = 40  # of a processor that a command may take
FILES = ("sign.png", "command.flac", "line.jsonl", "notes.txt", "film.gif", "empty", "folder")
# Right values of options by name; those that would make a command go on for long are always given.
VALUES = {
    "model": ("phi4-tiny", "text", "microsoft", "none"),
    "prompt": ("What?", "-", "<|image_1|> What?"),
    "image": ("sign.png", "-"), "audio": ("command.flac", "-"), "video": ("film.gif",), "sources": ("command.flac",),
    "adapter": ("mine=adapter", "both=vision+speech", "x"), "use_adapter": ("base", "vision", "mine"),
    "stop": ("a",), "json_schema": ('{"type": "integer"}', "@notes.txt"), "regex": ("[0-9]+",),
    "tools": ("@notes.txt", '[{"name": "search"}]'), "tool_choice": ("auto", "none", "required", "search"),
    "logit_bias": ("5=1", "5:1"), "prompt_cache_file": ("cache.safetensors",), "draft_model": ("phi4-tiny",),
    "output_dir": ("out",), "output_template": ("{filename}", "{x}"), "clip_timestamps": ("0,1",), "plot": ("p.png",),
    "temperatures": ("0", "0,0.5"), "to": ("german", "xx"), "quant_predicate": ("mixed_4_6",), "data": (".", "none"),
    "tune": ("vision", "text=new"), "fine_tune_type": ("lora", "dora"), "keys": ("qkv_proj",), "q_mode": ("affine",),
    "lr_schedule": ("cosine",), "optimizer": ("adam",), "report_to": ("wandb",), "adapter_path": ("adapter", "new"),
    "to_": ("peft",), "mlx_path": ("made",), "save_path": ("fused",), "prompts": ("notes.txt",), "c": ("notes.txt",),
}  # fmt: skip
USUAL = {
    "generate": ["--model", "phi4-tiny", "--prompt", "What?"],
    "chat": ["--model", "phi4-tiny"],
    "transcribe": ["--model", "phi4-tiny", "command.flac"],
    "convert": ["--model", "text"],
    "lora": ["--model", "text", "--train", "--data", ".", "--adapter-path", "new", "--tune", "text=new"],
    "fuse": ["--model", "phi4-tiny", "--adapter-path", "adapter"],
    "cache_prompt": ["--model", "phi4-tiny", "--prompt", "What?", "--prompt-cache-file", "cache.safetensors"],
    "benchmark": ["--model", "phi4-tiny"],
}
ALWAYS = {
    "generate": ["--max-tokens=2"],
    "chat": ["--max-tokens=2"],
    "transcribe": ["--max-tokens=2"],
    "lora": ["--iters=1", "--max-seq-length=64"],
    "benchmark": ["--mode=text", "--prompt-tokens=8", "--generation-tokens=2", "--repeat=1"],
}
# not typed here: they go on until somebody ends them, open a microphone or a port, or send something away
NEVER = {
    "live",
    "upload_repo",
    "report_to",
    "max_tokens",
    "iters",
    "prompt_tokens",
    "generation_tokens",
    "repeat",
    "mode",
}
NEVER |= {"max_seq_length", "parallel", "help", "version"}
NAMES = ("generate", "generate", *USUAL)
HARMLESS = str.maketrans({"/": "_", "~": "_", "\x00": "_"})  # in texts that may become paths


def _value(parameter: click.Parameter) -> st.SearchStrategy:
    """What may stand behind an option."""
    right: st.SearchStrategy
    if isinstance(parameter.type, click.Choice):
        right = st.sampled_from(list(parameter.type.choices))
    elif parameter.type.name in ("integer", "integer range"):
        right = st.one_of(st.integers(-2, 70), st.sampled_from((2**31, 2**63, 10**30))).map(str)
    elif parameter.type.name == "float":
        right = st.one_of(st.floats(-1, 3), st.sampled_from((1e30, float("nan"), float("inf")))).map(str)
    else:
        right = st.sampled_from(VALUES.get(parameter.name, ("x",)))
    return now_and_then(right, st.one_of(text, st.sampled_from(FILES), st.just("")))


def _option(parameter: click.Option) -> st.SearchStrategy:
    """One option as it is typed."""
    names = st.sampled_from([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names.map(lambda name: [name])
    return st.tuples(names, _value(parameter)).map(list)


def lines(folder: Path) -> st.SearchStrategy:
    """A command, what follows it and its standard input."""
    return st.sampled_from(NAMES).flatmap(_line).map(as_bytes)


def _line(name: str) -> st.SearchStrategy:
    command = commands.get_command(None, name)
    known = [each for each in command.params if each.name not in NEVER]
    options = [_option(each) for each in known if isinstance(each, click.Option)]
    some = st.lists(st.one_of(*options), max_size=4).map(lambda typed: [each for option in typed for each in option])
    free = st.lists(st.one_of(st.sampled_from(FILES), text), min_size=1, max_size=2)
    usual = now_and_then(st.just(USUAL[name]), st.just([]))
    typed = st.tuples(usual, some, now_and_then(st.just([]), free, 3 if name == "transcribe" else 12))
    heard = st.one_of(st.just(""), text, st.lists(text, max_size=3).map("\n".join))
    return st.tuples(st.just(name), typed.map(lambda parts: [*parts[0], *parts[1], *parts[2]]), heard)


@cache
def _files(folder: Path) -> Path:
    """A folder in which there is something of each kind."""
    from adapter_samples import random_folder
    from asked import tiny
    from PIL import Image

    made = folder / "typed"
    if not made.exists():
        (made / "folder").mkdir(parents=True)
        for name in ("sign.png", "command.flac"):
            shutil.copy(MEDIA / name, made)
        (made / "line.jsonl").write_text('{"prompt": "What?", "completion": "star"}\n')
        (made / "train.jsonl").write_text('{"prompt": "What?", "completion": "star"}\n' * 3)
        (made / "notes.txt").write_text("notes\n")
        (made / "empty").touch()
        shown = [Image.new("RGB", (32, 32), (number * 60, 0, 99)) for number in range(3)]
        shown[0].save(made / "film.gif", save_all=True, append_images=shown[1:])
        random_folder(made / "adapter", tiny()[1].config)
    return made


class Ended(BaseException):
    """It took too long."""


def type_a_line(content: bytes, scratch: Path, folder: Path) -> None:
    """In this process, in a folder of its own: what a person sees, and where it ends."""
    name, typed, heard = json.loads(content)
    typed = [str(each).translate(HARMLESS) for each in typed]
    shutil.copytree(_files(folder), scratch / "here")
    for layout in ("text", "microsoft"):
        (scratch / "here" / layout).symlink_to(folder / layout)
    code, out, err = _run(scratch / "here", name, [*typed, *ALWAYS.get(name, [])], heard)
    assert code in (0, 1, 2), f"exit {code}: {err[-2000:]}"
    assert "Traceback" not in err and "Warning:" not in err, err[-3000:]
    said = [line for line in err.splitlines() if line.strip()]
    assert code != 2 or said, "exit 2 without a line"
    err = err.replace("\r", "")  # of progress bars
    assert shown(err) == err, f"a terminal would obey {err!r}"
    assert code != 1 or said or out, "exit 1 without a word"


def _run(here: Path, name: str, typed: list[str], heard: str) -> tuple[int, str, str]:
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    before = Path.cwd(), sys.argv, sys.stdin
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    code = 0
    try:
        os.chdir(here)
        sys.argv = ["mlx_phi4", *typed]
        sys.stdin = io.TextIOWrapper(io.BytesIO(heard.encode("utf-8", "surrogatepass")))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.run(commands.get_command(None, name))
            except SystemExit as stop:
                code = stop.code or 0
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.chdir(before[0])
        sys.argv, sys.stdin = before[1:]
    for stream in (out, err):
        stream.flush()
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def _too_long(*_):
    raise Ended(f"took more than {SECONDS} s")


# a conversion that is killed

OPTIONS = (["--q-bits", "4"], ["--q-bits", "8", "--q-group-size", "32"], ["--dtype", "float16", "--no-quantize"], [])


def conversions(folder: Path) -> list[bytes]:
    return [json.dumps([layout, number]).encode() for layout in ("microsoft", "text") for number in range(len(OPTIONS))]


def with_moments(random: Random, content: bytes) -> bytes:
    """When it is killed: shares of the time that the whole takes, most of them while it writes."""
    return json.dumps(
        [*json.loads(content), [random.uniform(0.4, 1.0) for _ in range(random.choice((1, 1, 2, 3)))]]
    ).encode()


@cache
def _whole(folder: Path, layout: str, number: int) -> tuple[float, dict[str, bytes]]:
    """Seconds and files of an uninterrupted one."""
    out = folder / f"whole-{layout}-{number}"
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    assert _convert(folder / layout, out, OPTIONS[number]).wait(120) == 0
    return time.monotonic() - began, _files_of(out)


def _convert(source: Path, out: Path, options: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlx_phi4", "convert", "--model", source, "--mlx-path", out, "--quiet", *options]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, env=environment)


def _files_of(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


def kill_a_conversion(content: bytes, scratch: Path, folder: Path) -> None:
    """At moments, one after another; then it is gone on with, to the same bytes, and nothing else is left."""
    layout, number, moments = json.loads(content)
    seconds, whole = _whole(folder, layout, number)
    out = scratch / "out"
    for moment in moments:
        killed = _convert(folder / layout, out, [*OPTIONS[number], "--resume"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            killed.wait(seconds * moment)
        killed.kill()
        said, code = killed.stderr.read().decode(), killed.wait()
        done = code == 0 or (code == 2 and "exist" in said)
        assert code == -signal.SIGKILL or done, f"exit {code}: {said}"
        if code == -signal.SIGKILL and out.exists():
            assert _files_of(out) == whole, "a folder that is not whole has its name"
    if not out.exists():
        last = _convert(folder / layout, out, [*OPTIONS[number], "--resume"])
        said = last.stderr.read().decode()
        assert last.wait(120) == 0, said
    assert _files_of(out) == whole, "other bytes than an uninterrupted conversion's"
    assert [each.name for each in scratch.iterdir()] == ["out"]


COMMAND_KINDS = [
    Kind("command-line", 60, type_a_line, strategy=lines, seconds=40, megabytes=1500),
    Kind("killed", 8, kill_a_conversion, conversions, with_moments),
]
