"""Tools in OpenAI's protocol: parameters, where an error is, and a call in pieces."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..arguments.kinds import Unfit
from ..errors import Phi4Error
from ..inputs.tools import ToolCall, ToolChoice, tool_choice
from . import fields
from .errors import RequestError


def _choice(value: Any, name: str) -> ToolChoice:
    try:
        return tool_choice(value)
    except Unfit as error:
        raise fields.wrong(name, value, str(error)) from None


def _older(value: Any, name: str) -> None:
    raise fields.unsupported(name, f"is an older form: use {'tools' if name == 'functions' else 'tool_choice'}")


TOOL_FIELDS = {
    "tools": fields.listed,
    "tool_choice": _choice,
    "parallel_tool_calls": fields.boolean,
    "functions": _older,
    "function_call": _older,
}


@contextmanager
def naming() -> Iterator[None]:
    """What is wrong with messages and tools says where at its beginning: that is the error's parameter."""
    try:
        yield
    except RequestError:
        raise
    except Phi4Error as error:
        where = str(error).partition(" ")[0]
        if not where.startswith(("messages[", "tool")):
            raise
        raise RequestError(str(error), param=where, code="invalid_value") from None


def deltas(call: ToolCall, index: int) -> list[dict]:
    """A call in pieces: who is called, then the arguments."""
    told = call.message
    begun = {"index": index, **told, "function": told["function"] | {"arguments": ""}}
    rest = {"index": index, "function": {"arguments": told["function"]["arguments"]}}
    return [{"tool_calls": [begun]}, {"tool_calls": [rest]}]
