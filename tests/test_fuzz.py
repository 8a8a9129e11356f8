"""A short run of the fuzzers: spoiled inputs end in a right answer or in one line, in bounded time and memory.

A longer one, and what it found: tests/fuzz/README.md.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).parent / "fuzz" / "driver.py"
WHOLE = (  # quick ones: all their cases, on two cores
    ("config", "tokenizer", "stops", "prompt-cache"),
    ("template", "tokenizer-config", "preprocessor", "weights", "index", "folder"),
)
SHARED = (  # a few cases, and inputs that were wrong once
    ("picture", "sound", "container", "video", "request", "line", "made-up-line", "adapter"),
    ("body", "spoiled-body", "form", "session", "command-line", "killed"),
)
SHARE = 0.03


def run(checkpoint, folder, groups, *options):
    """In processes of their own: one that crashes or hangs is told of by the case that it had begun."""
    for layout in ("microsoft", "transformers", "text"):
        (folder / layout).symlink_to(checkpoint(layout))
    runs = []
    for number, kinds in enumerate(groups):
        log, errors = folder / f"{number}.log", folder / f"{number}.err"
        command = [sys.executable, DRIVER, folder, "--seed", "0", *options, *(f"--kind={kind}" for kind in kinds)]
        environment = os.environ | {"RUST_BACKTRACE": "0", "HF_HUB_OFFLINE": "1"}
        with log.open("w") as out, errors.open("w") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        runs.append((process, log, errors))
    for process, log, errors in runs:
        try:
            code = process.wait(timeout=200)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "no end"
        last = log.read_text().splitlines()[-1:]
        assert code == 0, f"{code} at {last}; {errors.read_text()[-5000:]}"


def test_spoiled_files_are_refused_in_one_line(checkpoint, tmp_path):
    run(checkpoint, tmp_path, WHOLE)


def test_media_requests_bodies_and_commands(checkpoint, tmp_path):
    run(checkpoint, tmp_path, SHARED, "--share", str(SHARE))


def test_every_kind_is_run():
    text = "".join(path.read_text() for path in DRIVER.parent.glob("*.py"))
    kinds = re.findall(r'^    Kind\("([\w-]+)"', text, re.MULTILINE)
    assert sorted(kinds) == sorted(kind for group in WHOLE + SHARED for kind in group)
