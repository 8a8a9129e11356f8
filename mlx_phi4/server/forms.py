"""``response_format``: OpenAI's forms of an answer, and those that llguidance has besides."""

from typing import Any

from ..errors import Phi4Error
from ..generation.grammars import Grammar, read_grammar
from . import fields
from .errors import RequestError

OPTION_OF = {"json_schema": "schema", "json_object": "schema", "regex": "regex", "choice": "choice", "lark": "lark"}
_JSON_SCHEMA = {"name": fields.text, "description": fields.text, "schema": fields.mapping, "strict": fields.boolean}


def response_format(value: Any, name: str) -> dict[str, Grammar]:
    """The option of ``GenerationOptions`` that it asks for; none for text. Raises RequestError.

    A form other than OpenAI's stands under its own name: ``{"type": "regex", "regex": "[0-9]+"}``.
    """
    given = fields.mapping(value, name)
    kind = fields.required(given, "type", f"{name}.")
    if kind == "text":
        fields.read_fields({"type": fields.text}, given, f"{name}.")
        return {}
    if not isinstance(kind, str) or kind not in OPTION_OF:
        raise fields.wrong(f"{name}.type", kind, f"text, {', '.join(OPTION_OF)}")
    where = f"{name}.{kind}"
    if kind == "json_object":
        fields.read_fields({"type": fields.text}, given, f"{name}.")
        asked: Any = {"type": "object"}
    else:
        anything = {"type": fields.text, kind: lambda value, name: value}
        asked = fields.required(fields.read_fields(anything, given, f"{name}."), kind, f"{name}.")
    if kind == "json_schema":
        found = fields.read_fields(_JSON_SCHEMA, fields.mapping(asked, where), f"{where}.")
        fields.required(found, "name", f"{where}.")
        asked, where = fields.required(found, "schema", f"{where}."), f"{where}.schema"
    option = OPTION_OF[kind]
    try:
        return {option: read_grammar(option, asked, where)}
    except Phi4Error as error:
        raise RequestError(str(error), param=where, code="invalid_value") from None
