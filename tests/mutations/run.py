"""Break the package in many ways, one at a time, and see that the self-test names the stage.

    python tests/mutations/run.py [NAME ...] [--alone]

Each fault is made in a process of its own. The stages up to the one that is to be named are run: it must be the first
that fails. Exit code 1 if a fault survives or is taken for another.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))

from mutations import MUTATIONS, Mutation


def failed_stages(name: str, stages: list[str] | None) -> tuple[list[str], str]:
    """What the self-test says of a fault, in a process of its own: failed stages, and the first failure's words."""
    command = [sys.executable, __file__, "--apply", name, *(["--stages", ",".join(stages)] if stages else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return ["crashed"], done.stderr.strip().splitlines()[-1]
    found = json.loads(done.stdout.splitlines()[-1])
    return found["failed"], found["said"]


def upto(stage: str) -> list[str]:
    """The stages of the built-in model as far as this one."""
    from mlx_phi4.selftest.selftest import NAMES

    return list(NAMES[: NAMES.index(stage) + 1])


def apply(mutation: Mutation, stages: list[str] | None) -> None:
    """Make a fault here, run the self-test, and print what it says as JSON."""
    from mlx_phi4.checkpoint import hub

    with tempfile.TemporaryDirectory() as folder:
        if mutation.copied:
            for each in ("phi4-tiny", "selftest"):
                shutil.copytree(hub.ASSETS / each, Path(folder) / each)
            hub.ASSETS = Path(folder)
            mutation.apply(hub.ASSETS)
        else:
            mutation.apply()
        from mlx_phi4.selftest.selftest import self_test

        found = self_test(stages=stages)
    said = next((f"{check.name}: {check.note or check.measured}" for o in found.outcomes for check in o.failures), "")
    print(json.dumps({"failed": found.failed_stages, "said": said}))


@click.command()
@click.argument("names", nargs=-1)
@click.option("--apply", "applied", hidden=True)
@click.option("--stages", hidden=True)
@click.option("--alone", is_flag=True, help="Run the expected stage only: quick, but it shows less.")
def main(names, applied, stages, alone):
    """Make each fault and print what the self-test said."""
    if applied is not None:
        apply(MUTATIONS[applied], stages.split(",") if stages else None)
        return
    wrong = 0
    for name in names or MUTATIONS:
        mutation, began = MUTATIONS[name], time.perf_counter()
        failed, said = failed_stages(name, [mutation.stage] if alone else upto(mutation.stage))
        right = failed[:1] == [mutation.stage]
        wrong += not right
        seconds = f"{time.perf_counter() - began:.0f} s"
        print(
            f"| {name} | {mutation.stage} | {', '.join(failed) or '**survived**'} | {said[:90]} | {seconds} |",
            flush=True,
        )
    print(f"\n{len(names or MUTATIONS) - wrong} of {len(names or MUTATIONS)} named")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
