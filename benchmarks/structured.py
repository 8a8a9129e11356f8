"""Answers in a given form: the table, compiling, a mask for each token, and what rows without a form pay for it.

    python benchmarks/structured.py --work SOME/FOLDER
    python benchmarks/structured.py --work SOME/FOLDER --part free --old SOME/CHECKOUT

Tables and masks are measured over 200,064 ids with words like the published ones: letters with and without a space in
front, digits, punctuation and indentation, and scripts of several bytes. A walk takes tokens that may come at random.
They are seconds of one processor, which other work on the machine does not lengthen.

``--part free`` decodes rows that ask for no form with this checkout and with another, each in a process of its own that
stays, in turns of 40 steps that swap; the ratio is the median of the rounds with its 95 % interval by bootstrap.
``--part rows`` decodes eight rows of a model with 200,064 ids, none of them or some with a schema, in turns. On a
machine that does other work, too, ``--clock cpu`` counts CPU seconds of all threads instead.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time, thread_time
from types import SimpleNamespace

import click
import numpy as np
from free_rows import decode
from generation import interval

from mlx_phi4 import load
from mlx_phi4.evaluation.speed import machine
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.structured import TokenTable, compiled, token_table
from mlx_phi4.inputs.tokenizer import Tokenizer
from mlx_phi4.synthetic.published import SIZES, Sizes
from mlx_phi4.synthetic.published_tokenizer import PUBLISHED_VOCAB, byte_alphabet, token_ids, tokenizer
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

SMALL = Sizes(hidden=256, layers=4, heads=4, kv_heads=2, mlp=512, vocab=320)
WIDE = Sizes(hidden=256, layers=4, heads=4, kv_heads=2, mlp=512, vocab=PUBLISHED_VOCAB)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMS = {
    "a person: text, a number, a list": {"schema": PERSON},
    "any JSON": {"schema": {}},
    "100 texts with patterns": {
        "schema": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i + 1}}}@[a-z.]+$"} for i in range(100)},
            "required": [f"p{i}" for i in range(100)],
        }
    },
    "1,000 properties, each may be left out": {
        "schema": {"type": "object", "properties": {f"property {i}": {"type": "integer"} for i in range(1000)}}
    },
    "10,000 values": {"schema": {"enum": [f"value {i * 7919 % 100_003}" for i in range(10_000)]}},
    "1,000 choices": {"choice": [f"choice {i}" for i in range(1000)]},
    "a regular expression of an address": {"regex": r"[\w.]{1,30}@[a-z0-9]{1,20}\.(com|org|net)"},
    "words in any script": {"regex": r"\p{L}{1,30}( \p{L}{1,30}){0,9}"},
}


SYLLABLES = ("b,c,d,f,g,h,k,l,m,n,p,r,s,t,v,w,st,tr,pr,ch,sh,th", "a,e,i,o,u,ea,ou,io", ",n,r,s,t,l,ng,d,ck,ion,ed,er")


def words(count: int) -> list[str]:
    """Words as a vocabulary of that size has them, spelled in byte-level BPE's alphabet."""
    rng, alphabet = random.Random(0), byte_alphabet()
    found = dict.fromkeys(alphabet)

    def add(word: str) -> None:
        found["".join(alphabet[byte] for byte in word.encode())] = None

    for number in range(1000):
        add(f"{number:03d}"), add(str(number))
    for length in range(1, 80):
        add(" " * length), add("\n" + " " * length), add("-" * length)
    marks = "{}[]()\":,.;<>/\\|!?*&^%$#@+-=_~`'"
    for pair in (first + second for first in marks for second in marks):
        add(pair), add(f" {pair}"), add(f"{pair}\n"), add(f'{pair}"')
    starts, vowels, ends = (each.split(",") for each in SYLLABLES)
    while len(found) < count:
        kind = rng.random()
        if kind < 0.65:
            word = "".join(rng.choice(starts) + rng.choice(vowels) + rng.choice(ends) for _ in range(rng.randint(1, 4)))
            word = word.capitalize() if rng.random() < 0.3 else word
        elif kind < 0.8:
            word = "".join(chr(rng.randint(0x430, 0x44F)) for _ in range(rng.randint(2, 8)))
        else:
            word = "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(1, 4)))
        add(f" {word}" if rng.random() < 0.6 else word)
    return list(found)


def vocabulary(work: Path) -> Tokenizer:
    """A tokenizer with the published number of ids, the published added tokens, and such words."""
    sizes, path = SIZES["full"], work / "tokenizer" / "tokenizer.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = tokenizer(sizes)
        raw["model"]["vocab"] = {word: id for id, word in enumerate(words(199_990))} | token_ids(sizes)
        raw["model"]["merges"] = []
        path.write_text(json.dumps(raw), encoding="utf-8")
    config = SimpleNamespace(decoder=SimpleNamespace(vocab_size=PUBLISHED_VOCAB), multimodal=False)
    return Tokenizer(path.parent, config)


def measure_masks(work: Path, steps: int) -> None:
    """Print what the table and the forms cost."""
    known = vocabulary(work)
    began, wall = process_time(), perf_counter()
    table = TokenTable(known)
    click.echo(
        f"table of {table.size:,} ids: {process_time() - began:.2f} s ({perf_counter() - wall:.2f} s of the clock)"
    )
    token_table(known).compile(GenerationOptions(regex="the first one").grammar)  # the process for trials starts
    click.echo(
        "\n| form | first use, ms of the clock | a copy, ms | mask, ms: mean | median | 99 % | most |\n"
        + "|---" * 7
        + "|"
    )
    for name, option in FORMS.items():
        grammar, wall = GenerationOptions(**option).grammar, perf_counter()
        form = compiled(grammar, known)
        first, began = perf_counter() - wall, thread_time()
        form.constraint()
        copy, seconds, rng = thread_time() - began, [], np.random.default_rng(0)
        while len(seconds) < steps:
            constraint = form.constraint()
            for _ in range(200):
                began = thread_time()
                may = constraint.allowed()
                seconds.append(thread_time() - began)
                may[list(known.stop_ids)] = False
                if not may.any():
                    break
                constraint.advance(int(rng.choice(np.flatnonzero(may))))
        ms = 1000 * np.array(seconds)
        figures = np.mean(ms), np.median(ms), np.quantile(ms, 0.99), ms.max()
        told = " | ".join(f"{each:.2f}" for each in figures)
        click.echo(f"| {name} | {1000 * first:.0f} | {1000 * copy:.2f} | {told} |")


def measure_free(folder: Path, old: Path, rounds: int, clock: str) -> None:
    """Print what rows without a form take, here over there."""
    here = Path(__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(here / "benchmarks" / "free_rows.py"), str(folder), clock],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for root in (here, old)
    ]  # fmt: skip

    def asked(index: int, rows: int) -> float:
        processes[index].stdin.write(f"{rows}\n")
        processes[index].stdin.flush()
        return float(processes[index].stdout.readline())

    for rows in (1, 8):
        ratios = []
        for number in range(rounds + 1):
            order = (0, 1) if number % 2 else (1, 0)
            found = {index: asked(index, rows) for index in order}
            ratios += [found[0] / found[1]] if number else []
        middle, low, high = interval(ratios)
        click.echo(
            f"{rows} free rows, a step here over one there: {middle:.3f} ({low:.3f} to {high:.3f}), {rounds} rounds"
        )
    for process in processes:
        process.communicate()


def measure_rows(work: Path, rounds: int, clock: str) -> None:
    """Print what a step of eight rows takes, with and without schemas."""
    folder = work / "wide"
    if not (folder / "config.json").exists():
        write_random_checkpoint(folder, "text", WIDE)
    model, _ = load(folder, lazy=False)
    form = compiled(GenerationOptions(schema=PERSON).grammar, vocabulary(work))
    for held in (1, 8):
        ratios, plain = [], []
        for _ in range(rounds):
            plain.append(decode(model, 8, 20, clock))
            ratios.append(decode(model, 8, 20, clock, tuple(form.constraint() for _ in range(held))) / plain[-1])
        middle, low, high = interval(ratios)
        click.echo(
            f"8 rows, {held} of them with a schema, over 8 free rows ({1000 * np.median(plain):.1f} ms a step): "
            f"{middle:.3f} ({low:.3f} to {high:.3f}), {rounds} rounds"
        )


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for what is made once.")
@click.option(
    "--part", "parts", type=click.Choice(["masks", "free", "rows"]), multiple=True, help="Default: all that can be."
)
@click.option("--old", type=click.Path(path_type=Path, exists=True), help="Another checkout, for --part free.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True)
@click.option("--rounds", default=21, show_default=True)
@click.option("--steps", default=1000, show_default=True, help="Masks of each form.")
def main(work: Path, parts: tuple[str, ...], old: Path | None, clock: str, rounds: int, steps: int):
    """Measure structured output."""
    folder = work / "structured"
    click.echo(machine())
    parts = parts or ("masks", "rows", *(["free"] if old else []))
    if "masks" in parts:
        measure_masks(work, steps)
    if "rows" in parts:
        measure_rows(work, rounds, clock)
    if "free" in parts:
        if old is None:
            raise click.UsageError("--part free needs --old.")
        if not (folder / "config.json").exists():
            write_random_checkpoint(folder, "text", SMALL)
        measure_free(folder, old, rounds, clock)


if __name__ == "__main__":
    main()
