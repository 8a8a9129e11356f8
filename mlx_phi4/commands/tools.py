"""Options about tools, which commands that answer share."""

import click

from ..errors import Phi4Error
from ..files import expanded, read_text
from ..inputs.tools import RESULT_ROLES, read_tools

tools_option = click.option(
    "--tools", metavar="FILE", help="What the model may call: a JSON list, in OpenAI's form or Phi's."
)
_TOOLS = (
    tools_option,
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
    from ..generation.tool_choice import check_tools

    text = read_file(options["tools"])
    tools = () if text is None else read_tools(text)
    check_tools(tools, GenerationOptions(tool_choice=options["tool_choice"]))
    return options | {"tools": text}


def read_file(name: str | None) -> str | None:
    """The text of a file of tools, if one is named. Raises Phi4Error, with its name, for anything else."""
    if name is None:
        return None
    path = expanded(name)
    text = read_text(path)
    try:
        read_tools(text)
    except Phi4Error as error:
        raise Phi4Error(f"{path}: {error}") from None
    return text
