"""The command mlx_phi4.cache_prompt: a prompt's keys and values in a file, for requests that begin alike."""

import json
from pathlib import Path

import click

from ..files import expanded
from ..terminal import say
from . import cli
from .adapters import adapter_options, check_adapters
from .tools import read_file, tools_option

HEADER_LIMIT = 100_000_000  # bytes, as safetensors has it


@cli.command("mlx_phi4.cache_prompt")
@cli.model_option()
@adapter_options
@click.option("--prompt", "-p", help="How the user's turn begins; '-' reads standard input.")
@click.option("--system", "--system-prompt", help="A system message in front.")
@click.option("--image", "images", multiple=True, help="A picture's path; repeatable.")
@click.option("--audio", "audios", multiple=True, help="A recording's path; repeatable.")
@click.option("--prompt-cache-file", required=True, help="The file to write (safetensors).")
@cli.engine_options
@tools_option
@click.option("--raw", is_flag=True, help="Take the prompt as it stands, special tokens included.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is not a prompt cache.")
@click.option("--quiet", is_flag=True, help="No progress and no statistics.")
def main(model, revision, adapters, prompt, images, audios, tools, prompt_cache_file, overwrite, quiet, **options):
    """Save a prompt's computed state; give the file to mlx_phi4.generate --prompt-cache-file.

    A request reuses it as far as it begins alike: repeat --system, --tools, --image and --audio there.
    """
    path = expanded(prompt_cache_file)
    images, audios = cli.check_media(images), cli.check_media(audios)
    cli.check_options(options)
    check_adapters(adapters, options["adapter"], quiet)
    options["tools"] = read_file(tools)
    cli.check_output(path, _is_prompt_cache, overwrite)
    prompt = cli.read_prompt(prompt)
    from ..generation.generate import cache_prompt
    from ..loading import load

    model, processor = load(model, revision=revision, adapters=adapters, quiet=quiet)
    options["progress"] = cli.prefill_progress(quiet)
    cache = cache_prompt(model, processor, prompt, images, audios, **options)
    cache.save(path, model)
    if not quiet:
        adapter = f" for the {cache.state.adapter} adapter" if cache.state.adapter else ""
        say(f"{path}: {len(cache.tokens)} tokens{adapter}")


def _is_prompt_cache(path: Path) -> bool:
    """Whether a file begins as ``PromptCache.save`` writes it; weights are safetensors, too."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= HEADER_LIMIT else {}
        return {"state", "checksum"} <= header["__metadata__"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def command() -> None:
    """The console script."""
    cli.run(main)
