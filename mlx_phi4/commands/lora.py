"""The command mlx_phi4.lora: adapters, projectors and encoders trained over a base that stays as it is."""

import click
from click.core import ParameterSource

from .. import distributed
from ..transcription.transcribe import MODEL
from . import cli, ranks

_TRAINING = (
    click.option("--adapter-path", help="Folder for the adapter and the run's checkpoints.  [default: adapters]"),
    click.option("--tune", multiple=True, metavar="NAME", help="What to train: text, vision, speech, an adapter that "
                 "lines name, with =new to begin afresh; or an encoder or projector.  [default: what the data holds]"),
    click.option("--fine-tune-type", help="lora or dora.  [default: lora]"),
    click.option("--rank", type=int, help="Of new adapters.  [default: 32]"),
    click.option("--scale", type=float, help="What a new adapter is multiplied by.  [default: 16]"),
    click.option("--alpha", type=float, help="Instead of --scale: scale times rank."),
    click.option("--rslora/--no-rslora", default=None, help="alpha over the root of the rank."),
    click.option("--keys", multiple=True, help="Linears of a layer: qkv_proj, o_proj, gate_up_proj, down_proj."),
    click.option("--num-layers", type=int, help="The last so many layers; -1: all.  [default: -1]"),
    click.option("--batch-size", type=int, help="Examples of an iteration.  [default: 4]"),
    click.option("--iters", type=int, help="Iterations.  [default: 1000]"),
    click.option("--learning-rate", type=float, help="The highest one.  [default: 1e-5]"),
    click.option("--lr-schedule", help="constant, cosine or linear.  [default: cosine]"),
    click.option("--warmup", type=int, help="Updates of rising rate.  [default: a twentieth, at most 100]"),
    click.option("--optimizer", help="adamw or adam.  [default: adamw]"),
    click.option("--weight-decay", type=float, help="[default: 0.01]"),
    click.option("--max-grad-norm", type=float, help="Clip gradients above it; 0: never.  [default: 1]"),
    click.option("--grad-accumulation-steps", type=int, help="Iterations of an update.  [default: 1]"),
    click.option("--grad-checkpoint/--no-grad-checkpoint", default=None, help="Less memory, more time."),
    click.option("--max-seq-length", type=int, help="Tokens of an example.  [default: 2048]"),
    click.option("--long-answers", help="skip or refuse lines whose answer does not fit.  [default: skip]"),
    click.option("--mask-prompt/--no-mask-prompt", default=None, help="Learn answers alone (the default), or all."),
    click.option("--held-out", type=float, help="Share of train.jsonl where there is no valid.jsonl.  [default: 0.05]"),
    click.option("--val-batches", type=int, help="Batches of a validation; -1: all.  [default: 25]"),
    click.option("--steps-per-eval", type=int, help="Iterations between validations.  [default: 200]"),
    click.option("--val-task/--no-val-task", default=None, help="Ask questions in validations (the default), or not."),
    click.option("--early-stop", type=int, help="End after so many validations without a better one; 0: never."),
    click.option("--test-batches", type=int, help="Batches of a test; -1: all.  [default: -1]"),
    click.option("--beta", type=float, help="Of preferences: how dear it is to leave the base.  [default: 0.1]"),
    click.option("--stop-hopeless/--go-on", default=None, help="End where nothing is learnt (the default), or go on."),
    click.option("--seed", type=int, help="[default: 0]"),
    click.option("--save-every", type=int, help="Iterations between checkpoints.  [default: 100]"),
    click.option("--keep-checkpoints", type=int, help="How many of the last.  [default: 2]"),
    click.option("--resume", is_flag=True, default=None, help="Go on with the run in --adapter-path."),
    click.option("--overwrite", is_flag=True, default=None, help="Replace the adapter in --adapter-path."),
    click.option("--resume-adapter-file", help="A folder with an adapter to begin with."),
    click.option("--steps-per-report", type=int, help="Iterations between lines of progress.  [default: 10]"),
    click.option("--report-to", multiple=True, help="tensorboard, trackio or wandb; repeatable."),
    click.option("--project-name", help="In the tracker.  [default: the folder's name]"),
    click.option("--plot/--no-plot", default=None, help="The losses as losses.png.  [default: if matplotlib is there]"),
    click.option("--cache-features/--no-cache-features", default=None, help="Keep what frozen encoders compute."),
    click.option("--clear-cache-threshold", type=int, help="Bytes of freed buffers to keep.  [default: 0]"),
    click.option("--quiet", is_flag=True, default=None, help="No progress."),
)  # fmt: skip


def _options(command):
    for option in reversed(_TRAINING):
        command = option(command)
    return command


@cli.command("mlx_phi4.lora")
@click.option("--model", help=f"Checkpoint folder or hub id.  [default: {MODEL}]")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--data", help="Folder with train.jsonl, a file of lines, or a data set of the hub.")
@click.option("--train", is_flag=True, default=None, help="Train.")
@click.option("--test", is_flag=True, default=None, help="Measure on test.jsonl, after training or alone.")
@click.option("--dry-run", is_flag=True, default=None, help="Tell memory and time, and write nothing.")
@click.option("-c", "--config", help="A YAML file with any of these options; the command line goes first.")
@_options
@ranks.parallel_option("data")
@click.pass_context
def main(context, config, parallel, **given):
    """Train a LoRA or DoRA on your examples: text, pictures and recordings, each by an adapter of its own.

    The base is never changed. --adapter-path is a folder for --adapter NAME=FOLDER of the other commands.
    """
    from ..training.config_file import read_options

    told = {n: v for n, v in given.items() if context.get_parameter_source(n) is ParameterSource.COMMANDLINE}
    options = (read_options(config) if config else {}) | told
    model, data = options.pop("model", MODEL), options.pop("data", None)
    train, test, dry_run = (options.pop(name, False) for name in ("train", "test", "dry_run"))
    if not (train or test or dry_run):
        raise click.UsageError("Nothing to do: --train, --test or --dry-run says what.")
    if data is None:
        raise click.UsageError("Missing option '--data'.")
    revision = options.pop("revision", None)
    here = distributed.join(parallel)
    if here.rank and not train:  # a measurement or a forecast is of one process
        return
    ranks.drop_native_noise(here)
    from ..training.train import predict_training, test_adapter, train_adapter

    if dry_run:
        click.echo(predict_training(model, data, revision=revision, **options))
        return
    if train:
        train_adapter(model, data, revision=revision, **options)
    if test and not here.rank:
        click.echo(f"test: {test_adapter(model, data, revision=revision, **options)}")


def command() -> None:
    """The console script."""
    cli.run(main)
