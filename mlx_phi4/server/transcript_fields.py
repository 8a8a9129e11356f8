"""What requests about recordings have in common, however they come."""

import math

from ..transcription.tasks import LANGUAGES, language_name
from . import fields


def language(value: object, name: str) -> str:
    """A language by code or name -> its name. Raises RequestError."""
    found = language_name(fields.text(value, name))
    if found not in LANGUAGES.values():
        raise fields.wrong(name, value, ", ".join(LANGUAGES))
    return found


def finite(figure: float | None) -> float | None:
    """A figure as JSON may have it."""
    return figure if figure is not None and math.isfinite(figure) else None
