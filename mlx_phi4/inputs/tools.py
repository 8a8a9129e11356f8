"""Tools as requests declare them, calls and results as messages carry them, and how Phi writes all three.

Published is how tools are written: a list of flat entries as JSON between ``<|tool|>`` and ``<|/tool|>`` at the end of
the system message. A call is written as the model itself writes one; results have a turn each (``RESULT_ROLES``).
"""

import json
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..arguments import kinds
from ..arguments.names import checked_fields
from ..errors import PromptError
from .tool_schema import argument_schema, check_parameters

TOOL, TOOL_END = "<|tool|>", "<|/tool|>"
TOOL_CALL, TOOL_CALL_END = "<|tool_call|>", "<|/tool_call|>"
RESULT_ROLES = ("tool_response", "tool")  # the first has a token for just this, the second is the published template's
MOST_TOOLS = 128  # as OpenAI's
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
CHOICES = ("auto", "none", "required")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call: its name, and the flat entry (name, description, parameters) as written.

    Not ``strict``, what a grammar cannot say of its parameters is left open.
    """

    name: str
    entry: dict[str, Any]
    strict: bool = True

    @property
    def schema(self) -> dict:
        """The JSON schema of its arguments."""
        return argument_schema(self.entry.get("parameters"))


def _arguments(value):
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise kinds.Unfit("a dictionary with strings as keys")
    return value


@checked_fields(name=kinds.text, arguments=kinds.Kind(_arguments), id=kinds.text)
@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for: which tool, with which arguments, and an id that its result refers to."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    @property
    def json(self) -> str:
        """The arguments as JSON."""
        return json.dumps(self.arguments, ensure_ascii=False)

    @property
    def message(self) -> dict:
        """The call as an assistant message's ``tool_calls`` has it, in OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.json}}


@dataclass(frozen=True)
class ToolChoice:
    """Whether calls may or must come: "auto", "none" or "required", and then perhaps of the tool ``name`` alone."""

    mode: str
    name: str | None = None


def tool_choice(value) -> ToolChoice:
    """One of ``CHOICES``, the name of a tool, or OpenAI's object that names one. Raises Unfit."""
    if isinstance(value, ToolChoice):
        return value
    if isinstance(value, dict):
        function = value.get("function", value) if value.get("type", "function") == "function" else None
        value = function.get("name") if isinstance(function, dict) else None
        if isinstance(value, str) and NAME.fullmatch(value):
            return ToolChoice("required", value)
    elif isinstance(value, str) and value in CHOICES:
        return ToolChoice(value)
    elif isinstance(value, str) and NAME.fullmatch(value):
        return ToolChoice("required", value)
    raise kinds.Unfit(
        '"auto", "none", "required" or a tool, as in {"type": "function", "function": {"name": "weather"}}'
    )


def read_tools(given: Any) -> tuple[Tool, ...]:
    """Tools from a list of entries, OpenAI's or flat as Phi has them, or from the JSON of one.

    A flat entry is written as it is given. Raises PromptError with the place of what is wrong.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise PromptError(f"tools is {kinds.shown(given)}, expected a list of tools, or JSON of one") from None
    if not isinstance(given, (list, tuple)):
        raise PromptError(f"tools is {kinds.shown(given)}, expected a list of tools")
    if len(given) > MOST_TOOLS:
        raise PromptError(f"tools holds {len(given)} tools, expected at most {MOST_TOOLS}")
    found: dict[str, Tool] = {}
    for index, entry in enumerate(given):
        tool = _tool(entry, f"tools[{index}]")
        if tool.name in found:
            raise PromptError(f"tools[{index}] has the name {tool.name!r}, which another tool has already")
        found[tool.name] = tool
    written(found.values())
    return tuple(found.values())


def written(tools: Iterable[Tool]) -> str:
    """The JSON of tools as it stands in a prompt. Raises PromptError for what JSON cannot hold."""
    try:
        text = json.dumps([tool.entry for tool in tools], ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"tools cannot be written as JSON: {error}") from None
    return text


def _tool(given: Any, where: str) -> Tool:
    if not isinstance(given, dict):
        raise PromptError(f"{where} is {kinds.shown(given)}, expected a JSON object with a name")
    entry, place, strict = given, where, given.get("strict")
    if "function" in given or ("type" in given and "name" not in given):
        if given.get("type") != "function" or not isinstance(given.get("function"), dict):
            kind = kinds.shown(given.get("type"))
            raise PromptError(
                f'{where} is of type {kind}, expected {{"type": "function", "function": {{"name": ...}}}}'
            )
        place = f"{where}.function"
        function = given["function"]
        strict = function.get("strict")
        if unknown := [*given.keys() - {"type", "function"}, *function.keys() - {*_FIELDS, "strict"}]:
            raise PromptError(f"{place} has {kinds.shown(unknown[0])}, expected {', '.join(_FIELDS)} or strict")
        entry = {key: function[key] for key in _FIELDS if function.get(key) is not None}
        entry.setdefault("parameters", {})
    name = checked_name(entry.get("name"), f"{place}.name")
    if not isinstance(entry.get("description", ""), str):
        raise PromptError(f"{place}.description is {kinds.shown(entry['description'])}, expected a string")
    check_parameters(entry.get("parameters"), f"{place}.parameters")
    if not isinstance(strict, (bool, type(None))):
        raise PromptError(f"{place}.strict is {kinds.shown(strict)}, expected true or false")
    return Tool(name, entry, strict is not False)


_FIELDS = ("name", "description", "parameters")  # of a published entry, in its order


def checked_name(name: Any, where: str) -> str:
    """A name that a tool can have. Raises PromptError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PromptError(f"{where} is {kinds.shown(name)}, expected up to 64 letters (a-z), digits and _ - .")
    return name


def declared(messages: list[dict], tools: Any) -> tuple[Tool, ...]:
    """The tools of a conversation: those that it is given with, or those that its system message brings.

    Raises PromptError.
    """
    own = next((m["tools"] for m in messages if m["role"] == "system" and m.get("tools") is not None), None)
    given = () if tools is None else read_tools(tools)
    if not given and isinstance(own, str):  # taken as it stands, as the published template does
        try:
            return read_tools(own)
        except PromptError:
            return ()
    if given and own is not None:
        raise PromptError("tools come both from the system message and from tools=; use one of the two")
    return given if own is None else read_tools(own)


def with_tools(messages: list[dict], tools: tuple[Tool, ...]) -> list[dict]:
    """Messages whose system message, an empty one if there is none, brings the tools as text."""
    if not tools:
        return messages
    systems = [index for index, each in enumerate(messages) if each["role"] == "system"]
    bringing = [index for index in systems if messages[index].get("tools") is not None]
    if not systems:
        messages = [{"role": "system", "content": ""}, *messages]
    place = (bringing or systems or [0])[0]
    if isinstance(messages[place].get("tools"), str):
        return messages
    return [*messages[:place], messages[place] | {"tools": written(tools)}, *messages[place + 1 :]]


def answered(messages: list[dict], result_role: str) -> Iterator[dict]:
    """Messages with calls as text under ``calls`` and results as text under ``result``, in the order of their calls.

    Raises PromptError for a result without its call, and for calls and results of another form.
    """
    calls: list[ToolCall] = []
    results: dict[int, dict] = {}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message["role"] in RESULT_ROLES:
            place = _place(message, calls, results, where)
            role = result_role if message["role"] == "tool" else message["role"]
            results[place] = {"role": role, "result": _result(message.get("content"), where)}
            continue
        yield from (result for _, result in sorted(results.items()))
        calls, results = _calls(message, where), {}
        yield message | {"calls": spelled(calls)} if calls else message
    yield from (result for _, result in sorted(results.items()))


def spelled(calls: Iterable[ToolCall]) -> str:
    """Calls as the model writes them, without the tokens around them."""
    return json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls], ensure_ascii=False)


def _place(message: dict, calls: list[ToolCall], results: dict, where: str) -> int:
    """The number of the call that a result answers: by its id, or the next one."""
    id = message.get("tool_call_id")
    fitting = [place for place, call in enumerate(calls) if id is None or call.id == id]
    if not fitting:
        named = "" if id is None else f" for the call {kinds.shown(id)}"
        raise PromptError(
            f"{where} is a result{named}, but the assistant's message before it has no such call in tool_calls"
        )
    free = [place for place in fitting if place not in results]
    if not free:
        raise PromptError(f"{where} is a second result for one call")
    return free[0]


def _calls(message: dict, where: str) -> list[ToolCall]:
    given = message.get("tool_calls")
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return []
    if message["role"] != "assistant" or not isinstance(given, (list, tuple)):
        raise PromptError(f"{where}.tool_calls is {kinds.shown(given)}, expected a list in an assistant's message")
    return [_call(each, f"{where}.tool_calls[{index}]") for index, each in enumerate(given)]


def _call(given: Any, where: str) -> ToolCall:
    """A call of an earlier turn: ours, OpenAI's, or flat as the model writes it."""
    if isinstance(given, ToolCall):
        checked_name(given.name, f"{where}.name")
        return given
    if not isinstance(given, dict) or given.get("type", "function") != "function":
        raise PromptError(f"{where} is {kinds.shown(given)}, expected a call of a function")
    function, place = (given["function"], f"{where}.function") if "function" in given else (given, where)
    if not isinstance(function, dict):
        raise PromptError(f"{place} is {kinds.shown(function)}, expected an object")
    name, arguments = checked_name(function.get("name"), f"{place}.name"), function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            arguments = None
    try:
        json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise PromptError(f"{place}.arguments is {kinds.shown(function.get('arguments'))}, expected a JSON object")
    if not isinstance(given.get("id", ""), str):
        raise PromptError(f"{where}.id is {kinds.shown(given['id'])}, expected a string")
    return ToolCall(name, arguments, **({"id": given["id"]} if "id" in given else {}))


def _result(content: Any, where: str) -> str:
    """A result's text: nothing in it stands for a picture or a recording."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts] if isinstance(parts, list) else []
    if not isinstance(parts, list) or not all(isinstance(text, str) for text in texts):
        raise PromptError(f"{where}.content is {kinds.shown(content)}, a tool's result is text")
    return "".join(texts)
