"""``python -m mlx_phi4``: all commands, and their help at once."""

import re
import subprocess
import sys

import pytest

import mlx_phi4.commands.generate
from mlx_phi4.__main__ import main
from mlx_phi4.commands import habits

COMMANDS = {
    "generate": "--repetition-penalty",
    "chat": "--hide-thinking",
    "server": "--allow-origin",
    "transcribe": "--clip-timestamps",
    "lora": "--grad-checkpoint",
    "convert": "--adapter-bits",
    "fuse": "--most-change",
    "cache_prompt": "--prefill-step-size",
    "evaluate": "pictures",
    "benchmark": "--generation-tokens",
    "selftest": "--stages",
}
# runs the command, then says what it cost: "runpy" is python -m
HELP = """
import runpy, sys, time
sys.argv = ["mlx_phi4", *sys.argv[1:], "--help"]
try:
    runpy.run_module("mlx_phi4", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = {"mlx", "mlx_lm", "numpy", "torch", "transformers", "soundfile", "av", "PIL"} & set(sys.modules)
print(f"{time.process_time():.2f} {heavy}", file=sys.stderr)
"""


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_light(name):
    done = subprocess.run([sys.executable, "-c", HELP, *name.split()], capture_output=True, text=True, check=True)
    seconds, heavy = done.stderr.strip().split(" ", 1)
    assert heavy == "set()"
    assert float(seconds) <= 0.3
    assert done.stdout.startswith(f"Usage: python -m mlx_phi4 {name}")
    assert all(text in done.stdout for text in ([COMMANDS[name]] if name else COMMANDS))


def test_each_command_is_listed():
    assert sorted(main.list_commands(None)) == sorted(COMMANDS)
    assert main.get_command(None, "generate") is mlx_phi4.commands.generate.main


@pytest.mark.parametrize("name", ["", *COMMANDS, "evaluate asr"])
def test_each_command_tells_its_version(run_command, name):
    code, out, _ = run_command(lambda: mlx_phi4.commands.cli.run(main), *name.split(), "--version")
    assert (code, out) == (0, f"mlx_phi4 {mlx_phi4.__version__}\n")
    assert run_command(lambda: mlx_phi4.commands.cli.run(main), *name.split(), "-h")[1].startswith("Usage: ")


@pytest.mark.parametrize("name", ["generate", "chat", "server", "transcribe", "cache_prompt"])
def test_without_a_model_all_mean_the_same(name):
    (model,) = (each for each in main.get_command(None, name).params if each.name == "model")
    assert model.default == "microsoft/Phi-4-multimodal-instruct" and not model.required


def test_each_line_for_a_habit_names_something_of_ours():
    """An option that is named instead must exist somewhere, and the habit itself nowhere that the line is given."""
    commands = [main.get_command(None, name) for name in COMMANDS]
    commands += main.get_command(None, "evaluate").commands.values()
    ours = {option for each in commands for parameter in each.params for option in parameter.opts}
    for habit, line in habits.INSTEAD.items():
        for option in re.findall(r"--[a-z-]+", line):
            assert option in ours, (habit, option)


@pytest.mark.parametrize("arguments", [[], ["paint"]])
def test_no_such_command_is_one_line(run_command, arguments):
    code, out, err = run_command(lambda: mlx_phi4.commands.cli.run(main), *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and len(err.splitlines()) == 1
