"""Parameters as tables: the name, the type and the range of each, and a sentence for whatever does not fit."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from .errors import RequestError
from .wire import type_name

Check = Callable[[Any, str], Any]  # (value, name) -> value; raises RequestError
SAFE_INTEGER = 2**53  # integers up to here are the same in every JSON parser


def wrong(name: str, value: Any, expected: str) -> RequestError:
    """A value that does not fit."""
    shown = f"{value!r:.60}" if isinstance(value, (str, int, float, bool)) else f"of type {type_name(value)}"
    return RequestError(f"{name} is {shown}, expected {expected}", param=name, code="invalid_value")


def unsupported(name: str, why: str = "is not supported by this server") -> RequestError:
    """A parameter of the protocol that has no meaning here."""
    return RequestError(f"{name} {why}", param=name, code="unsupported_parameter")


def boolean(value: Any, name: str) -> bool:
    """true or false. Raises RequestError."""
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def text(value: Any, name: str) -> str:
    """A string. Raises RequestError."""
    if not isinstance(value, str):
        raise wrong(name, value, "a string")
    return value


def mapping(value: Any, name: str) -> dict:
    """An object. Raises RequestError."""
    if not isinstance(value, dict):
        raise wrong(name, value, "an object")
    return value


def listed(value: Any, name: str) -> list:
    """An array. Raises RequestError."""
    if not isinstance(value, list):
        raise wrong(name, value, "an array")
    return value


def integer(least: int, most: int = SAFE_INTEGER) -> Check:
    """An integer in a range."""
    expected = f"an integer from {least} to {most}" if most < SAFE_INTEGER else f"an integer of at least {least}"

    def check(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wrong(name, value, expected)
        return value

    return check


def number(least: float, most: float, *, above: bool = False) -> Check:
    """A number in a range, ``above`` its least."""

    def check(value: Any, name: str) -> float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
        if not fits or (above and value == least):
            raise wrong(name, value, f"a number {'above' if above else 'from'} {least:g} {'up ' * above}to {most:g}")
        return value

    return check


def one_of(*allowed: Any) -> Check:
    """One of a few values; any other that the protocol may have is not supported."""
    shown = " or ".join(repr(value) if isinstance(value, str) else str(value).lower() for value in allowed)

    def check(value: Any, name: str) -> Any:
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise wrong(name, value, f"{shown}: this server supports nothing else")
        return value

    return check


def empty(value: Any, name: str) -> None:
    """A list or object that asks for nothing."""
    if value not in ([], {}):
        raise unsupported(name)


def refused(value: Any, name: str) -> None:
    """A parameter that cannot be had, whatever its value."""
    raise unsupported(name)


def stops(value: Any, name: str) -> list[str]:
    """One text that ends the answer, or up to four."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or len(given) > 4 or not all(isinstance(each, str) and each for each in given):
        raise wrong(name, value, "a string that is not empty, or up to 4 of them")
    return given


def biases(value: Any, name: str) -> dict[int, float]:
    """Token ids, as JSON spells them, to what is added to their logits."""
    found = {}
    for token, bias in mapping(value, name).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise wrong(name, token, "an object of token ids")
        found[int(token)] = number(-100, 100)(bias, f"{name}.{token}")
    return found


def prediction(value: Any, name: str) -> str:
    """OpenAI's static content: a text, or parts of one. Raises RequestError."""
    table = {"type": one_of("content"), "content": lambda content, path: content}
    found = read_fields(table, mapping(value, name), f"{name}.")
    required(found, "type", f"{name}.")
    content, path = required(found, "content", f"{name}."), f"{name}.content"
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(path, content, "a string or an array of text parts")
    parts = [
        read_fields({"type": one_of("text"), "text": text}, mapping(part, f"{path}[{number}]"), f"{path}[{number}].")
        for number, part in enumerate(content)
    ]
    return "".join(required(part, "text", f"{path}[{number}].") for number, part in enumerate(parts))


def read_fields(table: Mapping[str, Check], given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values that are there, each checked; null is absent. Raises RequestError, also for an unknown name."""
    found = {}
    for name, value in given.items():
        path = f"{where}{name}"
        if name not in table:
            close = get_close_matches(name[:40], table, n=1)
            hint = f"; is {close[0]} meant?" if close and table[close[0]] is not refused else ""
            raise RequestError(
                f"{path[:120]} is not a parameter that this server knows{hint}",
                param=path[:120],
                code="unknown_parameter",
            )
        if value is not None:
            found[name] = table[name](value, path)
    return found


def required(found: Mapping[str, Any], name: str, where: str = "") -> Any:
    """A value that has to be there."""
    if name not in found:
        raise RequestError(f"{where}{name} is missing", param=f"{where}{name}", code="missing_parameter")
    return found[name]
