"""Print the parity table: this package against the golden files, every case, at both sizes.

    python tests/golden/parity.py

Takes some minutes on a CPU; tests/test_parity.py checks most of the same.
"""

import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from cases import CASES, LONG_CASES, NEW_TOKENS

import mlx_phi4
from mlx_phi4 import Request
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

DATA = Path(__file__).parent / "data"


def row(model, processor, size, case) -> str:
    """One line of the table. `near ties`: top tokens that differ where the two best are closer than the error."""
    inputs = processor(case.chat(), case.images(), [(audio, 16_000) for audio in case.audios()])
    golden = np.load(DATA / f"{size}_{case.name}.npz")
    assert np.array_equal(np.array(inputs.input_ids[0]), golden["input_ids"]), case.name
    logits = np.array(model(inputs)[0].astype(mx.float32))
    worst = np.abs(logits[golden["positions"]] - golden["logits"]).max()
    differing = logits.argmax(-1) != golden["top"]
    ties = differing & (golden["margin"] <= 2 * worst)
    return (
        f"| {case.name} | {inputs.modes[0]} | {len(logits)} | {worst:.1e} | {(~differing).sum()} | {ties.sum()} | "
        f"{(differing & ~ties).sum()} |"
    )


def long_row(model, processor, case) -> str:
    """Greedy tokens across 4096 against data/long.npz, all of them."""
    row = processor.row(Request(case.chat(), case.images(), [(audio, 16_000) for audio in case.audios()]))
    sequence, batch = Sequence(row, GenerationOptions(max_tokens=NEW_TOKENS)), Batch(model)
    batch.admit(sequence)
    while batch.active:
        batch.step()
    expected = np.load(DATA / "long.npz")[f"{case.name}/tokens"].tolist()
    equal = sum(ours == theirs for ours, theirs in zip(sequence.tokens, expected, strict=True))
    return f"| {case.name} | {len(row.ids)} | {equal} of {len(expected)} |"


def main():
    print(f"mlx {mx.__version__} on {mx.default_device()}, float32")
    for size in ("reduced", "wide"):
        with tempfile.TemporaryDirectory() as folder:
            model, processor = mlx_phi4.load(write_random_checkpoint(folder, "microsoft", size), lazy=False)
        print(f"\n### {size}\n\n| case | mode | tokens | largest difference | top equal | near ties | top differs |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for case in CASES:
            print(row(model, processor, size, case), flush=True)
        if size == "reduced":
            print("\n| greedy tokens | prompt | equal |\n|---|--:|--:|")
            for case in LONG_CASES:
                print(long_row(model, processor, case), flush=True)


if __name__ == "__main__":
    main()
