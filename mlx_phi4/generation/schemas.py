"""JSON schemas: what is taken for one, and what is refused before anything is compiled.

The library that compiles them refuses the keywords that it does not know. Here is what it would take and never finish,
or answer with JSON that the schema does not describe.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from ..arguments.kinds import shown
from ..files import DEEPEST

DIGITS_OF_MULTIPLE = 5  # that are not zeros at an end, of multipleOf: the automaton has a state for each remainder

LARGEST_BOUND = 2.0**53  # beyond, not all whole numbers are floats
DIGITS_OF_BOUND = 12  # that count
LEAST_DIGIT = 15  # behind the point, of numbers next to 0; the least float has 324

# where a schema holds schemas
NAMED = ("properties", "patternProperties", "$defs", "definitions")
LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("additionalProperties", "items")


class SchemaError(Exception):
    """What was expected of a schema, and what it is."""


def read_schema(value: Any, most_bytes: int) -> str:
    """A schema, or a pydantic model, as JSON for the library.

    A pydantic model's objects have no properties but its fields, unless it says that others are allowed.

    Raises SchemaError: it is none, it is too long, it refers to itself without end, or it asks for what is not kept.
    """
    model = isinstance(value, type) and hasattr(value, "model_json_schema")
    if model:
        value = _of_model(value)
    if not isinstance(value, dict):
        raise SchemaError("a JSON schema (a dictionary) or a pydantic model")
    if not _shallow(value):
        raise SchemaError(f"at most {DEEPEST} levels of objects and lists")
    schema = json.loads(_text(value, most_bytes))
    _check(schema)
    for each in _schemas(schema):
        if model and "properties" in each:
            each.setdefault("additionalProperties", False)
        _include_bounds(each)
    return json.dumps(schema)


def _text(value: dict, most_bytes: int) -> str:
    text, length = [], 0
    try:
        # piece by piece: what is short in memory may be long in JSON, where a part stands in many places
        for piece in json.JSONEncoder(allow_nan=False).iterencode(value):
            text.append(piece)
            length += len(piece)
            if length > most_bytes:
                raise SchemaError(f"a schema of at most {most_bytes} bytes of JSON")
    except (TypeError, ValueError):
        raise SchemaError("a JSON schema: nothing that JSON has no form for") from None
    return "".join(text)


def _of_model(model: type) -> dict:
    try:
        return model.model_json_schema()
    except Exception as error:  # of pydantic: a field of a type that JSON has no form for
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SchemaError(f"a pydantic model that has a JSON schema ({reason})") from None


def _shallow(value: dict) -> bool:
    """Whether no more than ``DEEPEST`` levels of objects and lists are in each other, cycles of objects included."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in inner for each in values if isinstance(each, (dict, list, tuple))]
        if not level:
            return True
        # of what is there several times, also by way of itself, once is enough
        level = list({id(each): each for each in level}.values())
    return False


def _schemas(root: dict) -> Iterator[dict]:
    """A schema and all that it holds."""
    waiting: list[Any] = [root]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield schema
        for key in NAMED:
            waiting += schema[key].values() if isinstance(schema.get(key), dict) else ()
        for key in LISTED:
            waiting += schema[key] if isinstance(schema.get(key), list) else ()
        waiting += [schema[key] for key in SINGLE if key in schema]


def _check(root: dict) -> None:
    if "x-guidance" in root:
        raise SchemaError('a schema without "x-guidance"')
    for schema in _schemas(root):
        _check_multiple(schema.get("multipleOf"))
        _check_least(schema)
    _check_ends(root)


def _include_bounds(schema: dict) -> None:
    """Bounds of numbers that do not belong to their range, as the next numbers that do.

    The library takes some bounds for part of a range that excludes them, and knows decimals, not the numbers that they
    are once they are read: 0.99999999999999999 is not below 1.
    """
    if schema.get("type") == "integer":
        return
    for name, inner, toward in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        bound, other = schema.get(name), schema.get(inner)
        if type(bound) in (int, float) and abs(bound) < LARGEST_BOUND and type(other) in (int, float, type(None)):
            del schema[name]
            bound = float(Decimal(repr(bound)) + toward * _step(bound))
            schema[inner] = bound if other is None else toward * max(toward * bound, toward * other)


def _step(bound: float) -> Decimal:
    """A little of a number: the library's own reading of decimals may be off by its last bit."""
    return Decimal(1).scaleb(Decimal(repr(bound)).adjusted() - DIGITS_OF_BOUND if bound else -LEAST_DIGIT)


def _check_multiple(value: Any) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        digits = Decimal(repr(value)).normalize().as_tuple().digits
        if len(digits) > DIGITS_OF_MULTIPLE:
            raise SchemaError(f"multipleOf of at most {DIGITS_OF_MULTIPLE} digits; it is {shown(value)}")


def _check_least(schema: dict) -> None:
    """Other keys than those in ``properties`` may come twice, and would count once."""
    least, required = schema.get("minProperties"), schema.get("required")
    named = len(set(map(str, required))) if isinstance(required, list) else 0
    if isinstance(least, int) and least > named + 1:
        raise SchemaError(f"minProperties of at most one more than there are keys in required; it is {least}")


def _check_ends(root: dict) -> None:
    """Raises SchemaError where an answer would need itself inside of itself."""
    done: set[int] = set()
    for start in (schema for schema in _schemas(root) if id(schema) not in done):
        way: dict[int, str | None] = {}  # schemas that need each other in turn, and by which reference
        stack = [(start, None, iter(_needed(start, root)))]
        way[id(start)] = None
        while stack:
            schema, _, needed = stack[-1]
            following = next(needed, None)
            if following is None:
                stack.pop()
                del way[id(schema)]
                done.add(id(schema))
                continue
            inner, reference = following
            if id(inner) in way:
                told = reference or next(name for _, name, _ in reversed(stack) if name)
                raise SchemaError(f'a schema that ends: "$ref": {json.dumps(told)} needs itself inside of itself')
            if id(inner) not in done:
                way[id(inner)] = reference
                stack.append((inner, reference, iter(_needed(inner, root))))


def _needed(schema: dict, root: dict) -> list[tuple[dict, str | None]]:
    """The schemas that every answer to this one has a part of, and the reference that leads there."""
    found: list[tuple[Any, str | None]] = []
    reference = schema.get("$ref")
    if isinstance(reference, str):
        found.append((_target(reference, root), reference))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and len(schema[key]) == 1:
            found.append((schema[key][0], None))
    found += [(each, None) for each in schema["allOf"]] if isinstance(schema.get("allOf"), list) else []
    properties, required = schema.get("properties"), schema.get("required")
    if schema.get("type") == "object" and isinstance(properties, dict) and isinstance(required, list):
        found += [(properties[key], None) for key in required if isinstance(key, str) and key in properties]
    least = schema.get("minItems")
    if schema.get("type") == "array" and isinstance(least, int) and least > 0:
        first = schema["prefixItems"] if isinstance(schema.get("prefixItems"), list) else []
        found += [(each, None) for each in [*first, schema.get("items")][:least]]
    return [(each, name) for each, name in found if isinstance(each, dict)]


def _target(reference: str, root: dict) -> Any:
    """What a reference within the schema leads to; None for any other."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found: Any = root
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            return None
    return found
