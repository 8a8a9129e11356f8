"""Paths as people give them, reading JSON objects, and writing files that are there whole or not at all."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigError

OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")
LONGEST_NAME = 255  # bytes, as all usual file systems have it


def expanded(path: str | Path) -> Path:
    """A path with ``~`` expanded; a name that only looks like a user's, as ~draft.png, is one in the current folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path).absolute()


def why_not_file(path: Path) -> str | None:
    """Why there is nothing to read at a path, in a few words; None if there is. Pipes are files that are read once."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:  # a name that is too long, a NUL in it
        return getattr(error, "strerror", None) or str(error)
    return "is a folder" if stat.S_ISDIR(kind) else None


def taken(path: Path) -> bool:
    """Whether writing there would cost something: a file that is not empty. Devices and pipes only pass things on."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # whoever writes says what is wrong with it
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


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

    Nested, several files appear together once all are written. A link stays, and what it names is replaced; a device or
    a pipe is written to as it is. What the system refuses is raised as it is: OSError.
    """
    if _passes_on(path):
        yield path
        return
    path = Path(os.path.realpath(path))
    if path.is_symlink():  # links in a circle lead nowhere
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    partial = path.with_name(_partial_name(path.name))
    try:
        yield partial
        with suppress(FileNotFoundError):
            partial.chmod(stat.S_IMODE(path.stat().st_mode))  # what was private stays so
        partial.replace(path)
    except BaseException:  # Ctrl-C, too, leaves nothing behind
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _passes_on(path: Path) -> bool:
    """Whether it is a device, a pipe, or a name for an open file as /dev/stdout is."""
    if str(path.absolute()).startswith(OPEN_FILES):
        return True
    with suppress(OSError):
        kind = path.stat().st_mode
        return not stat.S_ISREG(kind) and not stat.S_ISDIR(kind)
    return False


def _partial_name(name: str) -> str:
    hidden = f".{name}.partial"
    if len(os.fsencode(hidden)) <= LONGEST_NAME or len(os.fsencode(name)) > LONGEST_NAME:
        return hidden
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.partial"
