"""The command mlx_phi4.generate: one prompt, answered as it comes."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..errors import Phi4Error
from ..terminal import say, shown
from . import cli, ranks
from .adapters import adapter_options, check_adapters

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..generation.responses import GenerationResponse


@cli.command("mlx_phi4.generate")
@cli.model_option()
@adapter_options
@click.option("--prompt", "-p", help="The user's turn; '-' reads standard input.")
@click.option("--system", "--system-prompt", help="A system message in front.")
@click.option("--image", "images", multiple=True, help="A picture's path, '-' for standard input; repeatable.")
@click.option("--audio", "audios", multiple=True, help="A recording's path; repeatable.")
@cli.sampling_options
@cli.engine_options
@click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Add to a token's logit; repeatable.")
@click.option("--logprobs", type=int, help="With --json: log-probabilities, and so many alternatives.")
@click.option("--prompt-cache-file", help="Begin with what mlx_phi4.cache_prompt saved.")
@click.option("--raw", is_flag=True, help="Take the prompt as it stands, special tokens included.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--verbose", type=bool, is_flag=False, flag_value=True, hidden=True)  # mlx_lm's: --verbose False
@click.option("--quiet", is_flag=True, help="No progress and no statistics.")
@ranks.parallel_option("tensor")
def main(
    model,
    revision,
    adapters,
    parallel,
    prompt,
    images,
    audios,
    logit_bias,
    prompt_cache_file,
    as_json,
    quiet,
    verbose,
    **options,
):
    """Answer a prompt about text, pictures and recordings with a Phi-4 model."""
    if prompt is None and not images and not audios:
        raise click.UsageError("Missing option '--prompt' (or --image, --audio).")
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose contradict each other.")
    quiet = quiet or verbose is False
    images, audios = cli.check_media(images), cli.check_media(audios)
    cache_file = cli.check_media([prompt_cache_file] if prompt_cache_file else [])
    options |= {"logit_bias": _biases(logit_bias), "stop": list(options["stop"])}
    cli.check_options(options)
    check_adapters(adapters, options["adapter"], quiet)
    ranks.check_input(prompt, *images)
    prompt = cli.read_prompt(prompt)
    from ..generation.generate import stream_generate

    images = [sys.stdin.buffer.read() if image == "-" else image for image in images]
    model, processor = ranks.loaded(model, parallel, revision=revision, adapters=adapters, quiet=quiet)
    if cache_file:
        from ..generation.prompt_cache import PromptCache

        options["prompt_cache"] = PromptCache.load(cache_file[0], model)
    options["progress"] = cli.prefill_progress(quiet)
    stream = stream_generate(model, processor, prompt, images, audios, **options)
    print_stream(stream, as_json, quiet)


def _biases(given: tuple[str, ...]) -> dict[int, float]:
    try:
        biases = {int(token): float(bias) for token, _, bias in (item.partition("=") for item in given)}
        if any(map(math.isnan, biases.values())):
            raise ValueError
        return biases
    except ValueError:
        raise Phi4Error(f"logit_bias is {', '.join(given)}, expected ID=BIAS, as in 42=-5") from None


def print_stream(stream: "Iterator[GenerationResponse]", as_json: bool, quiet: bool) -> None:
    """Text to stdout as it comes (or one JSON object at the end), statistics to stderr."""
    text, tokens, logprobs, last = "", [], [], None
    terminal = sys.stdout.isatty()
    for last in stream:
        text += last.text
        tokens.append(last.token)
        logprobs.append({"logprob": last.logprob, "top_logprobs": last.top_logprobs})
        if not as_json:
            print(shown(last.text) if terminal else last.text, end="", flush=True)
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
        say(cli.statistics(last))


def command() -> None:
    """The console script."""
    cli.run(main)
