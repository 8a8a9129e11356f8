"""A lesson of twenty new words over a 4-bit phi4-tiny: what the defaults of mlx_phi4.lora come to.

    python benchmarks/lesson.py --work SOME/FOLDER

Twenty words get a colour each, told in four wordings: eighty rows. ``mlx_phi4.lora --iters 120 --batch-size 8
--learning-rate 1e-3`` and defaults otherwise teach them, in a process of its own whose CPU seconds are counted. Asked
is with each wording that was seen, and with one that was not, before and after. Words and wordings are others in each
lesson: invented words, words that the model reads from signs, and words with the same beginnings.

A lesson also compares what the run prints, and the logits of each mode with and without the adapter beside the packed
base, bit by bit; a difference ends the command.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

from mlx_phi4 import Request, batch_generate, load
from mlx_phi4.converter.convert import convert
from mlx_phi4.evaluation.speed import machine
from mlx_phi4.training.digest import mode_digests

MODEL = "phi4-tiny"
WORDS, SEEN = 20, 4
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SIGNS = (
    "stop", "go", "open", "closed", "exit", "sale", "bread", "tea", "coffee", "fish",
    "apple", "taxi", "bus", "hotel", "bank", "park", "zoo", "north", "south", "door",
)  # fmt: skip
WORDINGS = {  # the last one is not taught
    "plain": (
        "What color is a {}?", "Name the color of {}.", "Which color is {}?", "Tell me the color of the {}.",
        "What is the color of a {}?",
    ),
    "short": ("The {} is", "Color of {}?", "{}: which color?", "A {} looks", "What color has a {}?"),
    "long": (
        "I saw a {} today. What color was it?", "Somebody painted a {} for me. Which color did they take?",
        "If you had a {}, what color would it be?", "Please tell me which color all {} have.",
        "We talked about the {} yesterday. Which color is it?",
    ),
}  # fmt: skip


def words(kind: str, rng: np.random.Generator) -> list[str]:
    """Twenty words: invented ones, known ones, or invented ones of which many begin alike."""
    if kind == "known":
        return list(SIGNS)
    found: dict[str, None] = {}
    begun = ["bla", "tor", "mi", "zu"] if kind == "alike" else [""]
    while len(found) < WORDS:
        syllables = [rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(rng.integers(2, 4))]
        found[str(rng.choice(begun)) + "".join(syllables) + str(rng.choice(["", "n", "x", "k"]))] = None
    return list(found)


def lessons(count: int):
    """(name, kind of words, wordings, seed) of so many lessons."""
    kinds = ("invented", "known", "alike")
    for seed in range(count):
        yield kinds[seed % len(kinds)], list(WORDINGS)[seed // len(kinds) % len(WORDINGS)], seed


def teach(base: Path, folder: Path, rows: list[tuple[str, str]], seed: int, more: tuple[str, ...]) -> tuple[float, str]:
    """The command in a process of its own -> its CPU seconds, and what it printed."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": asked, "completion": color}) + "\n" for asked, color in rows]
    (data / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "mlx_phi4", "lora", "--train", "--model", str(base), "--data", str(data)]
    command += ["--iters", "120", "--batch-size", "8", "--learning-rate", "1e-3", "--seed", str(seed)]
    command += ["--adapter-path", str(folder / "adapter"), "--overwrite", *more]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise click.ClickException(done.stdout[-1000:] + done.stderr[-1000:])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout + done.stderr


def right(model, processor, rows: list[tuple[str, str]], adapter: str | None) -> float:
    """The share of questions that get the colour, and nothing else."""
    requests = [Request(asked, adapter=adapter) for asked, _ in rows]
    answers = batch_generate(model, processor, requests, max_tokens=6)
    return float(np.mean([a.text.strip().rstrip(".").lower() == c for a, (_, c) in zip(answers, rows, strict=True)]))


def lesson(base: Path, folder: Path, kind: str, form: str, seed: int, more: tuple[str, ...]) -> dict:
    """One lesson -> its figures."""
    rng = np.random.default_rng(seed)
    colors = [COLORS[place % len(COLORS)] for place in rng.permutation(WORDS)]
    taught = list(zip(words(kind, rng), colors, strict=True))
    rows = [[(wording.format(word), color) for word, color in taught] for wording in WORDINGS[form]]
    seen, unseen = [row for each in rows[:SEEN] for row in each], rows[SEEN]
    seconds, printed = teach(base, folder, seen, seed, more)
    before = mode_digests(*load(base))
    model, processor = load(base, adapters={"colors": folder / "adapter"})
    if mode_digests(model, processor) != before or "logits before and after, to the bit" not in printed:
        raise click.ClickException("the logits of a mode changed")
    return {
        "words": kind,
        "wordings": form,
        "seed": seed,
        "before": right(model, processor, seen + unseen, None),
        "seen": right(model, processor, seen, "colors"),
        "unseen": right(model, processor, unseen, "colors"),
        "cpu": seconds,
    }


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the base and the results.")
@click.option("--lessons", "count", default=9, show_default=True, help="How many.")
@click.option("--only", type=int, help="Only the lesson of this number.")
@click.argument("more", nargs=-1)
def main(work: Path, count: int, only: int | None, more: tuple[str, ...]):
    """Measure lessons; options behind ``--`` go to mlx_phi4.lora."""
    base = work / "4bit"
    if not (base / "config.json").exists():
        convert(MODEL, base, quiet=True)
    click.echo("| words | wordings | before | seen wordings | an unseen one | CPU seconds |\n|---|---|--:|--:|--:|--:|")
    found = []
    for kind, form, seed in lessons(count):
        if only in (None, seed):
            row = lesson(base, work / f"lesson{seed}", kind, form, seed, more)
            shares = " | ".join(f"{100 * row[name]:.1f} %" for name in ("before", "seen", "unseen"))
            click.echo(f"| {kind} | {form} | {shares} | {row['cpu']:.0f} |")
            found.append(row)
    (work / "lesson.json").write_text(json.dumps({"machine": machine(), "lessons": found}, indent=1), encoding="utf-8")
    click.echo(machine(), err=True)


if __name__ == "__main__":
    main()
