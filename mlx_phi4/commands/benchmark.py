"""The command mlx_phi4.benchmark: how fast a model answers here."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import distributed
from ..evaluation.speed import MODES
from ..terminal import say
from . import cli, ranks
from .adapters import adapter_options, check_adapters

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..evaluation.speed import Measured


@cli.command("mlx_phi4.benchmark")
@cli.model_option(required=True)
@adapter_options
@click.option("--mode", type=click.Choice([*MODES, "all"]), default="all", show_default=True, help="What to measure.")
@click.option("--prompt-tokens", default=512, show_default=True, help="Tokens of the prompt, media included.")
@click.option("--generation-tokens", default=128, show_default=True, help="Tokens of the answer.")
@click.option("--image", type=click.Path(path_type=Path), help="A picture's path; without it, one is made.")
@click.option("--audio", type=click.Path(path_type=Path), help="A recording's path; without it, a tone is made.")
@click.option("--repeat", default=3, show_default=True, help="Counted rounds; one more warms up.")
@cli.engine_options
@click.option("--plot", metavar="FILE.png", help="Draw the figures, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--quiet", is_flag=True, help="No progress.")
@ranks.parallel_option("tensor")
def main(model, revision, adapters, parallel, as_json, quiet, plot, **options):
    """Measure how fast a model answers here, in each mode. The prompts are random tokens."""
    if plot is not None:
        from ..transcription.plot import check_plot

        plot = check_plot(plot)
    for kind in ("image", "audio"):
        if options[kind] is not None:
            (options[kind],) = cli.check_media([options[kind]])
    check_adapters(adapters, options["adapter"], quiet)
    if not quiet and distributed.join(parallel).rank == 0:
        say(f"Loading {model} ...")
    from ..evaluation.speed import benchmark, machine

    loaded = ranks.loaded(model, parallel, revision=revision, adapters=adapters, quiet=quiet)
    found = benchmark(*loaded, quiet=quiet, **options)
    where = machine() | {"ranks": 1 if loaded[0].sharding is None else loaded[0].sharding.size}
    if plot is not None:
        from ..evaluation.speed_plot import plot_speed

        plot_speed(found, where, plot)
    if as_json:
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        results = [asdict(measured) for measured in found]
        click.echo(json.dumps({"model": model, **where, "options": asked, "results": results}, indent=1))
    else:
        click.echo(describe(found, where))


def describe(found: "list[Measured]", where: dict) -> str:
    """The figures as lines for people."""
    memory = f", {where['memory_gb']} GB" if where["memory_gb"] else ""
    ranks = f", one of {where['ranks']} ranks" if where.get("ranks", 1) > 1 else ""
    lines = [
        f"measured on {where['device']}: {where['name']}{memory}{ranks}; {where['system']}, Python {where['python']}, "
        f"mlx {where['mlx']}, mlx-lm {where['mlx_lm']}, mlx_phi4 {where['mlx_phi4']}"
    ]
    for m in found:
        lines += [
            f"{m.mode}: prompt {m.prompt_tokens} tokens, {m.prompt_tps:.1f} a second; "
            f"answer {m.generation_tokens} tokens, {m.generation_tps:.1f} a second",
            f"  first token after {m.first_token_seconds:.3f} s (preparing {m.prepare_seconds:.3f} s, "
            f"encoders {m.encoder_seconds:.3f} s); second question {m.second_question_seconds:.3f} s, "
            f"{m.second_question_ratio:.2f}x",
            f"  peak memory {m.peak_memory:.2f} GB; weights read per token {(m.base_bytes + m.adapter_bytes) / 1e6:.1f}"
            f" MB, {(m.base_bytes + m.adapter_bytes) / m.base_bytes:.3f}x of text mode's",
        ]
    return "\n".join(lines)


def command() -> None:
    """The console script."""
    cli.run(main)
