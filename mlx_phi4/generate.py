"""Generation for people: text as it comes, whole answers, batches, and the command."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from . import cli
from .callable_module import make_callable
from .errors import Phi4Error, PromptError

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from .engine import Sampling
    from .model import Phi4
    from .processor import Inputs, Processor, Request


@dataclass
class GenerationResponse:
    """One generated token of a stream, or one whole answer of a batch.

    ``text`` is the new piece (possibly empty) or the whole answer, ``token`` the last id,
    ``tokens`` all ids (batches only), ``mode`` one of text, vision, speech, vision-speech,
    ``*_tps`` tokens per second, ``peak_memory`` gigabytes, ``finish_reason`` None, then "stop"
    (an end token) or "length" (``max_tokens`` reached).
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


def generate(model: "Phi4", processor: "Processor", prompt, images=None, audios=None, **options):
    """The whole answer as a string. Arguments as in ``stream_generate``."""
    return "".join(response.text for response in stream_generate(model, processor, prompt, images, audios, **options))


def stream_generate(
    model: "Phi4",
    processor: "Processor",
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> Iterator[GenerationResponse]:
    """Yield one response per generated token, the end token included.

    Args:
        prompt, images, audios, system, raw: see ``Processor.__call__``.
        max_tokens: most tokens to generate.
        temperature: 0 takes the most likely token.
        top_p, top_k, min_p: keep only likely tokens when sampling; 1, 0 and 0 keep all.
        repetition_penalty: above 1 makes the last 20 tokens less likely.
        seed: the same seed gives the same answer.

    Raises:
        Phi4Error: a bad argument, prompt or medium, before the first token.
    """
    from .engine import Sampling

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    inputs = processor(prompt, images, audios, system=system, raw=raw)
    detokenizer = processor.tokenizer.detokenizer()
    for rows in _responses(model, processor, inputs, sampling, max_tokens):
        (response,) = rows
        response.text = detokenizer.add(response.token)
        if response.finish_reason is not None:
            response.text += detokenizer.finish()
        yield response


def batch_generate(
    model: "Phi4",
    processor: "Processor",
    requests: "list[Request]",
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> list[GenerationResponse]:
    """Whole answers to several requests of any modes and lengths, in one batch.

    Each row gets the tokens that it gets alone. Options as in ``stream_generate``.
    """
    from .engine import Sampling

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    inputs = processor.batch(requests)
    answers: list[GenerationResponse | None] = [None] * len(requests)
    tokens: list[list[int]] = [[] for _ in requests]
    for rows in _responses(model, processor, inputs, sampling, max_tokens):
        for row, response in enumerate(rows):
            if response is not None:
                tokens[row].append(response.token)
                answers[row] = response
    for answer, ids in zip(answers, tokens, strict=True):
        answer.tokens = ids
        answer.text = processor.tokenizer.decode(ids)
    return answers


def _responses(
    model: "Phi4", processor: "Processor", inputs: "Inputs", sampling: "Sampling", max_tokens: int
) -> Iterator[list[GenerationResponse | None]]:
    """Responses without text for each step, one per row; None for rows that have ended."""
    import mlx.core as mx

    from .engine import generate_step

    _check_room(inputs, max_tokens, processor.config.decoder.max_position_embeddings)
    mx.reset_peak_memory()
    marks = [time.perf_counter()]
    steps = generate_step(model, inputs, sampling, max_tokens, lambda: marks.append(time.perf_counter()))
    running = [True] * len(inputs.modes)
    for count, tokens in enumerate(steps, start=1):
        began, prefilled, now = *marks, time.perf_counter()
        rows: list[GenerationResponse | None] = [None] * len(running)
        for row, token in enumerate(tokens):
            if not running[row]:
                continue
            stopped = token in processor.tokenizer.stop_ids
            rows[row] = GenerationResponse(
                text="",
                token=token,
                mode=inputs.modes[row].value,
                prompt_tokens=inputs.lengths[row],
                generation_tokens=count,
                prompt_tps=inputs.lengths[row] / max(prefilled - began, 1e-9),
                generation_tps=(count - 1) / max(now - prefilled, 1e-9),
                peak_memory=mx.get_peak_memory() / 1e9,
                finish_reason="stop" if stopped else "length" if count == max_tokens else None,
            )
            running[row] = not stopped
        yield rows
        if not any(running):
            return


def _check_room(inputs: "Inputs", max_tokens: int, context: int) -> None:
    if max_tokens < 1:
        raise Phi4Error(f"max_tokens is {max_tokens}, expected at least 1")
    longest = max(inputs.lengths)
    if longest + max_tokens > context:
        raise PromptError(
            f"a prompt of {longest} tokens and max_tokens {max_tokens} exceed the context of "
            f"{context}; at most {max(context - longest, 0)} tokens can follow"
        )


def print_stream(responses: Iterator[GenerationResponse], as_json: bool, quiet: bool) -> None:
    """Text to stdout as it comes (or one JSON object at the end), statistics to stderr."""
    text, last = "", None
    for last in responses:
        text += last.text
        if not as_json:
            print(last.text, end="", flush=True)
    if as_json:
        print(json.dumps(asdict(last) | {"text": text}, ensure_ascii=False))
    else:
        print()
    sys.stdout.flush()
    if not quiet:
        click.echo(
            f"{last.mode}: prompt {last.prompt_tokens} tokens, {last.prompt_tps:.1f} a second; "
            f"answer {last.generation_tokens} tokens, {last.generation_tps:.1f} a second; "
            f"peak memory {last.peak_memory:.2f} GB",
            err=True,
        )


def _read_prompt(prompt: str | None) -> str:
    if prompt != "-":
        return prompt or ""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not UTF-8 text: {error}") from None


@click.command()
@click.option("--model", required=True, help="Checkpoint folder or hub id.")
@click.option("--prompt", "-p", help="The user's turn; '-' reads standard input.")
@click.option("--system", help="A system message in front.")
@click.option("--image", "images", multiple=True, help="A picture's path; repeatable.")
@click.option("--audio", "audios", multiple=True, help="A recording's path; repeatable.")
@click.option("--max-tokens", "-m", default=256, show_default=True, help="Most tokens to generate.")
@click.option("--temperature", "--temp", default=0.0, show_default=True, help="0: most likely.")
@click.option("--top-p", default=1.0, show_default=True, help="Keep this much probability.")
@click.option("--top-k", default=0, show_default=True, help="Keep this many tokens; 0: all.")
@click.option("--min-p", default=0.0, show_default=True, help="Keep above this share of the top.")
@click.option("--repetition-penalty", type=float, help="Above 1: repeat less.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--raw", is_flag=True, help="Take the prompt as it stands, special tokens included.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--quiet", is_flag=True, help="No progress and no statistics.")
def main(model, prompt, images, audios, as_json, quiet, **options):
    """Answer a prompt about text, pictures and recordings with a Phi-4 model."""
    if prompt is None and not images and not audios:
        raise click.UsageError("Missing option '--prompt' (or --image, --audio).")
    prompt = _read_prompt(prompt)
    if not quiet:
        click.echo(f"Loading {model} ...", err=True)
    from .load import load

    model, processor = load(model)
    responses = stream_generate(model, processor, prompt, list(images), list(audios), **options)
    print_stream(responses, as_json, quiet)


def command() -> None:
    """The console script."""
    cli.run(main)


make_callable(__name__)

if __name__ == "__main__":
    command()
