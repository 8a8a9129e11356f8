"""A short run of seeded mutations: spoiled files end in a right load or in one line, in 2 s and 500 MB each."""

import os
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).parent / "fuzz" / "driver.py"
KINDS = (
    ("config", "tokenizer", "stops", "prompt-cache"),
    ("template", "tokenizer-config", "weights", "index", "folder"),
)  # two cores


def test_spoiled_files_are_refused_in_one_line(checkpoint, tmp_path):
    """In processes of their own: one that crashes or hangs is told of by the case that it had begun."""
    for layout in ("microsoft", "transformers", "text"):
        (tmp_path / layout).symlink_to(checkpoint(layout))
    runs = []
    for number, kinds in enumerate(KINDS):
        log, errors = tmp_path / f"{number}.log", tmp_path / f"{number}.err"
        command = [sys.executable, DRIVER, tmp_path, "--seed", "0", *(f"--kind={kind}" for kind in kinds)]
        with log.open("w") as out, errors.open("w") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | {"RUST_BACKTRACE": "0"})
        runs.append((process, log, errors))
    for process, log, errors in runs:
        try:
            code = process.wait(timeout=200)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "no end"
        last = log.read_text().splitlines()[-1:]
        assert code == 0, f"{code} at {last}; {errors.read_text()[-5000:]}"


def test_every_kind_is_run():
    text = (DRIVER.parent / "kinds.py").read_text()
    assert all(f'Kind("{kind}"' in text for kinds in KINDS for kind in kinds)
    assert text.count("    Kind(") == sum(map(len, KINDS))
