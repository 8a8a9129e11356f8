"""Batches beside mlx-lm's ``BatchGenerator`` on the same text checkpoint, and the host's share of a step.

    python benchmarks/batches.py --work SOME/FOLDER

A random float32 checkpoint of four layers of 256 with the plain RoPE table, which both packages compute alike: their
tokens must be the same. Every round runs both, in turns that swap; printed are medians and, for the ratio of the two
(above 1: this package is faster), the median of the rounds with its 95 % interval by bootstrap.

The host's share is what the driving thread itself computes (its CPU time, which waiting does not count in) of the wall
time of a decoding step: building the graph, choosing rows, reading tokens. A device hides it as long as it is the
smaller part, as the next step is submitted before this one's tokens are read.
"""

import json
from pathlib import Path
from time import perf_counter, thread_time

import click
import numpy as np
from generation import interval, paired, table

from mlx_phi4 import load
from mlx_phi4.evaluation.speed import machine
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.inputs.processor import Row
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

SIZES = Sizes(hidden=256, layers=4, heads=4, kv_heads=2, mlp=512, vocab=320)
# prompt and answer of each row, in tokens
MIXED = [(16, 23), (25, 11), (40, 17), (63, 8), (100, 20), (159, 14), (252, 10), (400, 19)]
EVEN = [(16, 8), (71, 10), (126, 12), (181, 14), (236, 17), (290, 19), (345, 21), (400, 23)]
EQUAL = [(128, 32)] * 8
CASES = {
    "8 prompts of 16 to 400, most of them short": MIXED,
    "8 prompts of 16 to 400, evenly spread": EVEN,
    "8 prompts of 128": EQUAL,
    "1 prompt of 128": EQUAL[:1],
}

Prompts = list[tuple[list[int], int]]


def prompts(case: list[tuple[int, int]]) -> Prompts:
    """Random ids, and how many tokens are to follow."""
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 250, length).tolist(), count) for length, count in case]


class Ours:
    """This package's ``Batch``."""

    def __init__(self, folder: Path):
        self.model, _ = load(folder, lazy=False)

    def run(self, asked: Prompts) -> tuple[float, list[list[int]]]:
        """Seconds for all rows, and their tokens."""
        rows = [Sequence(Row(tuple(ids)), GenerationOptions(max_tokens=count)) for ids, count in asked]
        began = perf_counter()
        batch = Batch(self.model)
        for row in rows:
            batch.admit(row)
        while batch.active:
            batch.step()
        return perf_counter() - began, [row.tokens for row in rows]

    def host(self, rows: int, steps: int = 60) -> tuple[float, float]:
        """Seconds of a decoding step, and of the host's own work in it: medians."""
        batch = Batch(self.model)
        for ids, _ in prompts([(128, 0)] * rows):
            batch.admit(Sequence(Row(tuple(ids)), GenerationOptions(max_tokens=steps + 8)))
        for _ in range(4):
            batch.step()
        times = []
        for _ in range(steps):
            wall, own = perf_counter(), thread_time()
            batch.step()
            times.append((perf_counter() - wall, thread_time() - own))
        batch.close()
        wall, own = np.median(times, axis=0)
        return float(wall), float(own)


class Peer:
    """mlx-lm's ``BatchGenerator``."""

    def __init__(self, folder: Path):
        from mlx_lm.utils import load_model

        self.model, _ = load_model(folder)

    def run(self, asked: Prompts) -> tuple[float, list[list[int]]]:
        """As ``Ours.run``."""
        from mlx_lm.generate import BatchGenerator

        began = perf_counter()
        generator = BatchGenerator(self.model, stop_tokens=[])
        ids = generator.insert([prompt for prompt, _ in asked], [count for _, count in asked])
        tokens: dict[int, list[int]] = {each: [] for each in ids}
        left = set(ids)
        while left:
            for response in generator.next_generated():
                tokens[response.uid].append(response.token)
                if response.finish_reason:
                    left.discard(response.uid)
        seconds = perf_counter() - began
        generator.close()
        return seconds, [tokens[each] for each in ids]


def checkpoint(work: Path) -> Path:
    """A text checkpoint with the plain table of both packages."""
    folder = work / "batches"
    if not (folder / "config.json").exists():
        write_random_checkpoint(folder, "text", SIZES)
        config = json.loads((folder / "config.json").read_text())
        config["rope_scaling"] = None
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint and results.")
@click.option("--rounds", default=9, show_default=True, help="Counted rounds.")
def main(work: Path, rounds: int):
    """Measure batches beside mlx-lm's, and the host's share of a step."""
    work.mkdir(parents=True, exist_ok=True)
    folder = checkpoint(work)
    ours, peer, lines = Ours(folder), Peer(folder), []
    for name, case in CASES.items():
        asked = prompts(case)
        if ours.run(asked)[1] != peer.run(asked)[1]:
            raise click.ClickException(f"{name}: the two packages give different tokens")
        total = sum(count for _, count in case)

        def measured(engine, asked=asked, total=total):
            return lambda: {"tokens": total / engine.run(asked)[0]}

        found = paired(measured(ours), measured(peer), rounds)
        mine, theirs = ([row["tokens"] for row in rows] for rows in found)
        ratio = interval([a / b for a, b in zip(mine, theirs, strict=True)])
        lines.append({"what": name, "figure": "answer tokens a second, prompts included", "ours": np.median(mine),
                      "peer": np.median(theirs), "ratio": ratio})  # fmt: skip
        click.echo(f"{name}: done", err=True)
    shares = {rows: ours.host(rows) for rows in (1, 8, 16)}
    click.echo(f"{machine()}\n\n{table(lines)}\n")
    click.echo("| rows | a decoding step, ms | the host's own work, ms | share |\n|--:|--:|--:|--:|")
    for rows, (wall, own) in shares.items():
        click.echo(f"| {rows} | {1000 * wall:.2f} | {1000 * own:.2f} | {own / wall:.0%} |")
    results = {"machine": machine(), "rounds": rounds, "lines": lines, "host": shares}
    (work / "batches.json").write_text(json.dumps(results, indent=1, default=float), encoding="utf-8")


if __name__ == "__main__":
    main()
