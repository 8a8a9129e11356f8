"""Random schemas, answered by phi4-tiny and by a reduced random model; what ends by itself has to validate.

    python tests/fuzz/structured.py --count 500                # a quarter of an hour on two cores

Prints one line for each model and temperature, and every answer that is not what its schema describes.
"""

import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_schemas import RandomSchemas, fault

from mlx_phi4 import Phi4Error, Request, load
from mlx_phi4.generation.pool import answer_each
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint


@click.command()
@click.option("--count", default=500, show_default=True, help="Schemas.")
@click.option("--seed", default=0, show_default=True)
@click.option("--rows", default=24, show_default=True, help="Answers at once.")
@click.option("--max-tokens", default=400, show_default=True)
def main(count: int, seed: int, rows: int, max_tokens: int) -> None:
    """Answer random schemas, greedily and at temperature 1.5."""
    made = RandomSchemas(seed)
    schemas = [made.schema() for _ in range(count)]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        random = write_random_checkpoint(Path(folder) / "random", "text", "reduced")
        for name, model in (("phi4-tiny", "phi4-tiny"), ("reduced random", random)):
            loaded = load(model)
            for temperature in (0, 1.5):
                wrong += _answered(name, loaded, schemas, temperature, rows, max_tokens, seed)
    sys.exit(1 if wrong else 0)


def _answered(name, loaded, schemas, temperature, rows, max_tokens, seed) -> int:
    began = time.monotonic()
    options = {"temperature": temperature, "seed": seed, "max_tokens": max_tokens}
    asked = [(i, Request("What is it?", options={"schema": each})) for i, each in enumerate(schemas)]
    ended = tokens = refused = wrong = 0
    for index, answer in answer_each(*loaded, asked, rows=rows, **options):
        if isinstance(answer, Exception):
            refused += 1
            print(f"refused: {answer}: {schemas[index]}")
            wrong += not isinstance(answer, Phi4Error)
            continue
        tokens += len(answer.tokens)
        if answer.finish_reason != "stop":
            continue
        ended += 1
        if why := fault(schemas[index], answer.text):
            wrong += 1
            print(f"wrong: {why}\n  schema {schemas[index]}\n  answer {answer.text!r}")
    seconds = time.monotonic() - began
    print(
        f"{name}, temperature {temperature}: {len(schemas)} schemas, {ended} answers ended by themselves, {wrong} of "
        f"them wrong, {refused} refused, {tokens} tokens in {seconds:.0f} s",
        flush=True,
    )
    return wrong + refused


if __name__ == "__main__":
    main()
