"""Reading JSON objects, and writing files that are there whole or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigError


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises ConfigError with the file's name."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, expected an object")
    return raw


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path`` to write to, renamed to it when the block ends and removed if the block fails.

    Nested, several files appear together once all are written. What the system refuses is raised as it is: OSError.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:  # Ctrl-C, too, leaves nothing behind
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
