"""Decodes rows whenever a line comes with their number, and prints seconds of a step: ``structured.py`` compares two.

It names only what older checkouts have, too.
"""

import sys
from time import perf_counter, process_time

import numpy as np

from mlx_phi4 import load
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.inputs.processor import Row


def decode(model, rows: int, steps: int, clock: str, constraints: tuple = ()) -> float:
    """Seconds of a step: the clock's median, or those of all threads on average."""
    batch = Batch(model)
    asked = [Sequence(Row(tuple(range(16))), GenerationOptions(max_tokens=steps + 8)) for _ in range(rows)]
    for row, constraint in zip(asked, constraints, strict=False):
        row.constraint = constraint
    for row in asked:
        batch.admit(row)
    for _ in range(4):
        batch.step()
    seconds, began = [], process_time()
    for _ in range(steps):
        start = perf_counter()
        batch.step()
        seconds.append(perf_counter() - start)
    own = (process_time() - began) / steps
    batch.close()
    return own if clock == "cpu" else float(np.median(seconds))


if __name__ == "__main__":
    folder, clock = sys.argv[1:]
    model, _ = load(folder, lazy=False)
    for line in sys.stdin:
        print(decode(model, int(line), 40, clock), flush=True)
