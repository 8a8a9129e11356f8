"""A hunt: kinds in turns, each time with another seed and in a process of its own, which may crash or hang."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

DRIVER = Path(__file__).parent / "driver.py"
TURN = 25.0  # s that a kind has before the next one comes
HANGS = 300.0  # s in one case, after which nothing more is expected of it
ADDRESSES = 16 << 30  # bytes that a process may have, so that one that runs wild ends alone


def hunt(kinds: list[str], seed: int, minutes: float, save: Path) -> int:
    """Look for inputs that go wrong, for so long; the exit code. Each finding is told once, with its saved input."""
    end = time.monotonic() + 60 * minutes
    save.mkdir(parents=True, exist_ok=True)
    tried, known, findings = Counter(), set(), 0
    with TemporaryDirectory() as folder:
        _write_checkpoints(Path(folder))
        for turn in count():
            name, number = kinds[turn % len(kinds)], seed * 100_000 + turn // len(kinds)
            left = end - time.monotonic()
            if left <= 0:
                break
            cases, found = _turn(Path(folder), name, number, min(TURN, left), save)
            tried[name] += cases
            for each in found:
                findings += 1
                where = f"{name} {_place(each)}"
                if where not in known:
                    known.add(where)
                    print(f"{time.strftime('%H:%M:%S')} FOUND {each}", flush=True)
            if turn % len(kinds) == len(kinds) - 1:
                print(f"{time.strftime('%H:%M:%S')} {sum(tried.values())} cases, {findings} findings", flush=True)
    print(f"{minutes:g} minutes, seed {seed}: {sum(tried.values())} cases, {findings} findings")
    print(", ".join(f"{name} {cases}" for name, cases in tried.items()))
    return 1 if findings else 0


def _write_checkpoints(folder: Path) -> None:
    from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

    for layout in ("microsoft", "transformers", "text"):
        write_random_checkpoint(folder / layout, layout)


def _turn(folder: Path, name: str, seed: int, seconds: float, save: Path) -> tuple[int, list[str]]:
    """Cases of a kind in a process; how many were begun, and what was found."""
    log, errors = folder / "log", folder / "errors"
    command = [sys.executable, DRIVER, folder, "--kind", name, "--seed", seed, "--seconds", seconds, "--save", save]
    with log.open("w") as out, errors.open("w") as err:
        worker = subprocess.Popen(
            list(map(str, command)),
            stdout=out,
            stderr=err,
            env=os.environ | {"RUST_BACKTRACE": "0", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"},
            preexec_fn=_limit,
            start_new_session=True,
        )
        hung = _wait(worker, log)
    begun = log.read_text(errors="replace").splitlines()
    said = errors.read_text(errors="replace").strip()
    if worker.returncode == 0:
        return len(begun), []
    if worker.returncode == 1 and not hung and said.startswith("--kind"):
        return len(begun), [each for each in said.split("\n--kind") if each]
    path, kept = save / f"{name}-begun", save / f"{name}-{seed}-crash"
    if path.exists():
        path.rename(kept)
    how = f"no end after {HANGS:g} s" if hung else f"exit {worker.returncode}"
    return len(begun), [f"{begun[-1] if begun else name}: {how}, input {kept.name}: {said[-3000:]}"]


def _limit() -> None:
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wait(worker: subprocess.Popen, log: Path) -> bool:
    """Until it ends; True if it had to be killed, as its last case never ended."""
    while True:
        try:
            worker.wait(timeout=1)
            return False
        except subprocess.TimeoutExpired:
            if time.time() - log.stat().st_mtime > HANGS:
                worker.send_signal(signal.SIGABRT)  # so that it says where it is
                try:
                    worker.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()
                return True


def _place(found: str) -> str:
    """What tells one finding from another: where it was raised, not with which input."""
    lines = [line.strip() for line in found.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ")]
    return f"{places[-1]} {lines[-1][:60]}" if places else lines[-1].rpartition(": ")[2][:40]
