"""Memory of batches: eight rows beside the same rows alone, and a thousand requests one after another.

    python benchmarks/memory.py

Both on the reduced random checkpoint, counted by MLX: bytes above the weights. The thousand requests are of all four
modes, a few rows at a time, sampled and greedy, with every kind of key/value cache; media are encoded once.
"""

import sys
import tempfile
from pathlib import Path

import click
import mlx.core as mx
import numpy as np

from mlx_phi4 import MediaCache, load
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.pool import answer_each
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.inputs.processor import Row
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
from samples import MODES

LENGTHS = {"eight of 16 to 400": (16, 25, 40, 63, 100, 159, 252, 400), "one long, seven short": (3000, *[100] * 7)}
CACHES = [{}, {}, {"kv_bits": 8, "kv_group_size": 32}, {"max_kv_size": 64}, {"temperature": 1.0, "seed": 3}]


def peak(model, rows: list[Row]) -> int:
    """Bytes above what is there before, at most, while the rows are answered in one batch."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    batch = Batch(model)
    for row in rows:
        batch.admit(Sequence(row, GenerationOptions(max_tokens=16)))
    while batch.active:
        batch.step()
    return mx.get_peak_memory() - before


@click.command()
@click.option("--requests", default=1000, show_default=True, help="One after another.")
def main(requests: int):
    """Count bytes of batches and of a long life."""
    with tempfile.TemporaryDirectory() as folder:
        model, processor = load(write_random_checkpoint(folder), lazy=False)
    print(f"mlx {mx.__version__} on {mx.default_device()}, float32\n")
    print("| rows | peak of the batch, MB | sum of the rows alone, MB | ratio |\n|---|--:|--:|--:|")
    rng = np.random.default_rng(0)
    for name, lengths in LENGTHS.items():
        rows = [Row(tuple(rng.integers(0, 250, length).tolist())) for length in lengths]
        peak(model, rows[:1])
        together, apart = peak(model, rows), sum(peak(model, [row]) for row in rows)
        print(f"| {name} | {together / 1e6:.1f} | {apart / 1e6:.1f} | {together / apart:.2f} |")
    media, kinds, active = MediaCache(), list(MODES.values()), {}

    def asked():
        from dataclasses import replace

        for number in range(requests):
            options = CACHES[number % len(CACHES)] | {"max_tokens": 1 + number % 4, "media_cache": media}
            yield number, replace(kinds[number % len(kinds)], options=options)

    for done, _ in enumerate(answer_each(model, processor, asked(), rows=4), start=1):
        if done in (10, 100, requests):
            active[done] = mx.get_active_memory()
    print("\n| requests | active memory, MB |\n|--:|--:|")
    for done, count in active.items():
        print(f"| {done} | {count / 1e6:.2f} |")


if __name__ == "__main__":
    main()
