"""What an answer can be asked to keep to, typed once: a JSON schema, a regular expression, choices or a grammar."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..arguments.kinds import Kind, Unfit, several, text

# between two parts of JSON: a space or two, or a line break and its indentation; a model that has nothing to say
# writes white space without end wherever it may
WHITE_SPACE_IN_JSON = r" {1,2}|\r?\n[ \t]{0,32}"


def _schema(value: Any) -> dict:
    """A JSON schema as a dictionary, also a pydantic model's."""
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        value = value.model_json_schema()
    if not isinstance(value, dict):
        raise Unfit("a JSON schema (a dictionary) or a pydantic model")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise Unfit("a JSON schema: only what JSON can hold") from None
    return value


GRAMMAR_KINDS = {
    "schema": Kind(_schema) | None,
    "regex": text | None,
    "choice": several(text, least=1) | None,
    "lark": text | None,
}  # the options of which an answer may have one


@dataclass(frozen=True)
class Grammar:
    """The form of a whole answer: ``text`` is JSON for "json_schema", llguidance's dialect of Lark for "lark", and for
    "grammars" JSON of several grammars, as the library has them.

    ``name`` is what messages call it: the option or field that it came from.
    """

    kind: Literal["json_schema", "regex", "lark", "grammars"]
    text: str
    name: str = "grammar"

    @classmethod
    def of(cls, option: str, value: Any) -> "Grammar":
        """What one of the options in ``GRAMMAR_KINDS`` asks for."""
        makers = {"schema": cls.json_schema, "regex": cls.regex, "choice": cls.choice, "lark": cls.lark}
        return makers[option](value)

    @classmethod
    def json_schema(cls, schema: dict[str, Any], name: str = "schema") -> "Grammar":
        """JSON that a schema describes."""
        return cls("json_schema", json.dumps(schema), name)

    @classmethod
    def regex(cls, pattern: str, name: str = "regex") -> "Grammar":
        """Text that a regular expression of the Rust crate regex matches as a whole."""
        return cls("regex", pattern, name)

    @classmethod
    def choice(cls, texts: Iterable[str], name: str = "choice") -> "Grammar":
        """One of these texts."""
        return cls("lark", "start: " + " | ".join(map(json.dumps, texts)), name)

    @classmethod
    def lark(cls, text: str, name: str = "lark") -> "Grammar":
        """What a grammar derives from its rule ``start``."""
        return cls("lark", text, name)
