"""From the engine's tokens to ``GenerationResponse``s, and from keywords to the engine's options."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Phi4Error, PromptError

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Inputs, Processor
    from ..model import Phi4
    from .batch import EngineOptions, Generation, RowOptions


@dataclass
class GenerationResponse:
    """One generated token of a stream, or one whole answer of a batch.

    ``text`` is the new piece (possibly empty) or the whole answer, ``token`` the last id, ``tokens`` all ids (batches
    only), ``mode`` one of text, vision, speech, vision-speech, ``*_tps`` tokens per second, ``peak_memory`` gigabytes,
    ``finish_reason`` None, then "stop" (an end token or a stop string) or "length" (``max_tokens`` reached).
    ``reused_tokens`` counts the prompt tokens that a prompt cache had. With ``logprobs=``: ``logprob`` of the token
    (batches: a list, one per token) and ``top_logprobs``, pairs (id, log-probability), best first.
    """

    text: str
    token: int
    mode: str
    prompt_tokens: int
    generation_tokens: int
    prompt_tps: float
    generation_tps: float
    peak_memory: float
    finish_reason: str | None = None
    tokens: list[int] | None = None
    reused_tokens: int = 0
    logprob: float | list[float] | None = None
    top_logprobs: tuple | list | None = None


KV_OPTIONS = {"kv_bits": "bits", "kv_group_size": "group_size", "quantized_kv_start": "quantized_start"}
KV_OPTIONS |= {"max_kv_size": "max_size"}


def split_options(options: dict, own: list[dict]):
    """Sort keywords by whom they concern: ``RowOptions`` and stop strings for each row, and ``EngineOptions``."""
    from ..decoder.state import CacheOptions
    from .batch import EngineOptions, RowOptions
    from .sampling import Sampling

    sampling, engine = Sampling.__dataclass_fields__, EngineOptions.__dataclass_fields__
    of_rows = {*sampling, "max_tokens", "stop"}
    unknown = sorted((options.keys() - of_rows - engine.keys() - KV_OPTIONS.keys()) | {"kv"} & options.keys())
    unknown += sorted({name for row in own for name in row} - of_rows)
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}")
    merged = [{name: value for name, value in options.items() if name in of_rows} | row for row in own]
    rows = [
        RowOptions(Sampling(**{k: v for k, v in row.items() if k in sampling}), row.get("max_tokens", 256))
        for row in merged
    ]
    kv = CacheOptions(**{KV_OPTIONS[k]: v for k, v in options.items() if k in KV_OPTIONS and v is not None})
    rest = {name: value for name, value in options.items() if name in engine}
    return rows, [row.get("stop") for row in merged], EngineOptions(kv=kv, **rest)


@dataclass(frozen=True)
class End:
    """Called to end the row that a response belongs to."""

    generation: "Generation"
    row: int

    def __call__(self) -> None:
        self.generation.retire(self.row)


def responses(
    model: "Phi4", processor: "Processor", inputs: "Inputs", rows: "list[RowOptions]", options: "EngineOptions"
) -> Iterator[tuple[GenerationResponse, End]]:
    """Responses without text, row by row within each step."""
    import mlx.core as mx

    from .batch import Generation

    _check_room(inputs, rows, processor.config.decoder.max_position_embeddings)
    mx.reset_peak_memory()
    began = time.perf_counter()
    stop_ids = processor.tokenizer.stop_ids
    generation = Generation(model, inputs, rows, stop_ids, options)
    prefilled = None
    for count, tokens in enumerate(generation.steps(), start=1):
        now = time.perf_counter()
        prefilled = prefilled or now
        for token in tokens:
            ended = "length" if count == rows[token.row].max_tokens else None
            length = inputs.lengths[token.row]
            response = GenerationResponse(
                text="",
                token=token.token,
                mode=inputs.modes[token.row].value,
                prompt_tokens=length,
                generation_tokens=count,
                prompt_tps=length / max(prefilled - began, 1e-9),
                generation_tps=(count - 1) / max(now - prefilled, 1e-9),
                peak_memory=mx.get_peak_memory() / 1e9,
                finish_reason="stop" if token.token in stop_ids else ended,
                reused_tokens=generation.reused,
                logprob=token.logprob,
                top_logprobs=token.top_logprobs,
            )
            yield response, End(generation, token.row)


def _check_room(inputs: "Inputs", rows: "list[RowOptions]", context: int) -> None:
    for length, row in zip(inputs.lengths, rows, strict=True):
        if row.max_tokens < 1:
            raise Phi4Error(f"max_tokens is {row.max_tokens}, expected at least 1")
        if length + row.max_tokens > context:
            raise PromptError(
                f"a prompt of {length} tokens and max_tokens {row.max_tokens} exceed the context of {context}; "
                f"at most {max(context - length, 0)} tokens can follow"
            )
