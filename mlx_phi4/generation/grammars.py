"""What an answer can be asked to keep to, typed once: a JSON schema, a regular expression, choices or a grammar."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..arguments.kinds import Kind, Unfit, settled, several
from ..arguments.kinds import text as string
from ..errors import Phi4Error
from .schemas import SchemaError, read_schema

MOST_BYTES_OF_GRAMMAR = 262_144  # of its text


@dataclass(frozen=True)
class Grammar:
    """The form of a whole answer.

    Args:
        kind: what ``text`` is.
        text: a JSON schema in JSON, a regular expression in the syntax of Rust's crate regex, or a grammar in
            llguidance's dialect of Lark; for "grammars" JSON of several as llguidance takes them, the first one meant.
        name: what messages call it: the option or field that it came from.
        thoughts: whether a ``<think>`` block may come first, for which the form does not count.
    """

    kind: Literal["json_schema", "regex", "lark", "grammars"]
    text: str
    name: str = field(default="grammar", compare=False)
    thoughts: bool = False

    def __post_init__(self):
        """Raises Phi4Error: the text is empty, or longer than ``MOST_BYTES_OF_GRAMMAR``."""
        size = len(self.text.encode("utf-8"))
        if not 0 < size <= MOST_BYTES_OF_GRAMMAR:
            raise Phi4Error(f"{self.name} has {size} bytes, expected 1 to {MOST_BYTES_OF_GRAMMAR}")


def read_grammar(option: str, value: Any, name: str) -> Grammar:
    """What one of the options in ``GRAMMAR_KINDS`` asks for, under another name. Raises Phi4Error."""
    return replace(settled({name: GRAMMAR_KINDS[option]}, {name: value})[name], name=name)


def _schema(value: Any) -> Grammar:
    if isinstance(value, Grammar):
        return value
    try:
        return Grammar("json_schema", read_schema(value, MOST_BYTES_OF_GRAMMAR), "schema")
    except SchemaError as error:
        raise Unfit(str(error)) from None


def _regex(value: Any) -> Grammar:
    return value if isinstance(value, Grammar) else Grammar("regex", string.read(value), "regex")


def _choice(value: Any) -> Grammar:
    return value if isinstance(value, Grammar) else one_of(several(string, least=1).read(value))


def _lark(value: Any) -> Grammar:
    return value if isinstance(value, Grammar) else Grammar("lark", string.read(value), "lark")


def one_of(texts: Iterable[str], name: str = "choice") -> Grammar:
    """One of these texts, as it stands."""
    spelled = " | ".join(json.dumps(each) for each in dict.fromkeys(texts))
    return Grammar("lark", f"start: CHOICE\nCHOICE: {spelled}", name)


# the options of which an answer may have one; each is a grammar once it was read
GRAMMAR_KINDS = {
    "schema": Kind(_schema) | None,
    "regex": Kind(_regex) | None,
    "choice": Kind(_choice) | None,
    "lark": Kind(_lark) | None,
}
