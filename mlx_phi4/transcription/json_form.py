"""Transcripts as JSON: what may stand in one, and numbers that JSON knows."""

import json
import math
from dataclasses import fields

from ..errors import Phi4Error

_KINDS = {
    "start": float | int,
    "end": float | int,
    "text": str,
    "translation": str | None,
    "avg_logprob": float | int | None,
    "compression_ratio": float | int | None,
    "temperature": float | int,
    "no_speech": bool,
    "flags": list,
    "tokens": list | None,
    "duration": float | int,
    "language": str | None,
    "task": str,
    "source": str | None,
    "warnings": list,
    "segments": list,
}  # of the values in JSON


def dumps(values: dict) -> str:
    """An object whose numbers that are not finite are null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False)


def refuse_constant(name: str):
    """For ``json.loads``: NaN and Infinity are refused."""
    raise ValueError(f"{name} is no number of JSON")


def checked(kind: type, values, needed: tuple[str, ...], where: str) -> dict:
    """The fields of a dataclass among the keys of a JSON object, each of the right type. Raises Phi4Error."""
    if not isinstance(values, dict):
        raise Phi4Error(f"{where} is {type(values).__name__}, expected an object")
    known = {each.name: values[each.name] for each in fields(kind) if each.name in values}
    if missing := [name for name in needed if name not in known]:
        raise Phi4Error(f"{where} lacks {', '.join(missing)}")
    for name, value in known.items():
        if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and _KINDS[name] is not bool):
            raise Phi4Error(f"{where}: {name} is {value!r:.60}")
    return known
