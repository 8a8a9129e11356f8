"""Paths as people give them, JSON that others wrote, and writing files that are there whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigError

MOST_JSON = 4_000_000  # bytes; the largest published index and header have 0.3 MB
MOST_DIGITS = 40  # of an integer; Python refuses to convert some thousands, and none is of use
DEEPEST = 64  # levels of nesting; published configurations have 6
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
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


def read_text(path: Path, most: int = MOST_JSON) -> str:
    """The text of a file of at most so many bytes. Raises ConfigError with the file's name.

    A pipe or a device in a file's place might never end: only regular files are read.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path} {'is not a file' if path.exists() else 'is missing'}")
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ConfigError(f"{path} has more than {most / 1e6:g} MB, which no such file needs")
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def read_json(path: Path, most: int = MOST_JSON) -> dict:
    """Read a JSON object that can be written again. Raises ConfigError with the file's name."""
    text = read_text(path, most)
    try:
        return parse_object(text)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def parse_object(text: str) -> dict:
    """A JSON object whose keys differ, whose nesting and numbers have bounds and whose strings are Unicode.

    Raises ValueError.
    """
    try:
        raw = json.loads(text, object_pairs_hook=_distinct, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    if not isinstance(raw, dict):
        raise ValueError(f"it holds a {type(raw).__name__}, expected an object")
    _check_depth(raw)
    if _HALF_PAIR.search(text):
        try:
            json.dumps(raw, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it holds half a surrogate pair, which is no text") from None
    return raw


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _distinct(pairs: list[tuple[str, object]]) -> dict:
    """An object's members; two readers would take different ones of two with the same name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"it names {twice!r} twice")
    return found


def _check_depth(raw: dict) -> None:
    level: list = [raw]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


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


@contextmanager
def write_whole_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` to write into, renamed to it when the block ends and removed if the block fails.

    There must be nothing at ``path``, or an empty folder. What the system refuses is raised as it is: OSError.
    """
    partial = path.with_name(_partial_name(path.name))
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
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
