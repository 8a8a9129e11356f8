"""From strings and chat messages to token ids with slots where pictures and sound belong.

The published chat template is ``<|role|>content<|end|>`` per message, then ``<|assistant|>``; a
system message with tools puts ``<|tool|>JSON<|/tool|>`` before its ``<|end|>``. Calls and results of earlier turns are
written as in ``tools.py``. A model whose own template opens with a system text gets that, too (``chat_template.py``).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments.kinds import shown
from ..errors import PromptError
from ..modalities import MODALITIES
from ..sources import from_address, from_base64
from .chat_template import DefaultSystemText
from .tokenizer import END, WHITE_SPACE, SpecialToken, Tokenizer
from .tools import (
    RESULT_ROLES,
    TOOL,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_END,
    Tool,
    answered,
    declared,
    with_tools,
)

ROLES = ("system", "user", "assistant", "tool", "tool_response")


@dataclass(frozen=True)
class Slot:
    """A place for one picture or recording; ``source`` is set where a content part brought it."""

    kind: str
    source: Any = None


@dataclass(frozen=True)
class Prompt:
    """Token ids with slots between them, the media of each kind in order of their slots, and the tools declared.

    ``answers`` are the spans [start, stop) of parts that the assistant says, its end tokens included, where the
    conversation was asked for as it stands.
    """

    parts: list[int | Slot]
    media: dict[str, list]
    tools: tuple[Tool, ...] = ()
    answers: tuple[tuple[int, int], ...] = ()


def placeholder() -> re.Pattern:
    """``<|image_1|>`` and the like; the number is ignored, as published."""
    return re.compile(rf"<\|({'|'.join(map(re.escape, MODALITIES))})_\d+\|>")


def build_prompt(
    tokenizer: Tokenizer,
    prompt: str | list[dict],
    media: dict[str, list],
    *,
    system: str | None = None,
    raw: bool = False,
    tools: list | str | None = None,
    result_role: str = RESULT_ROLES[0],
    answered: bool = False,
) -> Prompt:
    """Apply the template, encode, and match media with placeholders in order of appearance.

    ``media`` are lists by kind. Without any placeholder they go in front of the first user message (of a raw string: in
    front of it all), pictures first, then recordings, as the table of modalities has them. ``tools`` as ``read_tools``
    takes them; ``result_role`` is whose turn results are that messages of role ``tool`` hold. Raises PromptError.

    ``answered`` takes messages as they stand, with no answer to come, and tells where the assistant's turns are.
    """
    in_front = [Slot(kind) for kind in MODALITIES for _ in media.get(kind, [])]
    known: tuple[Tool, ...] = ()
    if raw:
        pieces, front = _raw_parts(tokenizer, prompt, system, tools), 0
    else:
        messages = _messages(prompt, system)
        known = declared(messages, tools)
        pieces = _pieces(tokenizer, messages, known, result_role)
        pieces = pieces[:-1] if answered else pieces
        front = pieces.index(tokenizer.special["<|user|>"]) + 1
    slots = [piece for piece in pieces if isinstance(piece, Slot)]
    if not slots:
        pieces = pieces[:front] + in_front + pieces[front:]
    parts, starts = (pieces, range(len(pieces))) if raw else _encode(tokenizer, pieces)
    answers = _answers(tokenizer, pieces, starts) if answered and not raw else ()
    if not slots:
        return Prompt(parts, media, known, answers)
    if any(media.values()) and any(slot.source is not None for slot in slots):
        raise PromptError("media come both from content parts and from images= or audios=; use one of the two")
    found = {kind: _matched(kind, slots, media.get(kind, [])) for kind in MODALITIES}
    return Prompt(parts, found, known, answers)


def _answers(tokenizer: Tokenizer, pieces: list, starts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where in the parts each of the assistant's turns stands: from behind its role token through its end token."""
    begin, end = tokenizer.special["<|assistant|>"], tokenizer.special[END]
    found, begun = [], None
    for index, piece in enumerate(pieces):
        if piece is begin:
            begun = starts[index] + 1
        elif piece is end and begun is not None:
            found.append((begun, starts[index] + 1))
            begun = None
    return tuple(found)


def _matched(kind: str, slots: list[Slot], given: list) -> list:
    own = [slot for slot in slots if slot.kind == kind]
    sources = [slot.source for slot in own if slot.source is not None]
    media = sources or given
    if len(own) != len(media):
        noun = MODALITIES[kind].noun
        raise PromptError(
            f"the prompt has {len(own)} {noun} placeholder(s) for {len(media)} {noun}(s); each needs its own, or leave "
            "all out to have the media put in front"
        )
    return media


def _raw_parts(tokenizer: Tokenizer, prompt, system, tools) -> list[int | Slot]:
    """A string as it stands: encoded whole, as the published processor does."""
    if not isinstance(prompt, str) or system is not None or tools is not None:
        raise PromptError("raw takes one string as the prompt, without messages, a system prompt or tools")
    tokens = tokenizer.placeholders
    joined = placeholder().sub(lambda m: tokens[m[1]].content if m[1] in tokens else m[0], prompt)
    slots = {token.id: Slot(kind) for kind, token in tokens.items()}
    parts = [slots.get(id, id) for id in tokenizer.encode(joined)]
    if not parts:
        raise PromptError("the prompt is empty")
    return parts


def _messages(prompt, system: str | None) -> list[dict]:
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, list) and prompt and all(isinstance(m, dict) for m in prompt):
        messages = prompt
    else:
        raise PromptError(f"the prompt is {shown(prompt)}, it must be a string or a list of messages (dictionaries)")
    if system is not None:
        if any(m.get("role") == "system" for m in messages):
            raise PromptError("the messages hold a system message already; leave out system=")
        messages = [{"role": "system", "content": system}, *messages]
    for message in messages:
        if message.get("role") not in ROLES:
            raise PromptError(f"a message has role {message.get('role')!r}, expected {', '.join(ROLES)}")
    if not any(m["role"] == "user" for m in messages):
        raise PromptError("the messages hold no user message")
    return messages


def _with_default_system(messages: list[dict], own: DefaultSystemText) -> list[dict]:
    """Put the model's own system text, if it has one, where its chat template puts it."""
    if not own.alone:
        return messages
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": own.alone}, *messages]
    content = first.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [first | {"content": [{"type": "text", "text": own.before}, *parts]}, *messages[1:]]


def _pieces(
    tokenizer: Tokenizer, messages: list[dict], tools: tuple[Tool, ...], result_role: str = RESULT_ROLES[0]
) -> list[SpecialToken | str | Slot]:
    """The template's tokens, the contents' text (adjacent texts joined) and the slots."""
    pieces: list[SpecialToken | str | Slot] = []

    def add(piece: SpecialToken | str | Slot):
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        else:
            pieces.append(piece)

    def token(content: str) -> SpecialToken:
        if content not in tokenizer.special:
            raise PromptError(f"this model's tokenizer has no {content}")
        return tokenizer.special[content]

    if tools:
        token(TOOL_CALL), token(TOOL_CALL_END)  # a tokenizer without them could not tell a call
    messages = _with_default_system(list(answered(messages, result_role)), tokenizer.default_system)
    for message in with_tools(messages, tools):
        add(token(f"<|{message['role']}|>"))
        for piece in [message["result"]] if "result" in message else _content(message.get("content")):
            add(piece)
        inside = message.get("tools")
        if message["role"] == "system" and inside is not None:
            add(token(TOOL))
            add(inside if isinstance(inside, str) else json.dumps(inside))  # a list is empty here
            add(token(TOOL_END))
        if "calls" in message:
            add(token(TOOL_CALL))
            add(message["calls"])
            add(token(TOOL_CALL_END))
        add(token(END))
    add(token("<|assistant|>"))
    return pieces


def _encode(tokenizer: Tokenizer, pieces: list[SpecialToken | str | Slot]) -> tuple[list[int | Slot], list[int]]:
    """Encode text plainly, without the white space that a neighbouring token swallows.

    Returns the parts, and the first part of each piece.
    """

    def neighbour(i: int) -> SpecialToken | None:
        piece = pieces[i] if 0 <= i < len(pieces) else None
        return tokenizer.placeholders.get(piece.kind) if isinstance(piece, Slot) else piece

    parts: list[int | Slot] = []
    starts: list[int] = []
    for i, piece in enumerate(pieces):
        starts.append(len(parts))
        if isinstance(piece, str):
            before, after = neighbour(i - 1), neighbour(i + 1)
            piece = piece.lstrip(WHITE_SPACE) if before and before.rstrip else piece
            piece = piece.rstrip(WHITE_SPACE) if after and after.lstrip else piece
            parts += tokenizer.encode_plain(piece)
        else:
            parts.append(piece.id if isinstance(piece, SpecialToken) else piece)
    return parts, starts


def _content(content) -> list[str | Slot]:
    """A message's content: a string, or a list of OpenAI-style parts."""
    if content is None:
        return []
    if isinstance(content, str):
        return _split(content)
    if not isinstance(content, list):
        raise PromptError(f"a message's content is a {type(content).__name__}, expected a string")
    pieces: list[str | Slot] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str) or kind in ("text", "input_text"):
            text = part if isinstance(part, str) else part.get("text")
            if not isinstance(text, str):
                raise PromptError(f"a content part of type {kind} needs a string under 'text'")
            pieces += _split(text)
        elif modality := next((each for each in MODALITIES.values() if kind in each.parts), None):
            pieces.append(Slot(modality.kind, _source(part, *modality.fields)))
        else:
            expected = f"{', '.join(['text', *MODALITIES])} or video"
            raise PromptError(f"a content part has type {kind!r}, expected {expected}")
    return pieces


def _split(text: str) -> list[str | Slot]:
    """Cut text at the placeholders that stand in it."""
    pieces: list[str | Slot] = []
    end = 0
    for found in placeholder().finditer(text):
        pieces += [text[end : found.start()], Slot(found[1])]
        end = found.end()
    return [piece for piece in [*pieces, text[end:]] if piece != ""]


def _source(part: dict, *keys: str):
    """The picture or sound of a content part; None if it only marks a place."""
    value = next((part[key] for key in (*keys, "path", "url") if part.get(key) is not None), None)
    if isinstance(value, dict):
        if "data" in value:
            return from_base64(value["data"])
        value = value.get("url") or value.get("path") or value
    found = from_address(value) if isinstance(value, str) else value
    return str(found) if isinstance(found, Path) else found


def render_messages(tokenizer: Tokenizer, messages: list[dict], *, answer: bool = True) -> str:
    """Messages as one string that says the same to a raw prompt; with no ``answer`` to come, the last stays open.

    What is spelled in their contents counts there, special tokens included. Raises PromptError.
    """
    messages = _messages(messages, None)
    pieces = _pieces(tokenizer, messages, declared(messages, None))
    kept = pieces if answer else pieces[:-2]  # without the end of the last message and the assistant's turn
    spelled = (f"<|{piece.kind}_1|>" if isinstance(piece, Slot) else piece for piece in kept)
    return "".join(piece.content if isinstance(piece, SpecialToken) else piece for piece in spelled)
