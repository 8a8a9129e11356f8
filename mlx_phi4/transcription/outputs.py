"""Which recordings are meant, where their texts go, and writing those complete or not at all."""

import os
import stat
import string
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ..errors import MediaError, Phi4Error
from ..files import expanded, write_whole
from ..sources import refuse_address
from .chunking import readable
from .records import Standing, noted, standing
from .transcript import FORMATS, Transcript

STANDARD_INPUT = "-"
INPUT_NAME = "audio"  # {filename} of what comes from standard input
OUTPUT_TEMPLATE = "{filename}"
FIELDS = ("filename", "parent", "date", "index")


@dataclass(frozen=True)
class Found:
    """A recording: its path (None: standard input) and the folder of its outputs within the output folder."""

    path: Path | None
    folder: Path = Path()

    @property
    def name(self) -> str:
        """For messages."""
        return "standard input" if self.path is None else readable(self.path)

    @property
    def is_file(self) -> bool:
        """Whether it can be read more than once, as what comes through a pipe cannot."""
        return self.path is not None and self.path.is_file()

    @property
    def size(self) -> int:
        """Bytes; 0 where that is not known."""
        try:
            return self.path.stat().st_size if self.path is not None else 0
        except OSError:
            return 0


@dataclass(frozen=True)
class Job:
    """A recording and its outputs by format; none where the text goes to standard output."""

    found: Found
    outputs: dict[str, Path]
    made_by: dict | None = None  # all that the outputs depend on, see ``records.job_of``

    def look(self) -> dict[Path, Standing]:
        """What there is at the outputs' places now."""
        return {path: standing(path, self.made_by) for path in self.outputs.values()}


def find_recordings(given: Iterable[str | Path], recursive: bool = False) -> tuple[list[Found], list[str]]:
    """The recordings that files, folders and "-" stand for, each once, and a line for each argument that has none."""
    found: dict[Path | None, Found] = {}
    problems: list[str] = []
    for argument in given:
        if argument == STANDARD_INPUT:
            found.setdefault(None, Found(None))
            continue
        try:
            refuse_address(str(argument))
            path = expanded(argument)
            if not path.exists():
                problems.append(f"{readable(argument)}: no such file or folder")
                continue
            inside = _in_folder(path, recursive, problems) if path.is_dir() else [Found(path)]
            for each in inside:
                found.setdefault(each.path.resolve(), each)
        except MediaError as error:
            problems.append(str(error))
        except (OSError, RuntimeError) as error:
            problems.append(f"{argument}: {getattr(error, 'strerror', None) or error}")
    return list(found.values()), problems


def _in_folder(folder: Path, recursive: bool, problems: list[str]) -> list[Found]:
    """Recordings by their suffix, sorted; hidden files are left out, as macOS puts one beside each on other disks."""
    from ..audio.reader import MEDIA_SUFFIXES

    unreadable: list[OSError] = []
    found = []
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        here = Path(parent)
        found += [
            Found(here / name, here.relative_to(folder))
            for name in sorted(names)
            if Path(name).suffix.lower() in MEDIA_SUFFIXES and not name.startswith(".") and not _is_stream(here / name)
        ]
    problems += [f"{error.filename}: {error.strerror}" for error in unreadable]
    if not found and not unreadable:
        advice = "" if recursive else "; --recursive looks into its folders, too"
        problems.append(f"{folder}: holds no recordings{advice}")
    return found


def _is_stream(path: Path) -> bool:
    """Whether it is a pipe or a device, which a folder may hold and which would be waited for without end."""
    with suppress(OSError):  # whoever reads it says what is wrong with it
        return not stat.S_ISREG(path.stat().st_mode)
    return False


def check_formats(format: str, max_line_width: int | None = None) -> tuple[str, ...]:
    """The formats that are asked for. Raises Phi4Error."""
    if format != "all" and format not in FORMATS:
        raise Phi4Error(f"format is {format!r}, expected {', '.join(FORMATS)} or all")
    formats = FORMATS if format == "all" else (format,)
    if max_line_width is not None and not {"srt", "vtt"} & set(formats):
        raise Phi4Error("--max-line-width goes with the formats srt, vtt and all")
    if max_line_width is not None and max_line_width < 1:
        raise Phi4Error(f"max_line_width is {max_line_width}, expected at least 1")
    return formats


def plan_outputs(
    found: list[Found], formats: tuple[str, ...], output_dir: Path, template: str = OUTPUT_TEMPLATE
) -> list[Job]:
    """A job for each recording. Raises Phi4Error if an output would meet another, or a recording."""
    jobs = [
        Job(each, _outputs(each, formats, output_dir, template, index)) for index, each in enumerate(found, start=1)
    ]
    taken = {_identity(each.path): each for each in found if each.path is not None}
    for job in jobs:
        for path in job.outputs.values():
            if path.is_dir():
                raise Phi4Error(f"{path} is a folder; choose another --output-dir or --output-template")
            other = taken.setdefault(_identity(path), job.found)
            if other.path is not None and _identity(other.path) == _identity(path):
                raise Phi4Error(f"{path} is a recording and would be overwritten; choose another --output-dir")
            if other is not job.found:
                raise Phi4Error(
                    f"{other.name} and {job.found.name} would both be written to {path}; "
                    "--output-template '{parent}-{filename}' or '{filename}-{index}' tells them apart"
                )
    return jobs


def _outputs(found: Found, formats: tuple[str, ...], output_dir: Path, template: str, index: int) -> dict[str, Path]:
    fields = {"filename": INPUT_NAME, "parent": "", "date": date.today().isoformat(), "index": str(index)}
    if found.path is not None:
        fields |= {"filename": found.path.stem, "parent": found.path.absolute().parent.name}
    try:
        asked = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
        name = template.format(**fields) if asked <= set(FIELDS) else None
    except (ValueError, LookupError):
        name = None
    if not name or name.endswith("/"):
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise Phi4Error(f"output_template is {template!r}, expected a file name with {known} in it")
    return {format: output_dir / found.folder / f"{name}.{format}" for format in formats}


def _identity(path: Path) -> str:
    """Equal for paths that name the same file; on macOS case does not tell two files apart."""
    name = os.path.realpath(path)  # Path.resolve raises for links in a circle
    return name.casefold() if sys.platform == "darwin" else name


def prepare_folder(folder: Path) -> None:
    """Make the output folder, and find out before any work whether it can be written to. Raises Phi4Error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise Phi4Error(f"{folder} is not a folder; choose another --output-dir") from None
    except OSError as error:
        raise Phi4Error(f"{folder}: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Phi4Error(f"{folder}: no permission to write there")


def write_outputs(transcript: Transcript, job: Job, max_line_width: int | None = None) -> None:
    """Write all formats beside their places, then rename them, and note what made them. Nothing half-written is left.

    Raises:
        Phi4Error: the system refuses, as on a full disk.
    """
    try:
        with ExitStack() as all_written:
            for format, path in job.outputs.items():
                text = transcript.render(format, max_line_width)
                path.parent.mkdir(parents=True, exist_ok=True)
                all_written.enter_context(noted(path, job.made_by, text))
                partial = all_written.enter_context(write_whole(path))
                partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Phi4Error(f"{error.strerror or error}: {error.filename2 or path}") from None
