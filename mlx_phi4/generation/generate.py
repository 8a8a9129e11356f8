"""Generation for people: text as it comes, whole answers, batches, and the command."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

from ..commands import cli
from ..errors import Phi4Error, PromptError
from ..inputs.processor import Processor, Request
from ..model import Phi4
from .batch import Batch
from .options import answer_number, make_options, takes_options
from .responses import Answer, GenerationResponse, response_of
from .sequence import Sequence


@takes_options
def generate(
    model: Phi4,
    processor: Processor,
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    adapter: str | None = None,
    **options,
) -> str:
    """The whole answer as a string. Arguments as in ``stream_generate``."""
    request = {"system": system, "raw": raw, "adapter": adapter}
    stream = stream_generate(model, processor, prompt, images, audios, **request, **options)
    return "".join(response.text for response in stream)


@takes_options
def stream_generate(
    model: Phi4,
    processor: Processor,
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    adapter: str | None = None,
    **options,
) -> Iterator[GenerationResponse]:
    """Yield one response per generated token, the end token included.

    A prompt cache gets the sequence back at the end or when the caller closes the generator, never after an exception.

    Args:
        prompt, images, audios, system, raw, adapter: see ``Processor.__call__``.
        options: the fields of ``options.GenerationOptions``: how tokens are chosen, ``max_tokens`` and ``stop``, and
            how the prompt is computed and kept.

    Raises:
        Phi4Error: a bad argument, prompt or medium, before the first token.
    """
    chosen = make_options(options)
    row = processor.row(Request(prompt, images, audios, system, raw, adapter=adapter))
    batch = Batch(model)
    batch.admit(Sequence(row, chosen, processor.tokenizer))
    try:
        while batch.active:
            for token in batch.step():
                if token.error is not None:
                    raise token.error
                yield response_of(token)
    finally:
        batch.close()


@takes_options
def batch_generate(
    model: Phi4,
    processor: Processor,
    requests: list[Request],
    *,
    n: int = 1,
    **options,
) -> list[GenerationResponse]:
    """Whole answers to several requests of any modes and lengths, in one batch.

    Each row gets the tokens that it gets alone, and leaves the batch when it ends. What goes wrong in one row only (its
    medium cannot be encoded) is its response's ``error``.

    Args:
        n: answers to each request, with one prefill; with a ``seed`` answer i of a request has seed + i.
        options: as in ``stream_generate``; a request's own ``options`` go before these. A prompt cache serves all rows
            and then keeps the first.

    Returns:
        ``n`` responses for each request, in order.

    Raises:
        Phi4Error: a bad request, before anything is computed.
    """
    if n < 1:
        raise Phi4Error(f"n is {n}, expected at least 1")
    chosen = [make_options(options, request.options) for request in requests]
    if not requests:
        raise PromptError("a batch needs at least one request")
    rows = [processor.row(request) for request in requests]
    groups = [
        [Sequence(row, answer_number(own, i), processor.tokenizer, shares_cache=bool(index or i)) for i in range(n)]
        for index, (row, own) in enumerate(zip(rows, chosen, strict=True))
    ]
    batch = Batch(model)
    # the first row takes the prompt cache's state away with it, so the others look first
    for group in [*groups[1:], groups[0]]:
        batch.admit(*group)
    answers = {sequence: Answer() for group in groups for sequence in group}
    found: dict[Sequence, GenerationResponse] = {}
    try:
        while batch.active:
            for token in batch.step():
                response = answers[token.sequence].add(token)
                if response is not None:
                    found[token.sequence] = response
    finally:
        batch.close()
    return [found[sequence] for group in groups for sequence in group]


def print_stream(stream: Iterator[GenerationResponse], as_json: bool, quiet: bool) -> None:
    """Text to stdout as it comes (or one JSON object at the end), statistics to stderr."""
    text, tokens, logprobs, last = "", [], [], None
    for last in stream:
        text += last.text
        tokens.append(last.token)
        logprobs.append({"logprob": last.logprob, "top_logprobs": last.top_logprobs})
        if not as_json:
            print(last.text, end="", flush=True)
    if as_json:
        whole = asdict(last) | {"text": text, "tokens": tokens}
        del whole["logprob"], whole["top_logprobs"]
        if last.logprob is not None:
            whole["logprobs"] = logprobs
        print(json.dumps(whole, ensure_ascii=False))
    else:
        print()
    sys.stdout.flush()
    if not quiet:
        reused = f" ({last.reused_tokens} from the cache)" if last.reused_tokens else ""
        click.echo(
            f"{last.mode}: prompt {last.prompt_tokens} tokens{reused}, {last.prompt_tps:.1f} a second; "
            f"answer {last.generation_tokens} tokens, {last.generation_tps:.1f} a second; "
            f"peak memory {last.peak_memory:.2f} GB",
            err=True,
        )


def read_prompt(prompt: str | None) -> str:
    """The prompt of a command: as given, or standard input for '-'."""
    if prompt != "-":
        return prompt or ""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not UTF-8 text: {error}") from None


@click.command(name="mlx_phi4.generate")
@click.option("--model", required=True, help="Checkpoint folder or hub id.")
@click.option("--prompt", "-p", help="The user's turn; '-' reads standard input.")
@click.option("--system", help="A system message in front.")
@click.option("--image", "images", multiple=True, help="A picture's path; repeatable.")
@click.option("--audio", "audios", multiple=True, help="A recording's path; repeatable.")
@cli.sampling_options
@cli.engine_options
@click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Add to a token's logit; repeatable.")
@click.option("--logprobs", type=int, help="With --json: log-probabilities, and so many alternatives.")
@click.option("--prompt-cache-file", help="Begin with what mlx_phi4.cache_prompt saved.")
@click.option("--raw", is_flag=True, help="Take the prompt as it stands, special tokens included.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--quiet", is_flag=True, help="No progress and no statistics.")
def main(model, prompt, images, audios, logit_bias, prompt_cache_file, as_json, quiet, **options):
    """Answer a prompt about text, pictures and recordings with a Phi-4 model."""
    if prompt is None and not images and not audios:
        raise click.UsageError("Missing option '--prompt' (or --image, --audio).")
    prompt, options["logit_bias"] = read_prompt(prompt), _biases(logit_bias)
    from ..converter.first_use import model_folder
    from ..loading import load

    model, processor = load(model_folder(model, quiet=quiet))
    if prompt_cache_file:
        from .prompt_cache import PromptCache

        options["prompt_cache"] = PromptCache.load(prompt_cache_file, model)
    options |= {"stop": list(options["stop"]), "progress": cli.prefill_progress(quiet)}
    stream = stream_generate(model, processor, prompt, list(images), list(audios), **options)
    print_stream(stream, as_json, quiet)


def _biases(given: tuple[str, ...]) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, _, bias in (item.partition("=") for item in given)}
    except ValueError:
        raise Phi4Error(f"logit_bias is {', '.join(given)}, expected ID=BIAS, as in 42=-5") from None


def command() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    command()
