"""Generation for people: text as it comes, whole answers, batches, and the command."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..commands import cli
from ..errors import Phi4Error, PromptError
from .responses import GenerationResponse, responses, split_options

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor, Request
    from ..model import Phi4


def generate(
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
    **options,
) -> str:
    """The whole answer as a string. Arguments as in ``stream_generate``."""
    options |= {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed}
    stream = stream_generate(model, processor, prompt, images, audios, system=system, raw=raw, **options)
    return "".join(response.text for response in stream)


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
    **options,
) -> Iterator[GenerationResponse]:
    """Yield one response per generated token, the end token included.

    Args:
        prompt, images, audios, system, raw: see ``Processor.__call__``.
        max_tokens: most tokens to generate.
        temperature: 0 takes the most likely token.
        top_p, top_k, min_p: keep only likely tokens when sampling; 1, 0 and 0 keep all.
        repetition_penalty: above 1 makes the last 20 tokens less likely.
        seed: the same seed gives the same answer.
        options: ``stop`` (a string or a list of them); the other fields of ``sampling.Sampling``;
            ``prefill_step_size``, ``rope``, ``prompt_cache``, ``media_cache`` and ``progress`` of
            ``engine.EngineOptions``; ``kv_bits``, ``kv_group_size``, ``quantized_kv_start`` and ``max_kv_size``.

    Raises:
        Phi4Error: a bad argument, prompt or medium, before the first token.
    """
    from .text import AnswerText

    options |= {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed}
    rows, stops, engine = split_options(options, [{}])
    text = AnswerText(processor.tokenizer, stops[0])
    inputs = processor(prompt, images, audios, system=system, raw=raw)
    for response, end in responses(model, processor, inputs, rows, engine):
        response.text = text.add(response.token)
        if text.stopped:
            response.finish_reason = "stop"
        if response.finish_reason is not None:
            response.text += text.finish()
            end()
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
    **options,
) -> list[GenerationResponse]:
    """Whole answers to several requests of any modes and lengths, in one batch.

    Each row gets the tokens that it gets alone, and leaves the batch when it ends. Options as in ``stream_generate``;
    a request's own ``options`` (sampling, ``stop``, ``max_tokens``) go before these.
    """
    from .text import AnswerText

    options |= {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed}
    rows, stops, engine = split_options(options, [request.options or {} for request in requests])
    texts = [AnswerText(processor.tokenizer, stop) for stop in stops]
    inputs = processor.batch(requests)
    answers: dict[int, GenerationResponse] = {}
    for response, end in responses(model, processor, inputs, rows, engine):
        row, before = end.row, answers.get(end.row)
        response.text = (before.text if before else "") + texts[row].add(response.token)
        response.tokens = [*(before.tokens if before else []), response.token]
        if response.logprob is not None:
            response.logprob = [*(before.logprob if before else []), response.logprob]
            response.top_logprobs = [*(before.top_logprobs if before else []), response.top_logprobs]
        if texts[row].stopped:
            response.finish_reason = "stop"
        if response.finish_reason is not None:
            response.text += texts[row].finish()
            end()
        answers[row] = response
    return [answers[row] for row in range(len(requests))]


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
