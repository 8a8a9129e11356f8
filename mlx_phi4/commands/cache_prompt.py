"""Compute a prompt once and keep its keys and values in a file, for requests that begin alike."""

from typing import TYPE_CHECKING

import click

from ..generation.generate import read_prompt, stream_generate
from . import cli

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..generation.prompt_cache import PromptCache
    from ..inputs.processor import Processor
    from ..model import Phi4


def cache_prompt(
    model: "Phi4",
    processor: "Processor",
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    **options,
) -> "PromptCache":
    """The cache of a prompt, to be saved with ``PromptCache.save`` or given to ``stream_generate``.

    Later prompts reuse it as far as they begin with the same tokens and the same media in the same mode. Options as in
    ``stream_generate``; those about sampling have no effect.
    """
    from ..generation.prompt_cache import PromptCache

    cache = PromptCache()
    options |= {"prompt_cache": cache, "max_tokens": 1}
    for _ in stream_generate(model, processor, prompt, images, audios, **options):
        pass
    return cache


@click.command(name="mlx_phi4.cache_prompt")
@click.option("--model", required=True, help="Checkpoint folder or hub id.")
@click.option("--prompt", "-p", help="How the user's turn begins; '-' reads standard input.")
@click.option("--system", help="A system message in front.")
@click.option("--image", "images", multiple=True, help="A picture's path; repeatable.")
@click.option("--audio", "audios", multiple=True, help="A recording's path; repeatable.")
@click.option("--prompt-cache-file", required=True, help="The file to write (safetensors).")
@cli.engine_options
@click.option("--raw", is_flag=True, help="Take the prompt as it stands, special tokens included.")
@click.option("--quiet", is_flag=True, help="No progress and no statistics.")
def main(model, prompt, images, audios, prompt_cache_file, quiet, **options):
    """Save a prompt's computed state; give the file to mlx_phi4.generate --prompt-cache-file.

    A request reuses it as far as it begins alike: repeat --system, --image and --audio there.
    """
    from ..converter.first_use import model_folder
    from ..loading import load

    model, processor = load(model_folder(model, quiet=quiet))
    options["progress"] = cli.prefill_progress(quiet)
    cache = cache_prompt(model, processor, read_prompt(prompt), list(images), list(audios), **options)
    cache.save(prompt_cache_file, model)
    if not quiet:
        click.echo(f"{prompt_cache_file}: {len(cache.tokens)} tokens in {cache.state.modes[0]} mode", err=True)


def command() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    command()
