"""Options about tools, which commands that answer share."""

from pathlib import Path

import click

from ..errors import ConfigError, Phi4Error
from ..files import expanded, read_text
from ..inputs.tools import RESULT_ROLES, read_tools

_TOOLS = (
    click.option("--tools", metavar="FILE", help="What the model may call: a JSON list, in OpenAI's form or Phi's."),
    click.option("--tool-choice", help="auto, none, required, or the name of a tool.  [default: auto]"),
    click.option(
        "--parallel-tool-calls/--no-parallel-tool-calls",
        default=True,
        show_default=True,
        help="Whether an answer may have several calls.",
    ),
)

results_option = click.option(
    "--tool-results",
    type=click.Choice(RESULT_ROLES),
    default=RESULT_ROLES[0],
    show_default=True,
    help="Whose turn a tool's result is in the prompt; the model's card names none.",
)


def tool_options(command):
    """Add the options that say what may be called; names are ``stream_generate``'s."""
    for option in reversed(_TOOLS):
        command = option(command)
    return command


def read_tool_options(options: dict) -> dict:
    """The options with the tools of their file, checked before a model is asked for. Raises Phi4Error."""
    from ..generation.options import GenerationOptions
    from ..generation.tool_choice import checked_choice

    tools = () if options["tools"] is None else _read_file(options["tools"])
    checked_choice(tools, GenerationOptions(tool_choice=options["tool_choice"]))
    return options | {"tools": [tool.entry for tool in tools] if tools else None}


def _read_file(name: str):
    path: Path = expanded(name)
    try:
        return read_tools(read_text(path))
    except ConfigError:  # it names the file
        raise
    except Phi4Error as error:
        raise Phi4Error(f"{path}: {error}") from None
