"""The self-test: passes here, names the stage of a fault, and tells nobody who ran it."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from interrupting import pressed

from mlx_phi4 import Phi4Error, self_test
from mlx_phi4.checkpoint import hub
from mlx_phi4.commands.selftest import command
from mlx_phi4.selftest import files, samples, selftest
from mlx_phi4.selftest.bench import Bench
from mlx_phi4.selftest.report import HEADER, anonymous
from mlx_phi4.selftest.tolerances import TF32, UNIT, Arithmetic, distance

ROOT = Path(__file__).parents[1]
QUICK = "tokens,log-mel,views,norms,rope,vision-projector,audio-projectors,merge,crossing"  # a second or two


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A copy of what is built in that may be damaged."""
    for name in (samples.BUILT_IN_MODEL, "selftest"):
        shutil.copytree(hub.ASSETS / name, tmp_path / name)
    for owner, name, value in (
        (hub, "ASSETS", tmp_path),
        (files, "ASSETS", tmp_path),
        (samples, "SAMPLES", tmp_path / "selftest"),
    ):
        monkeypatch.setattr(owner, name, value)
    return tmp_path


def test_quick_stages_pass_and_a_report_names_nobody(run_command, tmp_path):
    report = tmp_path / "report.md"
    code, out, err = run_command(command, "--stages", f"files,{QUICK}", "--json", "--report", report)
    found = json.loads(out)
    assert (code, found["passed"], found["failed_stages"]) == (0, True, [])
    assert [stage["name"] for stage in found["stages"]] == ["files", *QUICK.split(",")]
    assert all(stage["checks"] for stage in found["stages"])
    assert err.count("passed") == 10
    text = report.read_text()
    assert text.startswith(HEADER) and "passed  rope" in text
    assert str(Path.home()) not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    "fault",
    ["speech adapter beside a picture", "rope scale off by 2 percent", "no separator between crops and global view"],
)
def test_a_fault_is_named(fault):
    """Three of those in tests/mutations, each in a process of its own and in its stage alone."""
    script = ROOT / "tests" / "mutations" / "run.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script, fault, "--alone"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "") and "1 of 1 named" in done.stdout


def test_a_gpu_is_compared_with_the_cpu_too(monkeypatch):
    """As far as a machine without one can show it: every comparison has one beside the CPU."""
    monkeypatch.setattr(Bench, "on_gpu", True)
    (outcome,) = self_test(stages=["audio-projectors"]).outcomes
    beside = [check for check in outcome.checks if check.name.endswith("beside the CPU")]
    assert outcome.state == "passed" and 2 * len(beside) == len(outcome.checks) == 12
    assert all(check.measured == 0 for check in beside)


def test_a_damaged_model_fails_its_stage_and_others_wait(run_command, broken):
    file = broken / samples.BUILT_IN_MODEL / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    code, out, err = run_command(command, "--stages", "files,tensors", "--quiet", "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert [stage["state"] for stage in found["stages"]] == ["FAILED", "not run"]
    assert found["failed_stages"] == ["files"]
    assert "is damaged" in out and str(broken) not in out


def test_what_breaks_in_a_stage_is_its_failure(run_command, monkeypatch):
    def burst(bench):
        yield from ()
        raise RuntimeError("no such kernel\nat all")

    stages = (selftest.Stage("log-mel", "", burst), selftest.Stage("views", "", lambda bench: iter(())))
    monkeypatch.setattr(selftest, "STAGES", stages)
    code, out, _ = run_command(command, "--stages", "log-mel,views")
    assert code == 1 and "        runs: RuntimeError: no such kernel at all\n" in out
    assert "FAILED  views" in out  # nothing was looked at


def test_a_model_of_ones_own(checkpoint, run_command):
    """Random weights pass but for what they say; a broken one is a failure of its stage."""
    stages = "model-tensors,model-tokens,model-rows"
    code, out, _ = run_command(command, "--model", checkpoint(), "--stages", stages, "--json", "--quiet")
    found = json.loads(out)
    assert (code, found["model"], found["failed_stages"]) == (0, "a folder", []), out
    assert str(checkpoint()) not in out


def test_a_model_that_lost_a_tensor(checkpoint, tmp_path, run_command):
    folder = shutil.copytree(checkpoint(layout="text"), tmp_path / "model")
    (shard,) = folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-400])
    code, out, _ = run_command(command, "--model", folder, "--stages", "model-tensors,model-rows", "--quiet")
    assert code == 1 and "FAILED  model-tensors" in out and "not run model-rows" in out


def test_modes_of_a_model_answer_bundled_media(monkeypatch):
    """The built-in one, so that answers can be right."""
    chosen = tuple(case for case in samples.CASES if case.name in ("capital", "command", "question"))
    monkeypatch.setattr(samples, "CASES", chosen)
    found = self_test(samples.BUILT_IN_MODEL, stages=["model-modes"])
    assert found.passed, found.table()
    assert sum(" -> " in note for note in found.notes) == len(chosen)


def test_wrong_options_are_one_line(run_command, tmp_path):
    for arguments, said in (
        (["--stages", "nonsense"], "stages"),
        (["--stages", "model-modes"], "need a model"),
        (["--revision", "main"], "revision"),
        (["--model", str(tmp_path / "none"), "--stages", "model-rows"], "none"),
        (["--report", str(tmp_path / "no" / "report.md")], "no such folder"),
    ):
        code, out, err = run_command(command, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and said in err, arguments
    (tmp_path / "mine.txt").write_text("precious")
    assert run_command(command, "--report", tmp_path / "mine.txt")[0] == 2
    assert (tmp_path / "mine.txt").read_text() == "precious"
    with pytest.raises(Phi4Error, match="stages"):
        self_test(stages=[])


def test_an_interruption_is_one_line():
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from mlx_phi4.__main__ import main"
    run = [sys.executable, "-c", f"{code}; from mlx_phi4.commands import cli; cli.run(main)", "selftest"]
    process = subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    lines = [process.stderr.readline()]  # the first stage is done
    out, err = pressed(process)
    lines += err.splitlines(keepends=True)
    assert (process.returncode, out) == (130, "")
    assert lines[-1].startswith("Interrupted after ") and "Traceback" not in err


def test_names_of_people_and_folders_go():
    told = "/home/anna/models/phi: is damaged; C:\\Users\\anna\\x.bin, ~/models/x, see https://example.org/a/b 3/4"
    assert anonymous(told) == "phi: is damaged; x.bin, x, see https://example.org/a/b 3/4"
    assert str(Path.home()) not in anonymous(f"in {Path.home()}")
    for name in (getpass.getuser(), socket.gethostname()):
        assert len(name) < 3 or name not in anonymous(f"on {name}, by {name}.")


def test_tolerances_follow_the_type():
    cpu, tensor_cores = Arithmetic("cpu", UNIT["float32"]), Arithmetic("gpu", TF32)
    kinds = [cpu.allowed(dtype, 4, 100) for dtype in ("float32", "float16", "bfloat16")]
    assert kinds == sorted(kinds) and kinds[0] == 16 * 2**-24 * 11
    assert cpu.allowed("float32", 4, 100) < tensor_cores.allowed("float32", 4, 100) < kinds[1] * 1.01
    assert cpu.allowed("bfloat16", 1, 100, packed=True) > cpu.allowed("bfloat16", 1, 100)
    expected = np.array([3.0, 4.0])
    assert distance(expected, expected) == 0 and distance(np.array([3.0, np.nan]), expected) == np.inf
    assert distance(np.array([3.0]), expected) == np.inf and distance(np.array([3.0, 4.5]), expected) > 0.1


def test_bundled_media_are_the_examples_and_the_package_stays_small():
    for name in (samples.SIGN, samples.SPOKEN_COMMAND, samples.SPOKEN_QUESTION):
        assert samples.path(name).read_bytes() == (ROOT / "examples" / "media" / name).read_bytes()
    package = [path for path in (ROOT / "mlx_phi4").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in package) < 12e6
