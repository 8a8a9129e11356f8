"""The command mlx_phi4.fuse: an adapter into the weights, or into a folder for peft or mlx-lm."""

import click

from ..errors import Phi4Error
from ..files import expanded, read_text
from ..terminal import say
from . import cli
from .adapters import adapter_options

FORMS = ("model", "peft", "mlx-lm")


@cli.command("mlx_phi4.fuse")
@cli.model_option()
@click.option("--adapter-path", metavar="FOLDER", help="The adapter: peft's or mlx-lm's folder.")
@adapter_options
@click.option("--save-path", default="fused_model", show_default=True, help="Folder to write.")
@click.option(
    "--to",
    "form",
    type=click.Choice(FORMS),
    default="model",
    show_default=True,
    help="The model with the adapter in its weights, or the adapter alone.",
)
@click.option("-d", "--dequantize", is_flag=True, help="Unpack all weights; otherwise they are packed as they were.")
@click.option("--most-change", default=0.05, show_default=True, help="Largest share of tokens that may become others.")
@click.option("--prompts", metavar="FILE", help="Texts to measure with, a line each, instead of the bundled ones.")
@click.option("--upload-repo", help="Publish the result under this hub id.")
@click.option("--overwrite", is_flag=True, help="Replace a folder of the same kind at --save-path.")
@click.option("--quiet", is_flag=True, help="No progress and no figures.")
def main(model, adapter_path, adapters, adapter, save_path, prompts, upload_repo, quiet, **options):
    """Fuse an adapter into a model's weights, or write it as peft or mlx-lm read it.

    The adapter is --adapter-path, or --use-adapter among the model's own and those of --adapter.
    """
    if (adapter_path is None) == (adapter is None):
        raise click.UsageError("Give --adapter-path FOLDER, or --use-adapter NAME.")
    if options["form"] != "model" and (options["dequantize"] or prompts):
        raise click.UsageError(f"--dequantize and --prompts go with --to model, not with --to {options['form']}.")
    lines = None if prompts is None else [line for line in read_text(expanded(prompts)).splitlines() if line.strip()]
    if lines == []:
        raise Phi4Error(f"{prompts}: holds no prompts")
    from ..fusing.fuse import fuse

    found = fuse(
        model,
        adapter_path or adapter,
        save_path,
        adapters=adapters,
        prompts=lines,
        upload_repo=upload_repo,
        quiet=quiet,
        **options,
    )
    if quiet:
        return
    for each in found:
        say(str(each))
    where = f", and https://huggingface.co/{upload_repo}" if upload_repo else ""
    say(f"The {'model' if options['form'] == 'model' else 'adapter'} is in {save_path}{where}")


def command() -> None:
    """The console script."""
    cli.run(main)
