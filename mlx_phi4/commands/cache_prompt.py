"""The command mlx_phi4.cache_prompt: a prompt's keys and values in a file, for requests that begin alike."""

import click

from . import cli


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
    from ..generation.generate import cache_prompt
    from ..loading import load

    model, processor = load(model, quiet=quiet)
    options["progress"] = cli.prefill_progress(quiet)
    cache = cache_prompt(model, processor, cli.read_prompt(prompt), list(images), list(audios), **options)
    cache.save(prompt_cache_file, model)
    if not quiet:
        click.echo(f"{prompt_cache_file}: {len(cache.tokens)} tokens in {cache.state.modes[0]} mode", err=True)


def command() -> None:
    """The console script."""
    cli.run(main)
