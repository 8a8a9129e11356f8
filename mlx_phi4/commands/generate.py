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
from .forms import form_options, read_form
from .speculation import check_speculation, open_speculation, speculation_options
from .tools import read_tool_options, tool_options
from .videos import see_videos, video_options

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..generation.responses import GenerationResponse


@cli.command("mlx_phi4.generate")
@cli.model_option()
@adapter_options
@click.option("--prompt", "-p", help="The user's turn; '-' reads standard input.")
@click.option("--system", "--system-prompt", help="A system message in front.")
@click.option("--image", "images", multiple=True, help="A picture's path, '-' for standard input; repeatable.")
@click.option("--audio", "audios", multiple=True, help="A recording's path; repeatable.")
@video_options
@cli.sampling_options
@form_options
@cli.engine_options
@speculation_options
@tool_options
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
    videos,
    frames,
    fps,
    with_sound,
    logit_bias,
    prompt_cache_file,
    draft_model,
    as_json,
    quiet,
    verbose,
    **options,
):
    """Answer a prompt about text, pictures, recordings and videos with a Phi-4 model."""
    if prompt is None and not images and not audios and not videos:
        raise click.UsageError("Missing option '--prompt' (or --image, --audio, --video).")
    if not videos and (frames is not None or fps is not None or with_sound):
        raise click.UsageError("--frames, --fps and --with-sound go with --video.")
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose contradict each other.")
    quiet = quiet or verbose is False
    images, audios, videos = cli.check_media(images), cli.check_media(audios), cli.check_media(videos)
    cache_file = cli.check_media([prompt_cache_file] if prompt_cache_file else [])
    options |= {"logit_bias": _biases(logit_bias), "stop": list(options["stop"])}
    options = read_form(options)
    cli.check_options(options)
    check_adapters(adapters, options["adapter"], quiet)
    check_speculation(options["speculation"], draft_model)
    options = read_tool_options(options)
    ranks.check_input(prompt, *images)
    prompt = cli.read_prompt(prompt)
    from ..generation.generate import stream_generate

    settings = {"frames": frames, "fps": fps, "with_sound": with_sound}
    options["videos"] = see_videos(videos, quiet, options["max_crops"], **settings)
    images = [sys.stdin.buffer.read() if image == "-" else image for image in images]
    model, processor = ranks.loaded(model, parallel, revision=revision, adapters=adapters, quiet=quiet)
    options["speculation"] = open_speculation(options["speculation"], draft_model, model, processor, quiet)
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
    """Text to stdout as it comes, calls of tools behind it (or one JSON object at the end), statistics to stderr."""
    from ..inputs.tools import spelled

    text, tokens, logprobs, calls, last = "", [], [], [], None
    terminal = sys.stdout.isatty()
    for last in stream:
        text += last.text
        tokens.append(last.token)
        calls += last.tool_calls
        logprobs.append({"logprob": last.logprob, "top_logprobs": last.top_logprobs})
        if not as_json:
            print(shown(last.text) if terminal else last.text, end="", flush=True)
    if as_json:
        whole = asdict(last) | {"text": text, "tokens": tokens}
        del whole["logprob"], whole["top_logprobs"], whole["tool_calls"]
        if calls:
            whole["tool_calls"] = [asdict(call) for call in calls]
        if last.logprob is not None:
            whole["logprobs"] = logprobs
        print(json.dumps(whole, ensure_ascii=False))
    elif calls:
        written = ("\n" if text else "") + spelled(calls)
        print(shown(written) if terminal else written)
    else:
        print()
    sys.stdout.flush()
    if not quiet:
        say(cli.statistics(last))


def command() -> None:
    """The console script."""
    cli.run(main)
