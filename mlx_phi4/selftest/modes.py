"""Stages of whole requests: every mode from its files to logits and to an answer; rows beside others; memory; speed."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..decoder.adapters import RoutedLinear
from ..decoder.state import RowState, Run
from ..device import exclusive
from ..evaluation.speed import benchmark
from ..generation.generate import batch_generate
from ..inputs.processor import Request, Row
from ..model import Phi4
from . import samples
from .bench import DTYPES, Bench
from .checks import Check, holds, within
from .encoders import LAYER

ROUNDS = 2  # of requests, after one that warms up
GROWTH = 64e3  # bytes that may be held longer than a round: compiled functions, small tables
MOST_NEW = 12  # tokens of an answer, more than the built-in model needs
ASKED_NEW = 32
LONGEST_REPEAT = 8  # equal tokens one after another


def depth_of(model: Phi4) -> int:
    """Roundings from media to logits."""
    config = model.config
    return LAYER * (config.decoder.num_hidden_layers + config.vision.used_layers + 2 * config.audio.num_blocks)


def row_logits(bench: Bench, model: Phi4, row: Row) -> mx.array:
    """Logits (L, V) of a row, its media embedded once for all requests of a model."""
    with exclusive():
        features = {start: bench.seen(model).embed(model, item, row.mode) for start, item in row.media}
        run = Run(model.new_state(row), len(row.ids), len(row.ids))
        found = model.forward(model.embed(row, features=features), [run])[0]
        mx.eval(found)
    return found


def modes(bench: Bench) -> Iterator[Check]:
    """Each mode's logits over prompt and answer, in every type, and the answers themselves."""
    length = bench.model()[0].config.vision.intermediate_size
    for dtype in DTYPES:
        model, processor = bench.model(dtype)
        for case in samples.CASES:
            if dtype != "float32" and case.name in ("sum", "picture"):
                continue  # their modes have another case
            if case.image and dtype not in bench.encoder_dtypes:
                continue
            parts = {part: samples.golden()[f"modes/{case.name}/{part}"] for part in ("ids", "positions", "logits")}
            row = replace(processor.row(case.request), ids=tuple(parts["ids"].tolist()))
            got = row_logits(bench, model, row)[mx.array(parts["positions"])]
            name = f"{case.name} ({case.mode}), {dtype}"
            yield bench.error(name, got, parts["logits"], dtype, depth_of(model), length)
        chosen = [case for case in samples.CASES if _answered(case, dtype)]
        answers = batch_generate(
            model, processor, [c.request for c in chosen], max_tokens=MOST_NEW, media_cache=bench.seen(model)
        )
        for case, answer in zip(chosen, answers, strict=True):
            told = f"{answer.text!r}, expected {case.answer!r}"
            yield holds(f"{case.name}: answer, {dtype}", answer.text == case.answer, told)


def _answered(case: samples.Case, dtype: str) -> bool:
    """Answers of all modes in the type of the weights, those without pictures in the others: these are slow on CPUs."""
    return not case.image or (dtype == "bfloat16" and case.name != "number")


def rows(bench: Bench) -> Iterator[Check]:
    """Rows of all modes in one batch against each alone; text is the base's, before and after all others."""
    model, processor = bench.model()
    cases = [case for case in samples.CASES if case.name in ("capital", "number", "command", "question")]
    inputs = processor.batch([case.request for case in cases])
    alone = [row_logits(bench, model, row) for row in inputs.rows]
    yield from without_adapters(model, inputs.rows[0], "float32")
    together = joined(bench, model, list(inputs.rows))
    depth, length = depth_of(model), model.config.decoder.intermediate_size
    for case, one, beside in zip(cases, alone, together, strict=True):
        yield bench.error(f"{case.name}: beside others", beside, np.array(one), "float32", depth, length)
    again = row_logits(bench, model, inputs.rows[0])
    yield holds("text after others", _same(alone[0], again), "the same request has other logits than before")
    for dtype in DTYPES[1:]:
        yield from without_adapters(bench.model(dtype)[0], inputs.rows[0], dtype)
    state = RowState("vision")
    with exclusive():
        routed = model.forward(model.embed(inputs.rows[0]), [Run(state, len(inputs.rows[0].ids), 1)])[0]
        moved = mx.abs(routed - alone[0][-1:]).max().item()
    yield holds("adapters do something", moved > 0.1, f"the vision adapter moves logits by {moved:g} only")


def joined(bench: Bench, model: Phi4, rows: list[Row]) -> list[mx.array]:
    """Logits of rows in one step, in their order."""
    with exclusive():
        h = [
            model.embed(
                row, features={start: bench.seen(model).embed(model, item, row.mode) for start, item in row.media}
            )
            for row in rows
        ]
        runs = [Run(model.new_state(row), len(row.ids), len(row.ids)) for row in rows]
        logits = model.forward(mx.concatenate(h, axis=1), runs)[0]
        found = mx.split(logits, np.cumsum([run.count for run in runs])[:-1].tolist())
        mx.eval(found)
    return found


def without_adapters(model: Phi4, row: Row, name: str) -> Iterator[Check]:
    """A text row's logits are bit for bit those of the model with its adapters taken out."""

    def logits() -> mx.array:
        with exclusive():
            found = model.forward(model.embed(row), [Run(model.new_state(row), len(row.ids), len(row.ids))])[0]
            mx.eval(found)
        return found

    held = logits()
    with _bare(model):
        bare = logits()
    yield holds(f"text without adapters, {name}", _same(held, bare), "logits differ from the base model's")


@contextmanager
def _bare(model: Phi4) -> Iterator[None]:
    linears = [module for module in model.modules() if isinstance(module, RoutedLinear)]
    held = [linear.lora for linear in linears]
    try:
        for linear in linears:
            linear.lora = {}
        yield
    finally:
        for linear, lora in zip(linears, held, strict=True):
            linear.lora = lora


def _same(one: mx.array, other: mx.array) -> bool:
    return mx.array_equal(one, other).item()


def memory(bench: Bench) -> Iterator[Check]:
    """Nothing stays behind when requests of all modes are answered again and again."""
    model, processor = bench.model()
    cases = [case for case in samples.CASES if case.name in ("sum", "command", "question")]
    held = []
    for _ in range(ROUNDS + 1):
        batch_generate(model, processor, [case.request for case in cases], max_tokens=2)
        gc.collect()
        held.append(mx.get_active_memory())
    yield within("bytes more than after the first round", float(max(held[1:]) - held[0]), GROWTH)


def speed(bench: Bench) -> Iterator[Check]:
    """Tokens a second and time to the first token of the built-in model: figures to compare machines by."""
    model, processor = bench.model("bfloat16")
    asked = {"text": {}, "speech": {"audio": str(samples.path(samples.SPOKEN_COMMAND))}}
    for mode, given in asked.items():
        (found,) = benchmark(model, processor, prompt_tokens=64, generation_tokens=16, mode=mode, repeat=1, **given)
        bench.notes.append(
            f"{mode}: {found.prompt_tokens} tokens in, {found.prompt_tps:.0f} a second; out {found.generation_tps:.0f} "
            f"a second; first token after {found.first_token_seconds:.3f} s"
        )
        yield holds(mode, found.generation_tps > 0)


def asked_modes(bench: Bench) -> Iterator[Check]:
    """The model that was asked for answers bundled media in each of its modes; people are to read the answers."""
    model, processor = bench.asked()
    cases = [case for case in samples.CASES if _can(model, case.mode)]
    requests = [replace(case.request, prompt=case.prompt or "Answer the question that is spoken.") for case in cases]
    for case, request in zip(cases, requests, strict=True):
        logits = row_logits(bench, model, processor.row(request))[-1]
        finite = mx.isfinite(logits).all().item()
        yield holds(f"{case.name} ({case.mode}): logits", finite, "logits hold NaN or infinity")
    answers = batch_generate(model, processor, requests, max_tokens=ASKED_NEW, media_cache=bench.seen(model))
    for case, answer in zip(cases, answers, strict=True):
        bench.notes.append(f"{case.mode}: {case.prompt or 'a spoken question'!r} -> {answer.text!r}")
        words = answer.text.split()
        yield holds(f"{case.name} ({case.mode}): says something", words, "the answer is empty")
        run = longest_run(answer.tokens)
        yield holds(f"{case.name} ({case.mode}): varies", run < LONGEST_REPEAT, f"{run} equal tokens in a row")
        if case.name == "capital":
            yield holds("capital (text): right", case.answer in answer.text, f"{answer.text!r} has no {case.answer}")


def longest_run(tokens: list[int]) -> int:
    """How many equal tokens come one after another."""
    longest, run = 0, 0
    for before, token in zip([None, *tokens], tokens, strict=False):
        run = run + 1 if token == before else 1
        longest = max(longest, run)
    return longest


def _can(model: Phi4, mode: str) -> bool:
    config = model.config
    return ("vision" not in mode or config.vision is not None) and ("speech" not in mode or config.audio is not None)


def asked_rows(bench: Bench) -> Iterator[Check]:
    """Text passes the base alone in the model that was asked for."""
    model, processor = bench.asked()
    row = processor.row(Request("What is the capital of France?"))
    yield holds("text has no adapter", row.adapter is None, f"it passes {row.adapter!r}")
    yield from without_adapters(model, row, "as it is stored")
