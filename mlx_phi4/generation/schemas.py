"""JSON schemas: what is taken for one, and what is refused before anything is compiled.

The library that compiles them refuses the keywords that it does not know. Here is what it would take and never finish,
or answer with JSON that the schema does not describe.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from ..arguments.kinds import shown
from ..files import DEEPEST
from .schema_repairs import SchemaError, adapt

DIGITS_OF_MULTIPLE = 5  # that are not zeros at an end, of multipleOf: the automaton has a state for each remainder

# where a schema holds schemas
NAMED = ("properties", "patternProperties", "$defs", "definitions")
LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("additionalProperties", "items")


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
    if "x-guidance" in schema:
        raise SchemaError('a schema without "x-guidance"')
    for each in _schemas(schema):
        if model and "properties" in each:
            each.setdefault("additionalProperties", False)
        adapt(each)  # before its parts are looked at, which may stand elsewhere then
        _check_multiple(each.get("multipleOf"))
        _check_least(each)
    _check_ends(schema)
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
    """A schema and all that it holds or refers to, each once."""
    waiting: list[Any] = [root]
    seen: set[int] = set()
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        for key in NAMED:
            waiting += schema[key].values() if isinstance(schema.get(key), dict) else ()
        for key in LISTED:
            waiting += schema[key] if isinstance(schema.get(key), list) else ()
        waiting += [schema[key] for key in SINGLE if key in schema]
        if isinstance(schema.get("$ref"), str):
            waiting.append(_target(schema["$ref"], root))


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


Part = tuple[Any, str | None]  # a schema, and the reference that leads there


def _check_ends(root: dict) -> None:
    """Raises SchemaError where an answer would need itself inside of itself.

    What needs nothing ends; what ends helps those that need it, or one of several, until nothing more is found.
    """
    schemas = list(_schemas(root))
    named = {f"#{each['$anchor']}": each for each in schemas if isinstance(each.get("$anchor"), str)}
    needed = {id(each): _needed(each, root, named) for each in schemas}
    left = {number: len(groups) for number, groups in needed.items()}
    helped: dict[int, list[list]] = defaultdict(list)  # by a schema: whose need it meets, and whether that was met
    for number, groups in needed.items():
        for group in groups:
            need = [number, False]
            for part, _ in group:
                helped[id(part)].append(need)
    ended = [number for number, count in left.items() if not count]
    while ended:
        for need in helped[ended.pop()]:
            if not need[1]:
                need[1] = True
                left[need[0]] -= 1
                if not left[need[0]]:
                    ended.append(need[0])
    number, way = next((number for number, count in left.items() if count), None), {}
    if number is None:
        return
    while number not in way:
        part, reference = next(group for group in needed[number] if all(left[id(part)] for part, _ in group))[0]
        way[number] = reference
        number = id(part)
    circle = list(way)[list(way).index(number) :]
    told = json.dumps(next(way[each] for each in circle if way[each]))
    raise SchemaError(f'a schema that ends: "$ref": {told} needs itself inside of itself')


def _needed(schema: dict, root: dict, named: dict[str, dict]) -> list[list[Part]]:
    """Of each of these groups of schemas every answer to this one has a part that answers to one of them."""
    found: list[list[Part]] = []
    reference = schema.get("$ref")
    if isinstance(reference, str):
        found.append([(named.get(reference, _target(reference, root)), reference)])
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            found.append([(each, None) for each in schema[key]])
    found += [[(each, None)] for each in schema["allOf"]] if isinstance(schema.get("allOf"), list) else []
    if schema.get("type") in ("object", ["object"]):
        found += [[(each, None) for each in group] for group in _members(schema)]
    least = schema.get("minItems")
    if schema.get("type") in ("array", ["array"]) and isinstance(least, int) and least > 0:
        first = schema["prefixItems"] if isinstance(schema.get("prefixItems"), list) else []
        found += [[(each, None)] for each in [*first, schema.get("items")][:least]]
    found = [[each for each in group if each[0] is not False] for group in found]
    # what is no schema with parts of its own, or leads out of this one, is another's affair
    return [group for group in found if group and all(isinstance(part, dict) for part, _ in group)]


def _members(schema: dict) -> Iterator[list]:
    """The schemas of which each member that an object must have has one."""
    properties, patterns = (
        found if isinstance(found := schema.get(key), dict) else {} for key in ("properties", "patternProperties")
    )
    others = [*patterns.values(), schema.get("additionalProperties")]
    required = schema["required"] if isinstance(schema.get("required"), list) else []
    for key in required:
        yield [properties[key]] if isinstance(key, str) and key in properties else others
    least = schema.get("minProperties")
    if not required and isinstance(least, int) and least > 0:
        yield [*properties.values(), *others]


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
