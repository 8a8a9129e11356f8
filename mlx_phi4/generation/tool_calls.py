"""Calls of tools in an answer, told from its text.

A call stands between the tokens ``<|tool_call|>`` and ``<|/tool_call|>``, known by the ids that the loaded tokenizer
gives them, as decoding skips both. What a model writes there is a JSON list of ``{"name": ..., "arguments": {...}}``,
more or less: the brackets may lack, an item may be a string of JSON, the end token may never come. A call is given once
it is whole; whatever is no call of a declared tool is text, and none of it is lost.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..inputs.tokenizer import Tokenizer
from ..inputs.tools import TOOL_CALL, TOOL_CALL_END, Tool, ToolCall
from .options import GenerationOptions
from .text import AnswerText

BETWEEN_CALLS = " \t\r\n[],;"  # says nothing by itself


class CallReader:
    """What stands between the two tokens, piece by piece: whole calls as they come, and all else as text.

    Args:
        names: those of the declared tools.
        most: calls that count; further ones are text. None for any number.
    """

    def __init__(self, names: Iterable[str], most: int | None = None):
        self._names, self._left = frozenset(names), math.inf if most is None else most
        self._text = ""  # that was neither given as a call nor let go as text
        self._seen = self._start = self._depth = 0  # characters looked at; where an item began; braces open in it
        self._quoted = self._escaped = False
        self.found = False  # whether there was a call

    def add(self, piece: str) -> tuple[str, list[ToolCall]]:
        """Another piece -> text that stood before the calls that it completes, and these calls."""
        self._text += piece
        text, calls = "", []
        while self._seen < len(self._text):
            self._seen += 1
            if not self._completes(self._text[self._seen - 1]):
                continue
            found = _calls(self._text[self._start : self._seen], self._names)
            if 0 < len(found) <= self._left:
                text += _kept(self._text[: self._start])
                calls += found
                self._left -= len(found)
                self._text, self._seen, self.found = self._text[self._seen :], 0, True
        return text, calls

    def finish(self) -> str:
        """The end: what is left, as text. Where there was no call, that is all that stood there, as it stood."""
        return _kept(self._text) if self.found else self._text

    def _completes(self, character: str) -> bool:
        """Whether an item, an object or a string that is in none, ends with the next character."""
        if self._quoted:
            self._quoted = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
            return not self._quoted and not self._depth
        if character in '"{' and not self._depth:
            self._start = self._seen - 1
        if character == '"':
            self._quoted = True
        elif character == "{":
            self._depth += 1
        elif character == "}" and self._depth:
            self._depth -= 1
            return not self._depth
        return False


def _kept(text: str) -> str:
    return text if text.strip(BETWEEN_CALLS) else ""


def _calls(text: str, names: frozenset[str]) -> list[ToolCall]:
    """The calls that an item holds; none if it holds anything else."""
    try:
        value = _json(text)
        value = _json(value) if isinstance(value, str) else value
        items = value if isinstance(value, list) else [value]
        return [_call(item, names) for item in items]
    except (ValueError, RecursionError):
        return []


def _call(item: Any, names: frozenset[str]) -> ToolCall:
    """Raises ValueError for what is no call of one of these tools."""
    if isinstance(item, dict) and isinstance(item.get("function"), dict) and item.keys() <= {"function", "type", "id"}:
        item = item["function"]  # as OpenAI writes a call
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or item["name"] not in names:
        raise ValueError
    given = item.keys() & {"arguments", "parameters"}  # the second as models trained on other lists have it
    if len(given) > 1 or not item.keys() <= {"name", "type", "id"} | given:
        raise ValueError
    arguments = item[given.pop()] if given else {}
    if arguments is None:
        arguments = {}
    if isinstance(arguments, str):
        arguments = _json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise ValueError
    return ToolCall(item["name"], arguments)


def _json(text: str) -> Any:
    """JSON, also with line breaks in its strings. Raises ValueError for what could not be written as JSON again."""
    value = json.loads(text, strict=False)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    return value


class AnswerWithCalls(AnswerText):
    """An answer's text without its calls, and the calls. Stop strings are looked for in the text alone.

    Args:
        names: those of the tools that may be called.
        most: calls that count; None for any number.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: str | list[str] | None, names: Iterable[str], most: int | None = None
    ):
        super().__init__(tokenizer, stop)
        self._tokenizer = tokenizer
        self._begin, self._end = (tokenizer.special[each].id for each in (TOOL_CALL, TOOL_CALL_END))
        self._names, self._most = list(names), most
        self._reader: CallReader | None = None  # between the two tokens
        self._new: list[ToolCall] = []
        self._count = 0
        self._closed = False  # whether the last token ended calls

    def add(self, token: int) -> str:
        """See ``AnswerText``."""
        self._closed = False
        if self.stopped:
            return ""
        if token == self._begin:
            text = self.finish()
            left = None if self._most is None else self._most - self._count
            self._reader = None if self.stopped else CallReader(self._names, left)
            return text
        if self._reader is None:
            return super().add(token)
        if token == self._end:
            self._closed = self._reader.found
            return self._leave()
        return self._read(self._detokenizer.add(token))

    def finish(self) -> str:
        """See ``AnswerText``; a call that is not whole is text."""
        text = self._leave() if self._reader is not None else ""
        text += super().finish()
        self._detokenizer = self._tokenizer.detokenizer()
        return text

    def calls(self) -> tuple[ToolCall, ...]:
        """See ``AnswerText``."""
        new, self._new = tuple(self._new), []
        return new

    def reason(self, reason: str) -> str:
        """See ``AnswerText``: "tool_calls" where calls came and nothing was cut off."""
        return "tool_calls" if self._closed or (self._count and reason == "stop") else reason

    def _leave(self) -> str:
        """Text follows."""
        text = self._read(self._detokenizer.finish()) + self._certain(self._reader.finish())
        self._reader, self._detokenizer = None, self._tokenizer.detokenizer()
        return text

    def _read(self, piece: str) -> str:
        """Of a piece between the tokens: the text that is certain; calls are kept for ``calls``."""
        text, calls = self._reader.add(piece)
        text = self._certain(text)
        if not self.stopped:
            self._new += calls
            self._count += len(calls)
        return text


def answer_text(tools: Sequence[Tool], options: GenerationOptions, tokenizer: Tokenizer) -> AnswerText:
    """The text of an answer that may call these tools, as far as its options allow."""
    choice = options.tool_choice
    if not tools or (choice is not None and choice.mode == "none"):
        return AnswerText(tokenizer, options.stop)
    one = not options.parallel_tool_calls or (choice is not None and choice.name is not None)
    names = [tool.name for tool in tools if choice is None or choice.name in (None, tool.name)]
    return AnswerWithCalls(tokenizer, options.stop, names, 1 if one else None)
