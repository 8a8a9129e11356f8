"""The command mlx_phi4.selftest: whether this machine computes what the reference computes."""

from pathlib import Path

import click

from ..errors import Phi4Error
from ..files import expanded, read_text, write_whole
from ..terminal import say, shown
from . import cli


@cli.command("mlx_phi4.selftest")
@click.option("--model", callback=cli.not_empty, help="Look at this checkpoint folder or hub id, too.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--stages", help="Only these, separated by commas; see docs/selftest.md.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
@click.option("--report", type=click.Path(path_type=Path), help="Write what may be attached to an issue.")
@click.option("--overwrite", is_flag=True, help="Replace any file at --report.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.pass_context
def main(context, model, revision, stages, as_json, report, overwrite, quiet):
    """Compare every stage here with the reference implementation, exact arithmetic and MLX's CPU backend.

    Exit code 0: all passed; 1: something failed.
    """
    if report is not None:
        report = expanded(report)
        cli.check_output(report, _is_ours, overwrite)
        if not report.absolute().parent.is_dir():
            raise Phi4Error(f"{report.parent}: no such folder")
    from ..selftest.report import failure_lines, line_of
    from ..selftest.selftest import self_test

    done = []

    def tell(outcome) -> None:
        done.append(outcome.name)
        if not quiet:
            say("\n".join([line_of(outcome), *failure_lines(outcome)]))

    names = None if stages is None else [name.strip() for name in stages.split(",")]
    try:
        found = self_test(model, revision=revision, stages=names, progress=tell)
    except KeyboardInterrupt:
        say(f"Interrupted after {len(done)} stages.")
        raise
    if report is not None:
        with write_whole(report) as path:
            path.write_text(found.text(), encoding="utf-8")
    click.echo(found.json() if as_json else shown(found.table()))
    if not found.passed:
        context.exit(1)


def _is_ours(path: Path) -> bool:
    from ..selftest.report import HEADER

    return read_text(path).startswith(HEADER)


def command() -> None:
    """The console script."""
    cli.run(main)
