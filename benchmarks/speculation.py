"""Speculation beside the same answers without it, and rows that use none of it beside another checkout.

    python benchmarks/speculation.py                                # a copied passage, text that does not repeat
    python benchmarks/speculation.py --against OTHER/CHECKOUT       # rows without speculation: this code over that

phi4-tiny in float32, greedy unless a row says otherwise. Every round runs both, in turns that swap; a ratio is the
median of the rounds with its 95 % interval by bootstrap. Below 1: this is faster. CPU are the seconds of all threads,
which other programs disturb less.

The passage is as long as phi4-tiny was trained to copy words. Text that does not repeat is prose, the words of
docs/usage.md numbered in the order in which they first appear: some are the prompt, the next ones the answer, which is
put into the sampler's mouth, so that it is the same however good the model is. The times are those of whole requests,
prompt included.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import click
import mlx.core as mx
import numpy as np
from generation import interval, paired

from mlx_phi4 import Request, load
from mlx_phi4.decoder.decoder import Block
from mlx_phi4.evaluation.speed import machine
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.inputs.processor import Row

PASSAGE = "seven two nine four one six eight three zero five two nine"
COPY = f"Copy the words: {PASSAGE}"
PROSE = Path(__file__).parents[1] / "docs" / "usage.md"
PROMPT, ANSWER = 600, 256  # words of it
ROWS_AGAINST = (1, 8)
FIGURES = {  # of a worker: what they are called, and in which unit
    "seconds": ("ms a step", 1000),
    "cpu": ("ms of CPU a step", 1000),  # of all threads: other programs disturb it less
    "peak": ("peak memory, MB", 1e-6),
}


class Told:
    """In a sampler's place: the answer is known."""

    def __init__(self, tokens: list[int]):
        self._tokens = tokens

    def __call__(self, logits: mx.array, number: int, allowed: mx.array | None = None) -> mx.array:
        # not without the logits: what nobody looks at is never computed
        return self._tokens[number] + 0 * mx.argmax(logits, axis=-1)

    def rewind(self, history: list[int]) -> None:
        pass


class Answers:
    """Whole requests on phi4-tiny."""

    def __init__(self):
        self.model, self.processor = load("phi4-tiny", dtype="float32", lazy=False)

    def copying(self, *others: str, **options) -> list[Sequence]:
        """Rows: the passage with these options, and others without speculation."""
        prompts = [(COPY, options), *((each, {}) for each in others)]
        rows = [(self.processor.row(Request(prompt)), own) for prompt, own in prompts]
        tokenizer = self.processor.tokenizer
        return self._owned([Sequence(row, GenerationOptions(max_tokens=40, **own), tokenizer) for row, own in rows])

    def prose(self, rows: int = 1, **options) -> list[Sequence]:
        """Rows of prose, of which the first has these options; the others are turned round, each differently."""
        numbers: dict[str, int] = {}
        words = [numbers.setdefault(word, len(numbers) % 700) for word in PROSE.read_text(encoding="utf-8").split()]
        found = []
        for number in range(rows):
            turned = words[97 * number :] + words[: 97 * number]
            own = GenerationOptions(temperature=1.0, max_tokens=ANSWER, **({} if number else options))
            found.append(Sequence(Row(tuple(turned[:PROMPT])), own, self.processor.tokenizer, stop_ids=frozenset()))
            found[-1].told = Told(turned[PROMPT : PROMPT + ANSWER])
        return self._owned(found)

    def _owned(self, rows: list[Sequence]) -> list[Sequence]:
        for row in rows:
            row.owner = self.model
        return rows


def deeper() -> Answers:
    """phi4-tiny with 20 layers more that add nothing: what a large model costs that answers like its draft model."""
    found = Answers()
    config, layers = found.model.config, found.model.model.layers
    for _ in range(5 * len(layers)):
        block = Block(config.decoder, config.adapters)
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            linear.base.weight = mx.zeros_like(linear.base.weight)
        layers.append(block)
    mx.eval(found.model.parameters())
    return found


def run(rows: list[Sequence]) -> dict:
    """Seconds by the clock and of all threads, and decoder steps of a batch."""
    began, cpu, batch = perf_counter(), process_time(), Batch(rows[0].owner)
    for row in rows:
        batch.admit(row)
        row.sampler = getattr(row, "told", row.sampler)
    while batch.active:
        batch.step()
    seconds = {"seconds": perf_counter() - began, "cpu": process_time() - cpu}
    return seconds | {"steps": batch.steps, "rows": rows}


def compared(what: str, rounds: int, rows: Callable[..., list[Sequence]], how: dict) -> list[str]:
    """A table's row: seconds and steps with and without speculation."""
    fast, plain = run(rows(**how)), run(rows())
    if [row.tokens for row in fast["rows"]] != [row.tokens for row in plain["rows"]]:
        raise click.ClickException(f"{what}: the tokens differ")
    found, base = paired(lambda: run(rows(**how)), lambda: run(rows()), rounds)
    wall, cpu = (
        interval([a[figure] / b[figure] for a, b in zip(found, base, strict=True)]) for figure in ("seconds", "cpu")
    )
    steps = [np.median([each["steps"] for each in run]) for run in (found, base)]
    first = [run["rows"][0] for run in found]
    right, wrong = (np.median([getattr(row, name) for row in first]) for name in ("accepted", "rejected"))
    return [
        what, f"{len(first[-1].tokens)}", f"{steps[0]:.0f} of {steps[1]:.0f}", f"{steps[0] / steps[1]:.2f}",
        f"{right:.0f}, {wrong:.0f}", f"{1000 * np.median([each['seconds'] for each in base]):.1f}",
        *(f"{each[0]:.3f} ({each[1]:.3f} to {each[2]:.3f})" for each in (wall, cpu)),
    ]  # fmt: skip


def without(rounds: int, against: Path) -> Iterator[list[str]]:
    """Rows that use none of it: seconds a token and peak memory of this checkout over another's, in turns."""
    mine, theirs = Worker(Path(__file__).parents[1]), Worker(against)
    for rows in ROWS_AGAINST:
        found, base = paired(lambda rows=rows: mine.run(rows), lambda rows=rows: theirs.run(rows), rounds)
        for figure, (name, unit) in FIGURES.items():
            ratio = interval([a[figure] / b[figure] for a, b in zip(found, base, strict=True)])
            medians = [np.median([each[figure] for each in runs]) for runs in (found, base)]
            shown = (f"{unit * each:.3f}" for each in medians)
            yield [f"{rows} rows, {name}", *shown, f"{ratio[0]:.4f}", f"{ratio[1]:.4f} to {ratio[2]:.4f}"]
    for worker in (mine, theirs):
        worker.close()


# what a worker of either checkout runs: only what both have
WORKER = """
import json, sys
from time import perf_counter, process_time
import mlx.core as mx
from mlx_phi4 import Request, load
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
model, processor = load("phi4-tiny", dtype="float32", lazy=False)
for line in sys.stdin:
    count, batch = int(line), Batch(model)
    mx.clear_cache()
    mx.reset_peak_memory()
    for number in range(count):
        row = processor.row(Request("seven two nine four one " * (number + 1)))
        batch.admit(Sequence(row, GenerationOptions(max_tokens=80), stop_ids=frozenset()))
    batch.step()
    began, cpu, before = perf_counter(), process_time(), batch.steps
    while batch.active:
        batch.step()
    steps = batch.steps - before
    found = {"seconds": (perf_counter() - began) / steps, "cpu": (process_time() - cpu) / steps}
    print(json.dumps(found | {"peak": mx.get_peak_memory()}), flush=True)
"""


class Worker:
    """A process of a checkout's own code that is asked for one measurement at a time."""

    def __init__(self, checkout: Path):
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        )

    def run(self, rows: int) -> dict:
        """Seconds a step and peak bytes of so many rows."""
        self._process.stdin.write(f"{rows}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def show(head: list[str], lines: Iterable[list[str]]) -> None:
    """A table in Markdown, line by line as they are measured."""
    for row in (head, ["---"] + ["--:"] * (len(head) - 1)):
        click.echo(f"| {' | '.join(row)} |")
    for row in lines:
        click.echo(f"| {' | '.join(row)} |")


@click.command()
@click.option("--rounds", default=15, show_default=True, help="Counted rounds.")
@click.option("--only", default="", help="Cases whose names hold this text.")
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Another checkout, to compare rows with.")
def main(rounds: int, only: str, against: Path | None):
    """Measure speculation."""
    click.echo(f"{machine()}\n")
    if against is not None:
        head = ["without speculation", "here", "there", "ratio", "95 % interval"]
        show(head, without(rounds, against))
        return
    answers = Answers()
    copying, prose = answers.copying, answers.prose
    others = partial(copying, *["What is the capital of France?"] * 3)
    wrong = " ".join(["seven two nine four one six eight three zero five"] * 20)
    cases = {
        "copied passage: lookup": (copying, {"speculation": "lookup"}),
        "copied passage: prediction": (copying, {"prediction": PASSAGE}),
        "copied passage: lookup, beside 3 short answers": (others, {"speculation": "lookup"}),
        "prose: lookup": (prose, {"speculation": "lookup"}),
        "prose: a prediction of something else": (prose, {"prediction": wrong}),
        "prose: lookup, beside 3 rows without": (partial(prose, 4), {"speculation": "lookup"}),
        "six times as deep, copied passage: phi4-tiny drafts": (
            deeper().copying,
            {"speculation": answers.model},
        ),
    }
    head = ["", "tokens", "steps", "ratio", "right, wrong", "ms without", "wall, with / without", "CPU"]
    show(head, (compared(what, rounds, *case) for what, case in cases.items() if only in what))


if __name__ == "__main__":
    main()
