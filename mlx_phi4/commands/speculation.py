"""The options of speculation, which several commands share."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..generation.draft_model import DraftModel
    from ..inputs.processor import Processor
    from ..model import Phi4


def _given(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("is empty", context, parameter)
    return value


def speculation_options(command):
    """Add --speculation and --draft-model."""
    drafts = click.option("--draft-model", callback=_given, help="Folder or hub id of a small model that drafts.")
    return click.option(
        "--speculation",
        type=click.Choice(["lookup", "none"]),
        default="none",
        show_default=True,
        help="lookup: draft what followed before; faster where answers repeat, always the same answers.",
    )(drafts(command))


def check_speculation(speculation: str, draft_model: str | None) -> None:
    """Refuse what contradicts itself. Raises click.UsageError."""
    if draft_model is not None and speculation != "none":
        raise click.UsageError("--speculation lookup and --draft-model are two ways to draft: give one.")


def open_speculation(
    speculation: str, draft_model: str | None, model: "Phi4", processor: "Processor", quiet: bool = True
) -> "DraftModel | str":
    """What the option ``speculation`` of a loaded model is to be. Raises Phi4Error."""
    from ..loading import load_draft

    if draft_model is None:
        return speculation
    return load_draft(draft_model, model, processor, quiet=quiet)
