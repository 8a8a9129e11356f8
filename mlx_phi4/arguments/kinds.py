"""What an argument may be: its kind reads a value into its plain type, or refuses it by the argument's name.

numpy's scalars, and arrays of one number without a dimension, are the numbers they hold. A bool is never a number, and
a number never a bool.
"""

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from reprlib import Repr
from typing import Any

from ..errors import Phi4Error

_short = Repr()
for _limit, _most in {"level": 2, "list": 4, "tuple": 4, "dict": 4, "set": 4, "string": 60, "other": 60}.items():
    setattr(_short, f"max{_limit}", _most)


class Unfit(Exception):
    """A value is not of the kind; its text says what was expected."""


@dataclass(frozen=True)
class Kind:
    """What an argument may be: ``read`` gives a value in its plain type, or raises ``Unfit``."""

    read: Callable[[Any], Any]

    def __or__(self, other: None) -> "Kind":
        """This kind, or None."""
        return Kind(lambda value: None if value is None else self.read(value))


def shown(value: Any) -> str:
    """A value for a message: short and printable, whatever it is."""
    if isinstance(value, (str, bytes, bool, int, float, complex, list, tuple, dict, set, os.PathLike, type(None))):
        return _short.repr(value)
    if isinstance(value, Real):
        return str(value)
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype"):
        return f"an array of shape {tuple(shape)} and type {value.dtype}"
    return f"of type {type(value).__name__}"


def _plain(value: Any) -> Any:
    """The number in a numpy scalar, or in an array of any library that has no dimension."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _range(least, most, above) -> str:
    """A range in words; empty for none."""
    parts = [f"above {above:g}"] if above is not None else []
    if least is not None and most is not None:
        return f"between {least:g} and {most:g}"
    parts += [f"at least {least:g}"] if least is not None else []
    parts += [f"at most {most:g}"] if most is not None else []
    return " and ".join(parts)


def _listed(choices: tuple) -> str:
    return ", ".join(map(str, choices[:-1])) + f" or {choices[-1]}"


def integer(least: int | None = None, most: int | None = None, *, among: Iterable[int] = (), note: str = "") -> Kind:
    """A whole number: an int, but neither a bool nor a float such as 3.0."""
    choices = tuple(among)
    expected = _listed(choices) if choices else _range(least, most, None) + note

    def read(value):
        plain = _plain(value)
        try:
            number = operator.index(None if isinstance(plain, bool) else plain)
        except TypeError:  # also of arrays that hold several
            raise Unfit(f"a whole number{', ' * bool(expected)}{expected}") from None
        if (choices and number not in choices) or not _within(number, least, most, None):
            raise Unfit(expected)
        return number

    return Kind(read)


def real(
    least: float | None = None, most: float | None = None, *, above: float | None = None, infinite: bool = False
) -> Kind:
    """A number, never NaN; ``infinite`` where infinity means something, too."""
    expected = _range(least, most, above)

    def read(value):
        plain = _plain(value)
        if isinstance(plain, bool) or not isinstance(plain, Real):
            raise Unfit(f"a number{', ' * bool(expected)}{expected}")
        try:
            number = float(plain)
        except OverflowError:
            number = math.inf if plain > 0 else -math.inf
        if math.isnan(number) or (math.isinf(number) and not infinite) or not _within(number, least, most, above):
            raise Unfit(expected or ("a number" if infinite else "a finite number"))
        return number

    return Kind(read)


def _within(number, least, most, above) -> bool:
    return (least is None or number >= least) and (most is None or number <= most) and (above is None or number > above)


def _flag(value):
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise Unfit("True or False")
    return plain


def _text(value):
    if not isinstance(value, str):
        raise Unfit("a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # a half of a surrogate pair, as bytes that are no text become
        raise Unfit("valid Unicode (UTF-8)") from None
    return str(value)


def _prompt(value):
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise Unfit("a string or a list of messages (dictionaries)")
    return value


def _path(value):
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise Unfit("a path")
    if not os.fspath(value):
        raise Unfit("a path that is not empty")
    try:
        possible = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise Unfit("a path that a file can have")
    return value


def _function(value):
    if not callable(value):
        raise Unfit("a function")
    return value


def _figure(value):
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise Unfit("a number")
    return plain


figure = Kind(_figure)  # that was measured: it may be NaN
flag = Kind(_flag)
text = Kind(_text)
prompt = Kind(_prompt)
path = Kind(_path)
function = Kind(_function)


def choice(*names: str) -> Kind:
    """One of some strings."""

    def read(value):
        if not isinstance(value, str) or value not in names:
            raise Unfit(_listed(names))
        return str(value)

    return Kind(read)


def of_class(name: str, expected: str) -> Kind:
    """An object of a class, known by its name: importing the classes themselves would take a second."""

    def read(value):
        if not any(each.__name__ == name for each in type(value).__mro__):
            raise Unfit(expected)
        return value

    return Kind(read)


def several(kind: Kind, *, least: int = 0) -> Kind:
    """A list, or anything else that can be gone through once, of one kind -> tuple; a string or a dict is neither."""

    def read(value):
        if isinstance(value, (str, bytes, bytearray, Mapping)) or not hasattr(value, "__iter__"):
            raise Unfit("a list")
        try:
            found = tuple(value)
        except TypeError:  # an array without a dimension
            raise Unfit("a list") from None
        if len(found) < least:
            raise Unfit(f"a list of at least {least}")
        items = []
        for item in found:
            try:
                items.append(kind.read(item))
            except Unfit as error:
                raise Unfit(f"a list, each {error}") from None
        return tuple(items)

    return Kind(read)


def one_or_several(kind: Kind, *, least: int = 0) -> Kind:
    """One value of a kind, or a list of them -> tuple."""

    def read(value):
        try:
            return (kind.read(value),)
        except Unfit as error:
            if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
                raise Unfit(f"{error}, or a list of such") from None
        return several(kind, least=least).read(value)

    return Kind(read)


model = of_class("Phi4", "the model of the pair (model, processor) that load gives")
processor = of_class("Processor", "the processor of the pair (model, processor) that load gives")


def _model_or_name(value):
    if isinstance(value, (str, os.PathLike)):
        return path.read(value)
    try:
        return model.read(value)
    except Unfit:
        raise Unfit("a folder, a hub id, or a model that load gave") from None


model_or_name = Kind(_model_or_name)


def settled(kinds: Mapping[str, Kind], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their plain types. Raises Phi4Error that names every one that is not of its kind, all at once."""
    found, wrong = dict(values), []
    for name, kind in kinds.items():
        if name in found:
            try:
                found[name] = kind.read(found[name])
            except Unfit as error:
                wrong.append(f"{name} is {shown(found[name])}, expected {error}")
    if wrong:
        raise Phi4Error("; ".join(wrong))
    return found


def settle(instance: Any, kinds: Mapping[str, Kind]) -> None:
    """Bring the fields of a dataclass into their plain types, also of a frozen one. Raises Phi4Error."""
    for name, value in settled(kinds, {name: getattr(instance, name) for name in kinds}).items():
        object.__setattr__(instance, name, value)
