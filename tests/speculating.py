"""Seeded random batches with and without speculation: the tokens must be the same.

    export PYTHONPATH=.:tests/golden
    python tests/speculating.py --seeds 200                # the long run; a part of it is in test_speculation.py
    python tests/speculating.py --seeds 1 --first 17       # one batch again

Each batch has rows of all modes, options, caches, grammars and sources of drafts, which join, leave and are put off at
random; each row is compared with itself alone and without speculation. Float32 on a reduced random model, whose short
table ends after 60 tokens. Where tokens differ, it is printed how far apart the two likeliest were there: a step over
several tokens rounds differently in the last bits, and what is nearer than that is a tie.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
from samples import MODES, decoded, sequence_of

import mlx_phi4
from mlx_phi4 import MediaCache, PromptCache, Request
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

ORIGINAL = 60  # tokens of the short table
TIE = 1e-4  # between the logits of two tokens, of which either may be called the likelier
CACHES = (
    {}, {}, {},
    {"kv_bits": 8, "kv_group_size": 32},
    {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 30},
    {"max_kv_size": 40},
)  # fmt: skip
CHOICES = (
    {}, {}, {},
    {"temperature": 1.2, "seed": 7},
    {"temperature": 0.8, "seed": 1, "top_p": 0.9, "presence_penalty": 0.5},
    {"repetition_penalty": 1.4},
    {"min_tokens": 9, "logprobs": 2},
    {"logit_bias": {5: 3.0}, "temperature": 0.7, "seed": 3, "xtc_probability": 0.5},
)  # fmt: skip
SEEN = MediaCache()  # pictures and recordings are encoded once for all rows
GRAMMARS = ({}, {}, {}, {}, {"regex": "(yes|no|maybe|[a-f]{1,9}, )+"}, {"schema": {"type": "array"}})


@dataclass
class Case:
    """A request, its options without speculation, and how it speculates."""

    request: Request
    options: dict
    source: str
    expected: Sequence = field(default=None)


def small_context(folder: Path, checkpoint: Path) -> Path:
    """A copy of a checkpoint whose short table ends after ``ORIGINAL`` tokens."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"original_max_position_embeddings": ORIGINAL}))
    return folder


def random_case(rng: np.random.Generator) -> Case:
    """Any mode, length, cache, way to choose, grammar and source of drafts."""
    mode = rng.choice(list(MODES))
    words = "Tell me of the sea and of all that swims in it. " * 4
    prompt = words[: int(rng.integers(1, 150 if mode == "text" else 20))]
    options = {"max_tokens": int(rng.integers(1, 70)), "prefill_step_size": int(rng.choice([7, 64, 2048]))}
    options |= {"rope": str(rng.choice(["auto", "auto", "long"])), "media_cache": SEEN}
    for among in (CACHES, CHOICES, GRAMMARS):
        options |= among[rng.integers(len(among))]
    source = str(rng.choice(["lookup", "lookup", "prediction", "model", "other", "function", "none"]))
    return Case(replace(MODES[mode], prompt=prompt), options, source)


def speculating(case: Case, models, rng: np.random.Generator) -> Sequence:
    """The row of a case with its drafts, some of which are wrong."""
    (model, processor), other = models
    right, options = case.expected.tokens, dict(case.options)
    if case.source in ("lookup", "none"):
        options["speculation"] = case.source
    elif case.source in ("model", "other"):
        options["speculation"] = model if case.source == "model" else other
    if case.source == "prediction" or rng.random() < 0.2:
        cut = int(rng.integers(len(right) + 1))
        spoiled = [*right[:cut], *([5, 6] if rng.random() < 0.5 else []), *right[cut + int(rng.integers(3)) :]]
        options["prediction"] = processor.tokenizer.decode(spoiled)
    if rng.random() < 0.3:
        options["prompt_cache"] = warm(case, model, processor)
    sequence = sequence_of(processor, case.request, **options)
    if case.source == "function":
        spoil = rng.integers(0, 6, len(right) + 40) == 0
        ids = len(sequence.row.ids)
        sequence.draft = lambda known: [
            token ^ int(spoil[place])
            for place, token in enumerate(right)
            if len(known) - ids <= place < len(known) - ids + 6
        ]
    return sequence


def warm(case: Case, model, processor) -> PromptCache:
    """A prompt cache that has the case's prompt already."""
    cache = PromptCache()
    kept = {"max_tokens": 1, "prompt_cache": cache}
    kept |= {
        name: value for name, value in case.options.items() if "kv" in name or name in ("rope", "prefill_step_size")
    }
    sequence = sequence_of(processor, case.request, text=False, **kept)
    batch = Batch(model)
    batch.admit(sequence)
    while batch.active:
        batch.step()
    return cache


def alone(case: Case, model, processor) -> Sequence:
    """The case without speculation, alone."""
    sequence = sequence_of(processor, case.request, **case.options)
    decoded(model, sequence)
    return sequence


def run_batch(seed: int, models, rows: int = 7) -> list[tuple[Case, Sequence, bool]]:
    """A batch of random rows that join, leave and are put off -> (case, row, whether it was cut off)."""
    rng = np.random.default_rng(seed)
    (model, processor), _ = models
    cases = [random_case(rng) for _ in range(rows)]
    for case in cases:
        case.expected = alone(case, model, processor)
    waiting = [(case, speculating(case, models, rng)) for case in cases]
    batch, running, put_off, cut = Batch(model, token_budget=int(rng.choice([20, 300, 2048]))), [], [], set()
    while waiting or put_off or batch.active:
        while waiting and (not batch.active or rng.random() < 0.3):
            running.append(waiting.pop())
            batch.admit(running[-1][1])
        if put_off and rng.random() < 0.3:
            batch.admit(put_off.pop(0))
        if batch.sequences and rng.random() < 0.06:
            chosen = batch.sequences[int(rng.integers(len(batch.sequences)))]
            if rng.random() < 0.3:
                batch.retire(chosen)
                cut.add(chosen)
            else:
                batch.preempt(chosen)
                put_off.append(chosen)
        batch.step()
    return [(case, sequence, sequence in cut) for case, sequence in running]


def difference(case: Case, sequence: Sequence, cut: bool) -> int | None:
    """The first token that is another than without speculation; None if there is none."""
    expected, got = case.expected.tokens, sequence.tokens
    if cut:
        expected = expected[: len(got)]
    if got == expected and (cut or sequence.finish_reason == case.expected.finish_reason):
        return None
    return next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got))
    )


def gap(case: Case, place: int, model, processor) -> float:
    """How far apart the likeliest two tokens are where an answer parts; 0 for sampled ones, where nothing is known."""
    if case.options.get("temperature"):
        return 0.0
    sequence = sequence_of(processor, case.request, **(case.options | {"logprobs": 2, "max_tokens": place + 1}))
    batch, last = Batch(model), None
    batch.admit(sequence)
    while batch.active:
        last = (batch.step() or [last])[-1]
    return last.top_logprobs[0][1] - last.top_logprobs[1][1]


@click.command()
@click.option("--seeds", default=100, show_default=True, help="Batches.")
@click.option("--first", default=0, show_default=True, help="The first one's seed.")
def main(seeds: int, first: int):
    """Compare random batches with and without speculation."""
    with tempfile.TemporaryDirectory() as work:
        models = opened(Path(work))
        counts = {"rows": 0, "tokens": 0, "accepted": 0, "rejected": 0, "ties": 0, "different": 0}
        for seed in range(first, first + seeds):
            for number, (case, sequence, cut) in enumerate(run_batch(seed, models)):
                counts["rows"] += 1
                counts["tokens"] += len(sequence.tokens)
                counts["accepted"] += sequence.accepted
                counts["rejected"] += sequence.rejected
                place = difference(case, sequence, cut)
                if place is None:
                    continue
                apart = gap(case, place, *models[0])
                counts["ties" if apart < TIE else "different"] += 1
                click.echo(f"seed {seed}, row {number}, token {place}: {apart:.2e} apart; {case.source} {case.options}")
        click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))


def opened(work: Path):
    """The model and processor, and another model of its vocabulary to draft."""
    loaded = mlx_phi4.load(
        small_context(work / "model", write_random_checkpoint(work / "first", "microsoft", "reduced"))
    )
    return loaded, mlx_phi4.load(write_random_checkpoint(work / "other", "text", "reduced"))


if __name__ == "__main__":
    main()
