"""What a tool's ``parameters`` may be: a JSON schema of an object, or Phi's own table of names.

The published example has ``{"city": {"description": ..., "type": "str", "default": "London"}}``: names of parameters,
types as Python spells them, and a default where an argument may be left out.
"""

import re
from typing import Any

from ..arguments.kinds import shown
from ..errors import PromptError

JSON_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")  # of JSON schema
PYTHON_TYPES = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "tuple": "array",
    "set": "array", "dict": "object",
}  # fmt: skip
DEEPEST_SCHEMA = 64  # levels
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_TABLES = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_PYTHON_TYPE = re.compile(r"(?:(\w+)(?:\[(.*)\])?)\s*(,\s*optional)?", re.DOTALL)


def is_schema(parameters: dict) -> bool:
    """Whether they are a JSON schema; else they are Phi's table, in which a parameter may have any name."""
    kind = parameters.get("type")
    if isinstance(kind, list) or (isinstance(kind, str) and kind not in PYTHON_TYPES):
        return True
    properties = parameters.get("properties")
    if isinstance(properties, dict) and not isinstance(properties.get("type"), str):
        return True
    named = ("required", "$ref", "additionalProperties", *_LISTS)
    return any(isinstance(parameters.get(key), (list, str, bool)) for key in named)


def check_parameters(parameters: Any, where: str) -> None:
    """Raises PromptError for parameters that say nothing of arguments; None and {} are a tool without any."""
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise PromptError(f"{where} is {shown(parameters)}, expected a JSON schema of an object")
    if is_schema(parameters):
        if parameters.get("type", "object") != "object":
            raise PromptError(f"{where}.type is {shown(parameters['type'])}, expected 'object': arguments have names")
        _check(parameters, where)
        return
    for name, entry in parameters.items():
        kind = entry.get("type", "str") if isinstance(entry, dict) else entry
        known = isinstance(kind, str) and (isinstance(entry, dict) or _type(kind) is not None)
        if not isinstance(name, str) or not known:
            raise PromptError(
                f"{where} is no JSON schema: {shown(name)} is {shown(entry)}, expected an object with a type"
            )


def argument_schema(parameters: dict | None) -> dict:
    """The JSON schema of an object for parameters that were checked; it has no members beside those that are named."""
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not is_schema(parameters):
        entries = {name: entry if isinstance(entry, dict) else {"type": entry} for name, entry in parameters.items()}
        required = [name for name, entry in entries.items() if not _may_lack(entry)]
        properties = {name: _property(entry) for name, entry in entries.items()}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    closed = "properties" in parameters and not any(key in parameters for key in ("$ref", "patternProperties", *_LISTS))
    return {"type": "object"} | ({"additionalProperties": False} if closed else {}) | parameters


def _may_lack(entry: dict) -> bool:
    kind = entry.get("type", "str")
    return "default" in entry or "optional" in kind.lower()


def _property(entry: dict) -> dict:
    found = _type(entry.get("type", "str")) or {}
    return found | ({"enum": entry["enum"]} if isinstance(entry.get("enum"), list) and entry["enum"] else {})


def _type(kind: str) -> dict | None:
    """The schema of a type as Python spells it ("List[int]", "str, optional"); None for one that is not known."""
    matched = _PYTHON_TYPE.fullmatch(kind.strip())
    if matched is None:
        return None
    name, inner = matched[1].lower(), matched[2]
    if name == "optional" and inner:
        return _type(inner)
    if name == "any":
        return {}
    plain = PYTHON_TYPES.get(name, name)
    if plain not in JSON_TYPES:
        return None
    items = _type(inner) if plain == "array" and inner else None
    return {"type": plain} | ({"items": items} if items else {})


def _check(schema: Any, where: str, depth: int = 0) -> None:
    """The forms of the commonest keywords; whoever makes a grammar of it knows the rest. Raises PromptError."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict) or depth > DEEPEST_SCHEMA:
        found = "nested too deep" if isinstance(schema, dict) else f"{shown(schema)}, which is no JSON schema"
        raise PromptError(f"{where[:200]} is {found}")
    kinds = schema.get("type", [])
    if not all(
        isinstance(kind, str) and kind in JSON_TYPES for kind in (kinds if isinstance(kinds, list) else [kinds])
    ):
        raise PromptError(f"{where}.type is {shown(kinds)}, expected {', '.join(JSON_TYPES)}")
    for key in schema.keys() & {"required", "enum", *_TABLES, *_LISTS}:
        if not isinstance(schema[key], dict if key in _TABLES else list):
            expected = "an object" if key in _TABLES else "a list"
            raise PromptError(f"{where}.{key} is {shown(schema[key])}, expected {expected}")
    if not all(isinstance(name, str) for name in schema.get("required", [])):
        raise PromptError(f"{where}.required is {shown(schema['required'])}, expected a list of strings")
    for key in _TABLES:
        for name, inner in schema.get(key, {}).items():
            _check(inner, f"{where}.{key}.{name}", depth + 1)
    for key in _LISTS:
        for index, inner in enumerate(schema.get(key, [])):
            _check(inner, f"{where}.{key}[{index}]", depth + 1)
    for key in _SCHEMAS:
        if key in schema and not (key == "items" and isinstance(schema[key], list)):
            _check(schema[key], f"{where}.{key}", depth + 1)
