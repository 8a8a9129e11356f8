"""Schemas in words that the library keeps exactly: what it would read otherwise than the standard is said differently.

Where it cannot be said exactly, less is let come, never more; where even that is not possible, the schema is refused.
"""

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

LARGEST_WHOLE = 2**53  # beyond, not all whole numbers are floats, which the library's numbers are
LARGEST_BOUND = 2**63 - 1024  # the last float that its whole numbers hold
DIGITS_OF_BOUND = 12  # that count
LEAST_DIGIT = 15  # behind the point, of numbers next to 0; the least float has 324
# a negated class, or one that begins with NUL; the first alternative steps over what is escaped
CLASS = re.compile(r"\\[\\\[]|\[\^(?P<dashes>-*)(?P<bracket>\]?)|\[(?P<nul>\\x00|\\u0000|\\[xu]\{0+\}|\x00)-")


class SchemaError(Exception):
    """What was expected of a schema, and what it is."""


def adapt(schema: dict) -> None:
    """Rewrite a schema, not the schemas in it. Raises SchemaError for what cannot be kept."""
    _name_items(schema)
    _separate(schema)
    for key in ("const", "enum"):
        for number in _numbers(schema.get(key)):
            if not _is_float(number):
                raise SchemaError(f"whole numbers in {key} of at most 2^53, or such as a float holds; it has {number}")
    _include_bounds(schema)
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = _exact(schema["pattern"])
    if isinstance(schema.get("patternProperties"), dict):
        schema["patternProperties"] = {_exact(key): each for key, each in schema["patternProperties"].items()}


def _name_items(schema: dict) -> None:
    """The items of a tuple by the names of draft 2020-12: beside the older ones the library drops them."""
    older = isinstance(schema.get("items"), list)
    if "prefixItems" in schema and (older or "additionalItems" in schema):
        raise SchemaError("a schema with prefixItems and items, which additionalItems and a list of items were before")
    if older:
        schema["prefixItems"] = schema.pop("items")
    if "additionalItems" in schema:
        rest = schema.pop("additionalItems")
        if older:
            schema["items"] = rest


def _separate(schema: dict) -> None:
    """oneOf of values that differ is anyOf; the library sees that of texts alone."""
    parts = schema.get("oneOf")
    if not isinstance(parts, list) or "anyOf" in schema or not all(isinstance(each, dict) for each in parts):
        return
    seen: set[tuple] = set()
    for part in parts:
        values = [part["const"]] if "const" in part else part.get("enum")
        if not isinstance(values, list) or not all(isinstance(each, (str, int, float, type(None))) for each in values):
            return
        own = {(isinstance(each, bool), each) for each in values}
        if own & seen:
            return
        seen |= own
    schema["anyOf"] = schema.pop("oneOf")


def _numbers(value: Any) -> Iterator[int]:
    """Whole numbers in a value, at any depth."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)


def _is_float(number: int) -> bool:
    """Whether a whole number stays what it is where it is read as a float and written again."""
    try:
        return abs(number) <= LARGEST_WHOLE or Decimal(repr(float(number))) == number
    except OverflowError:
        return False


def _include_bounds(schema: dict) -> None:
    """Bounds of numbers as the next ones that belong to the range, and that the library's numbers hold.

    It takes some bounds for part of a range that excludes them, and knows decimals, not the numbers that they are once
    they are read: 0.99999999999999999 is not below 1, and 2^53 + 1 is 2^53.
    """
    whole = schema.get("type") == "integer"
    for excluded, name, toward in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        bound, other = schema.get(excluded), schema.get(name)
        if type(other) not in (int, float, type(None)):
            continue
        if _is_number(bound) and not (whole and abs(bound) < LARGEST_WHOLE):
            del schema[excluded]
            bound = math.floor(toward * bound) * toward + toward if whole else _next(bound, toward)
            other = bound if other is None else toward * max(toward * bound, toward * other)
        if other is not None:
            schema[name] = _held(other, toward, name)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _next(bound: float, toward: int) -> float:
    """A number beyond by a little: the library's own reading of decimals may be off by its last bit."""
    exact = Decimal(repr(bound))
    return float(exact + toward * Decimal(1).scaleb(exact.adjusted() - DIGITS_OF_BOUND if bound else -LEAST_DIGIT))


def _held(bound: float, toward: int, name: str) -> float:
    """A bound, or the next one within the range that a float holds."""
    if toward * bound > LARGEST_BOUND:
        raise SchemaError(f"a {name} between -2^63 and 2^63; it is {bound}")
    if abs(bound) <= LARGEST_WHOLE:
        return bound
    bound = toward * max(toward * bound, -LARGEST_BOUND)
    found = float(bound)
    return int(found if toward * found >= toward * bound else math.nextafter(found, toward * math.inf))


def _exact(pattern: str) -> str:
    """A pattern whose classes are kept: without U+0001, where they have all control characters.

    The library lets quotation marks and backslashes come wherever a class has all of those, also in ``[^"]``.
    """

    def without(found: re.Match) -> str:
        if found["dashes"] is not None:
            return "[^\\x01" + "\\-" * len(found["dashes"]) + ("\\]" if found["bracket"] else "")
        return f"[{found['nul']}\\x02-" if found["nul"] else found[0]

    return CLASS.sub(without, pattern)
