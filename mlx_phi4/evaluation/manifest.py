"""Manifests of what is to be evaluated: JSON lines, each naming its media relative to the manifest."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ..errors import Phi4Error

Item = TypeVar("Item")


@dataclass(frozen=True)
class SpeechItem:
    """A recording and what is said in it, in ``language`` (a name or a code) where the line has one."""

    id: str
    audio: Path
    text: str
    language: str | None


@dataclass(frozen=True)
class QuestionItem:
    """A question, which may be about pictures or spoken (or both), and the answers that count as right."""

    id: str
    question: str
    images: tuple[Path, ...]
    audios: tuple[Path, ...]
    answers: tuple[str, ...]


def read_speech(manifest: str | Path, limit: int | None = None) -> list[SpeechItem]:
    """Lines with ``audio`` and ``text``, optionally ``id`` and ``language``; the first ``limit`` of them.

    Raises:
        Phi4Error: the manifest cannot be read or is empty, or a line is not such an object or names a missing file.
    """
    return _items(manifest, limit, _speech_item)


def read_questions(manifest: str | Path, limit: int | None = None) -> list[QuestionItem]:
    """Lines with ``question`` and ``answer``, optionally ``image``, ``audio`` and ``id``; the first ``limit`` of them.

    ``answer``, ``image`` and ``audio`` are one string or a list of them. A recording without ``question`` is the
    question.

    Raises:
        Phi4Error: as ``read_speech``.
    """
    return _items(manifest, limit, _question_item)


def _speech_item(line: "_Line") -> SpeechItem:
    (audio,) = line.paths("audio", least=1, most=1)
    return SpeechItem(line.id(str(audio)), audio, line.text("text"), line.text("language", None))


def _question_item(line: "_Line") -> QuestionItem:
    audios = line.paths("audio")
    question = line.text("question", "" if audios else ...)
    answers = tuple(line.texts("answer", least=1))
    return QuestionItem(line.id(f"line {line.number}"), question, line.paths("image"), audios, answers)


def _items(manifest: str | Path, limit: int | None, read: "Callable[[_Line], Item]") -> list[Item]:
    if limit is not None and limit < 1:
        raise Phi4Error(f"limit is {limit}, expected at least 1")
    items = [read(line) for line in islice(_lines(Path(manifest)), limit)]
    if not items:
        raise Phi4Error(f"{manifest}: is empty, expected a JSON object in each line")
    return items


def _lines(manifest: Path) -> "Iterator[_Line]":
    for number, where, values in read_objects(manifest):
        yield _Line(where, number, manifest.parent, values)


def read_objects(path: Path) -> Iterator[tuple[int, str, dict]]:
    """The objects of a file of JSON lines, each with its line's number, and with file and line in words.

    Empty lines are passed over. Raises Phi4Error.
    """
    try:
        with path.open("rb") as file:  # as bytes, so that a line that is not UTF-8 can be named
            for number, raw in enumerate(file, start=1):
                where = f"{path}, line {number}"
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    values = json.loads(text) if text else None
                except (ValueError, RecursionError) as error:
                    raise Phi4Error(f"{where}: is not JSON: {error}") from None
                if not text:
                    continue
                if not isinstance(values, dict):
                    raise Phi4Error(f"{where}: is {text:.40}, expected an object such as {{...}}")
                yield number, where, values
    except OSError as error:
        raise Phi4Error(f"{path}: {error.strerror or error}") from None


@dataclass(frozen=True)
class _Line:
    """One object, and where it stands."""

    where: str
    number: int
    folder: Path
    values: dict

    def id(self, default: str) -> str:
        given = self.values.get("id", default)
        return str(given) if isinstance(given, (str, int)) else default

    def text(self, key: str, default: str | None = ...) -> str | None:
        """One string; with a default, the key may be missing or null."""
        value = self.values.get(key)
        if value is None and default is not ...:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def texts(self, key: str, least: int = 0) -> list[str]:
        """One string or a list of them, at least ``least``."""
        value = self.values.get(key)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if len(found) < least or not all(isinstance(text, str) for text in found):
            raise self._wrong(key, "a string or a list of strings")
        return found

    def paths(self, key: str, least: int = 0, most: int | None = None) -> tuple[Path, ...]:
        """Files that exist, named as ``key`` or in its plural."""
        key = f"{key}s" if key not in self.values and f"{key}s" in self.values else key
        names = self.texts(key, least)
        if most is not None and len(names) > most:
            raise self._wrong(key, "one path")
        return tuple(self._path(key, name) for name in names)

    def _path(self, key: str, name: str) -> Path:
        path = self.folder / name
        try:
            reason = None if path.is_file() else "is a folder" if path.is_dir() else "no such file"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            raise Phi4Error(f"{self.where}: {key} {name!r}: {reason}")
        return path

    def _wrong(self, key: str, expected: str) -> Phi4Error:
        if self.values.get(key) is None:
            return Phi4Error(f"{self.where}: lacks {key!r}, expected {expected}")
        return Phi4Error(f"{self.where}: {key} is {self.values[key]!r:.60}, expected {expected}")
