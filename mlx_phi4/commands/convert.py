"""The command mlx_phi4.convert: published weights to MLX weights, or a look at what is there."""

import click
from click.core import ParameterSource

from ..terminal import say
from . import cli


@cli.command("mlx_phi4.convert")
@click.option("--model", "--hf-path", help="Folder or hub id of the weights to convert.")
@click.option("--mlx-path", default="mlx_model", show_default=True, help="Folder to write, or to verify.")
@click.option("-q", "--quantize/--no-quantize", default=True, help="Quantize (the default), or only rewrite.")
@click.option("--q-bits", type=int, help="Bits of the decoder: 2, 3, 4, 5, 6 or 8.  [default: 4]")
@click.option("--q-group-size", type=int, help="Weights that share a scale: 32, 64 or 128.  [default: 64]")
@click.option("--q-mode", default="affine", show_default=True, help="affine, mxfp4, nvfp4 or mxfp8.")
@click.option("--quant-predicate", help="Mixed bits: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6.")
@click.option("--adapter-bits", type=int, help="Bits of the LoRAs; 16: as they are.  [default: 8]")
@click.option("--encoder-bits", type=int, help="Bits of encoders and projectors; 16: as they are.  [default: 8]")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), help="Of what is not quantized.")
@click.option("-d", "--dequantize", is_flag=True, help="Turn packed weights back.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--overwrite", is_flag=True, help="Replace a model folder at --mlx-path.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted conversion.")
@click.option("--verify", is_flag=True, help="Re-read the result; without --model, a folder that is there.")
@click.option("--upload-repo", help="Publish the result under this hub id.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.pass_context
def main(context, model, mlx_path, quiet, **options):
    """Convert Phi-4 weights for MLX: 4-bit, adapters separate, in bounded memory."""
    if model is None and not options["verify"]:
        raise click.UsageError("Missing option '--model' (or --verify with --mlx-path).")
    if model is None:
        _check_verifying(context)
    from ..converter.convert import convert, verify_folder

    verifying = options.pop("verify")
    if model is not None:
        folder = convert(model, mlx_path, quiet=quiet, **options)
        if not quiet:
            where = f", and https://huggingface.co/{options['upload_repo']}" if options["upload_repo"] else ""
            say(f"The converted model is in {folder}{where}")
    if verifying:
        click.echo(verify_folder(mlx_path, quiet))


def _check_verifying(context: click.Context) -> None:
    """--verify alone reads what is there: an option that says what to make would be ignored."""
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.name not in ("mlx_path", "verify", "quiet"):
            raise click.UsageError(f"{parameter.opts[-1]} needs --model: --verify alone only reads what is there.")


def command() -> None:
    """The console script."""
    cli.run(main)
