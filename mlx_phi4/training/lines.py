"""What a line of a data file says: messages with answers, media located relative to the file, and how to check them.

Each line may have another of the forms in ``LINE_FORMS``; a line of preferences has ``chosen`` and ``rejected`` in
place of its answer.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Phi4Error, PromptError
from ..evaluation.manifest import read_objects
from ..files import why_not_file
from ..inputs.processor import Request
from ..modalities import MODALITIES
from ..transcription.tasks import PROMPTS

LINE_FORMS = "messages; prompt and completion; question and answer; audio and text; or text"
ADDRESS = ("data:", "http://", "https://", "file:")  # sources that are no paths relative to the file


@dataclass(frozen=True)
class Line:
    """One example.

    Args:
        where: file and line, for messages to a person.
        request: the whole conversation, answers included; a raw prompt for plain text.
        unlearnt: which of the assistant's turns, counted from 0, have weight 0.
        task: how an answer is judged: "transcript", "answer", or None for plain text.
        ask: the request up to the last answer, and the answers that are right.
        language: of a transcript, where the line has one.
        adapter: the adapter that this line trains, where it names one.
    """

    where: str
    request: Request
    unlearnt: frozenset[int] = frozenset()
    task: str | None = None
    ask: Request | None = None
    answers: tuple[str, ...] = ()
    language: str | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Preference:
    """A pair of answers to one prompt."""

    chosen: Line
    rejected: Line


def read_lines(path: Path) -> Iterator[Line | Preference]:
    """The examples of a file, in order. Raises Phi4Error with file and line."""
    for _, where, values in read_objects(path):
        yield read_line(values, where, path.parent)


def read_line(values: dict[str, Any], where: str, folder: Path) -> Line | Preference:
    """One object as an example. Raises Phi4Error."""
    try:
        values = _with_plain_media(values, folder)
        if "chosen" in values or "rejected" in values:
            return Preference(*(_chat(_preferred(values, which), where, folder) for which in ("chosen", "rejected")))
        return _line(values, where, folder)
    except Phi4Error as error:
        raise type(error)(f"{where}: {error}") from None


def _line(values: dict, where: str, folder: Path) -> Line:
    if values.get("messages") is not None:
        return _chat(values, where, folder)
    for asked, answered in (("prompt", "completion"), ("question", "answer")):
        if values.get(answered) is not None:
            answer = values[answered]
            several = answer if asked == "question" and isinstance(answer, list) and answer else [answer]
            found = _chat(values | {"messages": _turns(values.get(asked), several[0], asked, answered)}, where, folder)
            return replace(found, answers=tuple(several)) if all(isinstance(a, str) for a in several) else found
    if values.get("audios") and isinstance(values.get("text"), str):
        found = _chat(values | {"messages": _turns(PROMPTS["transcribe"], values["text"], "", "")}, where, folder)
        language = values.get("language")
        return replace(found, task="transcript", language=language if isinstance(language, str) else None)
    if isinstance(values.get("text"), str):
        if not values["text"].strip():
            raise Phi4Error("text is empty")
        return Line(where, Request(values["text"], raw=True), adapter=_adapter(values))
    raise Phi4Error(f"has the keys {', '.join(map(repr, values)) or 'none'}, expected {LINE_FORMS}")


def _turns(prompt, answer, asked: str, answered: str) -> list[dict]:
    if isinstance(prompt, list):  # messages before the answer
        return [*prompt, {"role": "assistant", "content": answer}]
    if not isinstance(prompt, str) and not (asked == "question" and prompt is None):
        raise Phi4Error(f"{asked} is {prompt!r:.60}, expected a string")
    if not isinstance(answer, str):
        raise Phi4Error(f"{answered} is {answer!r:.60}, expected a string")
    return [{"role": "user", "content": prompt or ""}, {"role": "assistant", "content": answer}]


def _preferred(values: dict, which: str) -> dict:
    """A line with one of its two answers, as a string or as messages of which the last is the answer."""
    answer, before = values.get(which), values.get("messages", values.get("prompt"))
    if isinstance(answer, list) and answer and all(isinstance(each, dict) for each in answer):
        whole = answer if len(answer) > 1 or before is None else [*_before(before), *answer]
        return values | {"messages": whole}
    if not isinstance(answer, str):
        raise Phi4Error(f"{which} is {answer!r:.60}, expected a string or messages")
    return values | {"messages": [*_before(before), {"role": "assistant", "content": answer}]}


def _before(prompt) -> list[dict]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        return prompt
    raise Phi4Error(f"prompt is {prompt!r:.60}, expected a string or messages")


def _chat(values: dict, where: str, folder: Path) -> Line:
    messages = values["messages"]
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise PromptError(f"messages are {messages!r:.60}, expected a list of objects")
    messages = [each | {"content": _located(each.get("content"), folder)} for each in messages]
    if values.get("tools") is not None:
        messages = _with_tools(messages, values["tools"])
    said = [index for index, each in enumerate(messages) if each.get("role") == "assistant"]
    if not said:
        raise PromptError("holds no message of the assistant: there is nothing to learn")
    messages = messages[: said[-1] + 1]
    unlearnt = frozenset(turn for turn, index in enumerate(said) if messages[index].get("weight") == 0)
    if len(unlearnt) == len(said):
        raise PromptError("all messages of the assistant have weight 0: there is nothing to learn")
    answer = _text(messages[-1].get("content"))
    if not answer.strip() and not any(_text(messages[index].get("content")).strip() for index in said):
        raise PromptError("the assistant's answer is empty")
    media = {kind: values[name] for kind, name in _names().items() if values.get(name)}
    request = Request(messages, media=media)
    ask = Request(messages[:-1], media=media) if any(m.get("role") == "user" for m in messages[:-1]) else None
    return Line(where, request, unlearnt, "answer", ask, (answer,), adapter=_adapter(values))


def _adapter(values: dict) -> str | None:
    name = values.get("adapter")
    if name is not None and not isinstance(name, str):
        raise Phi4Error(f"adapter is {name!r:.60}, expected a name")
    return name


def _with_tools(messages: list[dict], tools) -> list[dict]:
    """The tools of a line in its system message, which is made if there is none."""
    if messages and messages[0].get("role") == "system":
        return [messages[0] | {"tools": tools}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": tools}, *messages]


def _text(content) -> str:
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, (str, dict))] if isinstance(content, list) else []
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts)


def _names() -> dict[str, str]:
    """Kind of medium -> the key of a line that lists such media: images, audios, series."""
    return {kind: modality.argument or kind for kind, modality in MODALITIES.items()}


def _with_plain_media(values: dict, folder: Path) -> dict:
    """A line whose media stand in lists, under the plural, located."""
    found = dict(values)
    for kind, name in _names().items():
        for key in dict.fromkeys((kind, name)):
            given = found.pop(key, None)
            if given is None:
                continue
            several = given if isinstance(given, list) and all(isinstance(g, (str, dict)) for g in given) else [given]
            found[name] = [_source(each, folder) for each in several]
    return found


def _located(content, folder: Path):
    """A message's content whose media are found relative to the file."""
    if not isinstance(content, list):
        return content
    return [_part(part, folder) if isinstance(part, dict) else part for part in content]


def _part(part: dict, folder: Path) -> dict:
    modality = next((each for each in MODALITIES.values() if part.get("type") in each.parts), None)
    if modality is None:
        return part
    keys = [key for key in (*modality.fields, "path", "url") if part.get(key) is not None]
    return part | {key: _source(part[key], folder) for key in keys}


def _source(source, folder: Path):
    if isinstance(source, dict) and source.get("bytes") is not None:  # a row of a data set: its path only names it
        return source
    if isinstance(source, dict):
        return source | {key: _source(source[key], folder) for key in ("url", "path") if source.get(key) is not None}
    if not isinstance(source, str) or source.startswith(ADDRESS):
        return source
    path = folder / Path(source).expanduser() if source.startswith("~/") else folder / source
    if reason := why_not_file(path):
        raise Phi4Error(f"{source!r}: {reason}")
    return str(path)


def as_json(line: Line) -> str:
    """What a line holds, for telling two apart."""
    return json.dumps([line.request.prompt, line.request.media, line.adapter], default=str, sort_keys=True)
