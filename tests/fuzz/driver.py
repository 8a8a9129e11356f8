"""Spoiled and made-up inputs: each ends in a right result or in one line, soon, in bounded memory.

    python tests/fuzz/driver.py --minutes 60 --seed 1                       # a hunt, see README.md
    python tests/fuzz/driver.py FOLDER --seed 0 --kind config --case 17     # one case again, with its traceback
    python tests/fuzz/driver.py FOLDER --kind picture --input found/picture # a saved input again

FOLDER holds reduced checkpoints by layout: microsoft, transformers, text; a hunt makes its own. The case that is begun
stands in the last line of the log, so that a crash or an endless loop can be told, too. A new kind is one entry in
``kinds.py``.
"""

import argparse
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

SECONDS, MEGABYTES = 2.0, 500.0  # that a case may take
CORPUS = Path(__file__).parent / "corpus"  # by kind: inputs that were wrong once


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind.

    Args:
        name: of the kind, in reports.
        cases: how many of them a run tries.
        read: (content, scratch folder, folder of the checkpoints) -> None. It raises Phi4Error for what it refuses.
        seeds: folder of the checkpoints -> valid contents.
        mutate: (random, a valid content) -> what to try.
        strategy: in their place, folder of the checkpoints -> Hypothesis' strategy of contents.
        seconds: that a case may take, of a processor's time.
        megabytes: that the process may grow by.
    """

    name: str
    cases: int
    read: Callable[[bytes, Path, Path], None]
    seeds: Callable[[Path], list[bytes]] | None = None
    mutate: Callable[[Random, bytes], bytes] | None = None
    strategy: Callable[[Path], Any] | None = None
    seconds: float = SECONDS
    megabytes: float = MEGABYTES


def contents(kind: Kind, folder: Path, seed: int, cases: range) -> Iterator[tuple[int, bytes]]:
    """What each case tries: the same for the same seed, whichever cases were tried before."""
    seeds = kind.seeds(folder)
    for case in cases:
        random = Random(f"{kind.name} {seed} {case}")
        yield case, kind.mutate(random, random.choice(seeds))


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
    if seconds > kind.seconds:
        return f"took {seconds:.1f} s"
    megabytes = peak() - before
    return f"took {megabytes:.0f} MB" if megabytes > kind.megabytes else None


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


class Run:
    """Cases of kinds, one after another: each is told and kept before it is tried.

    Args:
        save: where the content of the case that is begun is kept, and of those that failed.
        seconds: after which nothing more is begun.
    """

    def __init__(self, folder: Path, seed: int, *, save: Path | None = None, seconds: float | None = None):
        self.folder, self.seed, self.save = folder, seed, save
        self.end = None if seconds is None else time.monotonic() + seconds
        self.failed: list[str] = []

    @property
    def over(self) -> bool:
        return self.end is not None and time.monotonic() > self.end

    def attempt(self, kind: Kind, label: str, tried: bytes) -> str | None:
        """One case: what is wrong with it."""
        print(label, flush=True)
        path = self.save and self.save / f"{kind.name}-begun"
        if path:
            path.write_bytes(tried)
        return fault(kind, tried, self.folder)

    def fail(self, kind: Kind, label: str, number: str, tried: bytes, found: str) -> None:
        if self.save:
            (self.save / f"{kind.name}-{self.seed}-{number}").write_bytes(tried)
        self.failed.append(f"{label}: {found}")

    def corpus(self, kind: Kind) -> None:
        """Inputs that were wrong once."""
        for path in sorted((CORPUS / kind.name).glob("*")):
            label = f"--kind {kind.name} --input {path}"
            if found := self.attempt(kind, label, path.read_bytes()):
                self.failed.append(f"{label}: {found}")

    def kind(self, kind: Kind, cases: range) -> None:
        """New cases of a kind."""
        if kind.strategy:
            self._made_up(kind, len(cases))
            return
        for case, tried in contents(kind, self.folder, self.seed, cases):
            label = f"--kind {kind.name} --seed {self.seed} --case {case}"
            if found := self.attempt(kind, label, tried):
                self.fail(kind, label, str(case), tried, found)
            if self.over:
                return

    def _made_up(self, kind: Kind, count: int) -> None:
        """Hypothesis' cases, of which one that fails is made as small as can be."""
        from hypothesis import HealthCheck, Phase, given, seed, settings

        label, last = f"--kind {kind.name} --seed {self.seed} --cases {count}", {}

        @seed(self.seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(kind.strategy(self.folder))
        def tried(content: bytes) -> None:
            if self.over and not last:
                return
            if found := self.attempt(kind, label, content):
                last["content"], last["found"] = content, found
                raise AssertionError(found)

        try:
            tried()
        except BaseException as error:
            if not last:
                raise
            note = "" if isinstance(error, AssertionError) else f" ({error})"
            self.fail(kind, label, "made", last["content"], f"{last['content']!r:.2000}: {last['found']}{note}")


def main() -> None:
    from hunt import hunt
    from kinds import KINDS

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of checkpoints; a hunt makes its own")
    parser.add_argument("--kind", action="append", choices=[kind.name for kind in KINDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="hunt so long, each kind again and again with other seeds")
    parser.add_argument("--save", type=Path, help="a folder for inputs that fail; of a hunt found/")
    parser.add_argument("--share", type=float, default=1.0, help="of each kind's own number of cases")
    parser.add_argument("--cases", type=int, help="in its place")
    parser.add_argument("--case", type=int, help="this one only")
    parser.add_argument("--input", type=Path, help="this content only, of the one --kind")
    parser.add_argument("--seconds", type=float, help="begin nothing after so long")
    given = parser.parse_args()
    kinds = [kind for kind in KINDS if not given.kind or kind.name in given.kind]
    if given.minutes is not None:
        sys.exit(hunt([kind.name for kind in kinds], given.seed, given.minutes, given.save or Path("found")))
    if given.folder is None:
        parser.error("a folder of checkpoints, or --minutes")
    run = Run(given.folder, given.seed, save=given.save, seconds=given.seconds)
    if given.input:
        found = run.attempt(kinds[0], f"--kind {kinds[0].name} --input {given.input}", given.input.read_bytes())
        sys.exit(found)
    for kind in kinds:
        if given.case is not None:
            run.kind(kind, range(given.case, given.case + 1))
            continue
        run.corpus(kind)
        run.kind(kind, range(given.cases or math.ceil(kind.cases * given.share)))
    print(*run.failed, sep="\n", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(bool(run.failed))  # a server in a thread is not waited for


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]  # this tree, and what tests share
    main()
