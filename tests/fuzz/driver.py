"""Seeded mutations of valid files, each read in this process: a right result or a Phi4Error, soon, in bounded memory.

    python tests/fuzz/driver.py FOLDER --seed 0                         # all kinds, as the test runs them
    python tests/fuzz/driver.py FOLDER --seed 0 --kind config --case 17 # one case again, with its traceback

FOLDER holds reduced checkpoints by layout: microsoft, transformers, text. Other seeds and counts find other things. The
case that is begun stands in the last line of the log, so that a crash or an endless loop can be told, too. A new kind
is one entry in ``kinds.py``.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

SECONDS, MEGABYTES = 2.0, 500.0  # that a case may take


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Args:
        name: of the kind, in reports.
        cases: how many of them a run tries.
        seeds: folder of the checkpoints -> valid contents.
        mutate: (random, a valid content) -> what to try.
        read: (content, scratch folder, folder of the checkpoints) -> None. It raises Phi4Error for what it refuses.
    """

    name: str
    cases: int
    seeds: Callable[[Path], list[bytes]]
    mutate: Callable[[Random, bytes], bytes]
    read: Callable[[bytes, Path, Path], None]


def content(kind: Kind, seeds: list[bytes], seed: int, case: int) -> bytes:
    """What a case tries: the same for the same seed, whichever cases were tried before."""
    random = Random(f"{kind.name} {seed} {case}")
    return kind.mutate(random, random.choice(seeds))


def fault(kind: Kind, tried: bytes, folder: Path) -> str | None:
    """What is wrong with how a content is read; None if nothing is."""
    from mlx_phi4 import Phi4Error

    before, start, used = reset_peak(), time.monotonic(), time.process_time()
    try:
        with TemporaryDirectory() as scratch:
            kind.read(tried, Path(scratch), folder)
    except Phi4Error as error:
        if not str(error).isprintable() or not str(error):
            return f"the message is not one line: {error!r}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        return traceback.format_exc()
    # a busy machine may take longer for work that is none
    seconds = min(time.monotonic() - start, time.process_time() - used)
    if seconds > SECONDS:
        return f"took {seconds:.1f} s"
    megabytes = peak() - before
    return f"took {megabytes:.0f} MB" if megabytes > MEGABYTES else None


def reset_peak() -> float:
    """Resident memory in MB, from which the peak is counted anew where the system can do that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The most resident memory since it was reset, or since the process began, in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def run(kinds: list[Kind], folder: Path, seed: int, cases: range | None, log=sys.stdout) -> list[str]:
    """Try cases of all kinds; one line for each that failed."""
    failed = []
    for kind in kinds:
        seeds = kind.seeds(folder)
        for case in cases or range(kind.cases):
            label = f"--kind {kind.name} --seed {seed} --case {case}"
            print(label, file=log, flush=True)
            if found := fault(kind, content(kind, seeds, seed, case), folder):
                failed.append(f"{label}: {found}")
    return failed


def main() -> None:
    from kinds import KINDS

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", action="append", choices=[kind.name for kind in KINDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="instead of each kind's own number")
    parser.add_argument("--case", type=int, help="this one only")
    given = parser.parse_args()
    cases = range(given.case, given.case + 1) if given.case is not None else given.cases and range(given.cases)
    kinds = [kind for kind in KINDS if not given.kind or kind.name in given.kind]
    failed = run(kinds, given.folder, given.seed, cases)
    print(*failed, sep="\n", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # this tree, whatever is installed
    main()
