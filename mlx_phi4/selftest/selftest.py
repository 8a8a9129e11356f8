"""Whether this machine computes what the reference implementation computes: all stages, one after another."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..arguments import kinds
from ..arguments.names import takes
from ..errors import Phi4Error
from ..evaluation.speed import machine
from ..loading import model_folder
from . import attention, decoder, encoders, files, media, modes, products, tokens
from .bench import Bench
from .checks import PASSED, WRONG, Outcome, Stage, holds
from .report import Report

NEEDED = ("files",)
STAGES = (
    Stage("files", "what is installed is what was made", files.files),
    Stage("tensors", "weights of the built-in model are finite and in range", files.tensors, NEEDED),
    Stage("tokens", "requests to ids, modes and adapters", tokens.tokens, NEEDED),
    Stage("log-mel", "recordings to features", media.log_mel, NEEDED),
    Stage("views", "pictures to crops and global view", media.views, NEEDED),
    Stage("products", "plain and packed matrices of the published widths", products.products),
    Stage("attention", "every shape of heads, queries and masks", attention.attention),
    Stage("norms", "small numbers, where epsilon counts, and large ones", attention.norms, NEEDED),
    Stage("rope", "both tables and how they turn", attention.rope, NEEDED),
    Stage("vision-encoder", "views to features", encoders.vision_encoder, NEEDED),
    Stage("vision-projector", "features and separators to embeddings", encoders.vision_projector, NEEDED),
    Stage("audio-encoder", "features to frames, in one window and two", encoders.audio_encoder, NEEDED),
    Stage("audio-projectors", "frames to embeddings, for both modes", encoders.audio_projectors, NEEDED),
    Stage("merge", "embeddings of media in their places", tokens.merge, NEEDED),
    Stage("decoder", "base and adapters, short and long table, with and without a cache", decoder.decoder, NEEDED),
    Stage("crossing", "an answer that changes its table", decoder.crossing, NEEDED),
    Stage("modes", "all modes from files to logits and answers", modes.modes, NEEDED),
    Stage("rows", "rows beside others as alone; text as without adapters", modes.rows, NEEDED),
    Stage("memory", "repeated requests leave nothing behind", modes.memory, NEEDED),
    Stage("speed", "figures of the built-in model", modes.speed, NEEDED),
)
MODEL_STAGES = (
    Stage("model-tensors", "every weight of the model is finite and in range", files.asked_tensors),
    Stage("model-tokens", "its tokenizer and chat template", tokens.asked_tokens),
    Stage("model-rows", "its text is bit-equal without adapters", modes.asked_rows, ("model-tensors",)),
    Stage("model-modes", "its answers to bundled media, in each of its modes", modes.asked_modes, ("model-tokens",)),
)
NAMES = tuple(stage.name for stage in (*STAGES, *MODEL_STAGES))


@takes(
    model=kinds.path | None,
    revision=kinds.text | None,
    stages=kinds.several(kinds.choice(*NAMES), least=1) | None,
    progress=kinds.function | None,
)
def self_test(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    stages: Iterable[str] | None = None,
    progress: Callable[[Outcome], None] | None = None,
) -> Report:
    """Compare this machine with the reference implementation, with exact arithmetic and with MLX's CPU backend.

    Nothing raises that a stage finds out: it is a failed check of that stage.

    Args:
        model: a folder or hub id, which is looked at, too, as ``load`` takes it; None: the built-in model only.
        revision: branch, tag or commit of a hub id.
        stages: names of those that are to run, of ``NAMES``; None: all that there are without and with a model.
        progress: told of each stage that is done.

    Raises:
        Phi4Error: stages of a model are asked for, and no model; the model cannot be found.
    """
    chosen = set(NAMES if stages is None else stages)
    own = {stage.name for stage in MODEL_STAGES}
    if model is None:
        if stages is not None and (lost := sorted(chosen & own)):
            raise Phi4Error(f"stages are {', '.join(lost)}: they need a model")
        if revision is not None:
            raise Phi4Error(f"revision is {revision!r}: it goes with a model")
        chosen -= own
    elif chosen & own:
        model_folder(model, revision, quiet=True)  # found out before anything is computed
    bench = Bench(None if model is None else str(model), revision)
    outcomes: dict[str, Outcome] = {}
    for stage in (*STAGES, *MODEL_STAGES):
        if stage.name not in chosen:
            continue
        outcomes[stage.name] = outcome = Outcome(stage.name, stage.about)
        failed = [name for name in stage.needs if name in outcomes and outcomes[name].state != PASSED]
        if failed:
            outcome.reason = f"{failed[0]} did not pass"
        else:
            _run(stage, bench, outcome)
        if progress is not None:
            progress(outcome)
    where = machine() | {"arithmetic": bench.arithmetic.text}
    where["memory_gb"] = where["memory_gb"] or _memory_gb()
    return Report(where, list(outcomes.values()), bench.notes, None if model is None else str(model))


def _run(stage: Stage, bench: Bench, outcome: Outcome) -> None:
    """Fill an outcome; whatever breaks is a failure of the stage."""
    began = time.perf_counter()
    try:
        for check in stage.run(bench):
            outcome.checks.append(check)
    except Exception as error:  # of any kind: a stage that cannot be run to its end has failed, and others follow
        said = " ".join(str(error).split())
        outcome.checks.append(holds("runs", False, said if isinstance(error, Phi4Error) else _named(error, said)))
    outcome.seconds = time.perf_counter() - began
    outcome.state = WRONG if outcome.failures or not outcome.checks else PASSED


def _memory_gb() -> float | None:
    """Of the machine, where a CPU is the device; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _named(error: Exception, said: str) -> str:
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
