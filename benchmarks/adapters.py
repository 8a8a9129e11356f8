"""Many adapters in one batch: what eight cost beside one, and beside none.

    python benchmarks/adapters.py --work SOME/FOLDER
    python benchmarks/adapters.py --work SOME/FOLDER --clock cpu      # where other work runs beside it

A random float32 text checkpoint of four layers of 512 and eight random adapters of rank 16 on all linears. Sixteen rows
decode, two of each adapter; the same rows all by one adapter; and all by none. Every round runs the three in turn;
printed are medians of a step and, for the ratios, the median of the rounds with its 95 % interval by bootstrap. Every
row's tokens are compared with those that it gets alone, or the command stops.
"""

import json
from pathlib import Path
from time import perf_counter, process_time

import click
import mlx.core as mx
import numpy as np
from generation import interval

from mlx_phi4 import load
from mlx_phi4.decoder.adapters import Adapter, LinearAdapter, decoder_linears
from mlx_phi4.evaluation.speed import machine
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.inputs.processor import Row
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

SIZES = Sizes(hidden=512, layers=4, heads=8, kv_heads=4, mlp=1024, vocab=320)
ROWS, ADAPTERS, RANK = 16, 8, 16
PROMPT, STEPS, WARM = 32, 24, 4  # tokens, steps that count, steps that do not
CLOCKS = {"wall": perf_counter, "cpu": process_time}


def adapter(model, seed: int, dora: bool = False) -> Adapter:
    """Random numbers of a trained adapter's size."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.normal(0, 0.05, shape).astype(np.float32))

    parts = {}
    for path, (outputs, inputs) in decoder_linears(model.config.decoder).items():
        magnitude = mx.array(rng.uniform(1, 2, outputs).astype(np.float32)) if dora else None
        parts[path] = LinearAdapter(normal(RANK, inputs), normal(outputs, RANK), 2.0, magnitude)
    return Adapter(parts)


def sequences(adapters: list[str | None]) -> list[Sequence]:
    """Rows of random ids, one for each name."""
    ids = np.random.default_rng(0).integers(0, 250, (len(adapters), PROMPT)).tolist()
    options = GenerationOptions(max_tokens=STEPS + WARM + 1)
    return [Sequence(Row(tuple(row), adapter=name), options) for row, name in zip(ids, adapters, strict=True)]


def decode(model, adapters: list[str | None], clock) -> tuple[float, list[list[int]]]:
    """Seconds of a decoding step (median), and the rows' tokens."""
    rows, batch, times = sequences(adapters), Batch(model), []
    for row in rows:
        batch.admit(row)
    while batch.active:
        began, decoding = clock(), all(row.tokens for row in rows)
        batch.step()
        if decoding:
            times.append(clock() - began)
    return float(np.median(times[WARM:-1])), [row.tokens for row in rows]


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint and results.")
@click.option("--rounds", default=9, show_default=True, help="Counted rounds.")
@click.option("--clock", type=click.Choice([*CLOCKS]), default="wall", show_default=True, help="What is counted.")
@click.option("--dora", is_flag=True, help="DoRA instead of LoRA.")
def main(work: Path, rounds: int, clock: str, dora: bool):
    """Measure a batch of many adapters."""
    folder = work / "adapters"
    if not (folder / "config.json").exists():
        write_random_checkpoint(folder, "text", SIZES)
    model, _ = load(folder, lazy=False)
    names = [f"a{index}" for index in range(ADAPTERS)]
    for seed, name in enumerate(names):
        model.add_adapter(name, adapter(model, seed, dora))
    mixed = [names[row % ADAPTERS] for row in range(ROWS)]  # they come in any order
    cases = {f"{ADAPTERS} adapters": mixed, "1 adapter": [names[0]] * ROWS, "none": [None] * ROWS}
    _, together = decode(model, mixed, CLOCKS[clock])
    for row, name in enumerate(mixed):
        alone = sequences(mixed)[row]
        batch = Batch(model)
        batch.admit(alone)
        while batch.active:
            batch.step()
        if alone.tokens != together[row]:
            raise click.ClickException(f"row {row} ({name}) gets other tokens in the batch than alone")
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, adapters in cases.items():
            seconds, _ = decode(model, adapters, CLOCKS[clock])
            if number:
                found[name].append(seconds)
    first, *others = found
    click.echo(f"{machine()}\n{ROWS} rows, {STEPS} steps, {rounds} rounds, {clock} seconds; tokens equal to alone")
    for name, times in found.items():
        click.echo(f"{name}: {1000 * np.median(times):.2f} ms a step")
    ratios = {}
    for name in others:
        ratios[name] = interval([a / b for a, b in zip(found[first], found[name], strict=True)])
        middle, low, high = ratios[name]
        click.echo(f"{first} over {name}: {middle:.3f} (95 %: {low:.3f} to {high:.3f})")
    results = {"machine": machine(), "clock": clock, "dora": dora, "seconds": found, "ratios": ratios}
    (work / "adapters.json").write_text(json.dumps(results, indent=1, default=float), encoding="utf-8")


if __name__ == "__main__":
    main()
