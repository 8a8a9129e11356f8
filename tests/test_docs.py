"""What README and docs show works: every code block runs as it stands, in order, as in a fresh clone.

Blocks below ``<!-- published weights -->`` need what is not here, weights or the network. They are read only: Python by
its grammar and the names it imports, shell by ``bash -n``, and our commands in them with all their options.
"""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from mlx_phi4.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?P<mark><!-- published weights -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
# what a block may call: programs that find this tree, and installing, which this environment has behind it
SHIM = """#!/bin/sh
case "$(basename "$0") $*" in
  pip\\ *|*-m\\ pip\\ *|*-m\\ pytest*) exit 0 ;;
  *-m\\ venv\\ *)
    mkdir -p "$3/bin" && cp "{shims}"/* "$3/bin"
    echo 'PATH="$PWD/.venv/bin:$PATH"' > "$3/bin/activate"
    ;;
  mlx_phi4.*) name=$(basename "$0"); exec "{python}" -m mlx_phi4 "${{name#mlx_phi4.}}" "$@" ;;
  *) exec "{python}" "$@" ;;
esac
"""
# Python blocks of a page share their names, and the shell's blocks come between them
RUN_PYTHON = "import sys; names = {}\nfor each in sys.argv[1:]: exec(compile(open(each).read(), each, 'exec'), names)"


@dataclass(frozen=True)
class Block:
    """A fenced block: the page and the line it begins in."""

    page: Path
    line: int
    kind: str
    code: str
    published: bool

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start("code")].count("\n"), found["kind"], found["code"], found["mark"] is not None)
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]
READ_ONLY = [block for block in BLOCKS if block.published]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with what a clone has, in which the commands are on the path."""
    for name in ("README.md", "pyproject.toml", "convert.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shims = tmp_path.parent / f"{tmp_path.name}-bin"
    shims.mkdir()
    for name in ("pip", "python", "python3", *(f"mlx_phi4.{each}" for each in main.list_commands(None))):
        (shims / name).write_text(SHIM.format(shims=shims, python=sys.executable))
        (shims / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{shims}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run_as_they_stand(page, clone):
    before = []  # Python blocks, which the next one may build on
    for number, block in enumerate(each for each in blocks(page) if not each.published):
        if block.kind == "sh":
            arguments = ["bash", "-euo", "pipefail", "-c", block.code]
        elif block.kind == "python":
            before.append(clone.parent / f"{clone.name}-{number}.py")
            before[-1].write_text(block.code, encoding="utf-8")
            arguments = [sys.executable, "-c", RUN_PYTHON, *map(str, before)]
        else:
            continue
        done = subprocess.run(
            arguments, cwd=clone, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
        )
        assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr and "error:" not in done.stderr, f"{block}: {done.stderr}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_what_it_is(block):
    known = ("sh", "python", "json", "xml", "caddyfile")
    assert block.kind in known or block.code.startswith("mlx_phi4/\n"), "neither run nor read"
    if block.kind == "xml":
        ElementTree.fromstring(block.code)
    if block.kind == "caddyfile":
        assert block.code.count("{") == block.code.count("}") > 0
    if block.kind == "json":
        for line in block.code.splitlines():
            json.loads(line)


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.kind == "python"], ids=str)
def test_names_that_are_imported_exist(block):
    """Also where a block runs: it shows another way for each name at most once."""
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("mlx_phi4"):
            missing = [each.name for each in node.names if not hasattr(importlib.import_module(node.module), each.name)]
            assert not missing, node.module
        elif isinstance(node, ast.Import):
            for name in (each.name for each in node.names if each.name.startswith("mlx_phi4")):
                assert importlib.util.find_spec(name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_text_exist(page):
    """`mlx_phi4.generation.sampling.Sampling` and the like; tables may begin with names of old."""
    text = re.sub(r"^\|[^|]*\|", "", page.read_text(encoding="utf-8"), flags=re.M)
    for name in set(re.findall(r"(?<![\w/.\"])mlx_phi4\.([\w.]*\w)", text)):
        if name.partition(".")[0] in main.list_commands(None):
            continue
        module, _, last = f"mlx_phi4.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), last) or importlib.util.find_spec(f"{module}.{last}"), name


def commands(code: str) -> list[list[str]]:
    """Our commands in a shell's text, as lists of words."""
    found: list[list[str]] = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("|&;<>()"):
                command, ended = [], command
                found += [ended[i:] for i, each in enumerate(ended) if each.rpartition("/")[2].startswith("mlx_phi4.")]
            else:
                command.append(word)
    return found


@pytest.mark.parametrize("block", [each for each in READ_ONLY if each.kind == "sh"], ids=str)
def test_commands_that_need_weights_are_spelled_right(block):
    subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
    assert commands(block.code)
    for name, *arguments in commands(block.code):
        check(main.get_command(None, name.rpartition(".")[2]), arguments)


def check(command: click.Command, arguments: list[str]) -> None:
    """Parse a command line as the command itself does, options and their values. Raises click.UsageError."""
    context = command.make_context(command.name, list(arguments))
    if isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, rest, parent=context)


def test_a_wrong_option_would_be_found():
    assert commands("ffmpeg -i a.mkv - | ./bin/mlx_phi4.chat --stats # x\nmlx_phi4.evaluate asr a < b && true") == [
        ["./bin/mlx_phi4.chat", "--stats"],
        ["mlx_phi4.evaluate", "asr", "a"],
    ]
    for arguments in (["asr", "a", "--colour", "red", "--model", "m"], ["asr", "a"], ["paint"]):
        with pytest.raises(click.UsageError):
            check(main.get_command(None, "evaluate"), arguments)
