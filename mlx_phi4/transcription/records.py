"""What made an output: a small record beside it, so that work is neither done twice nor taken for other work.

The record of ``out/talk.txt`` is ``out/.mlx_phi4/talk.txt.json``: the recording, the model and the settings of the job,
and what the output held when it was written.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.hub import CHECKSUMS, is_built_in, local_folder
from ..converter.first_use import folder_state
from ..errors import Phi4Error
from ..files import expanded, read_json, taken, write_whole

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from .transcriber import Transcriber

FOLDER = ".mlx_phi4"
RECORD_FORMAT = 1
SAMPLE = 65536  # bytes at the start, in the middle and at the end of a recording
WITHOUT_EFFECT = ("batch_size",)  # on the text


class Standing(Enum):
    """What there is at an output's place."""

    NOTHING = "nothing"
    SAME = "what this very job wrote"
    EDITED = "what this very job wrote, and somebody changed"
    OTHER = "what another job wrote"
    FOREIGN = "what this program is not known to have written"


def run_of(
    transcriber: "Transcriber", model: Any, revision: str | None, width: int | None, adapters: dict | None = None
) -> dict | None:
    """All that the texts of a run depend on, as JSON; None for a model without a name, which cannot be known again."""
    weights = _weights(model)
    if weights is None:
        return None
    question, chunking = transcriber.question, transcriber.chunking
    decoding = {key: value for key, value in asdict(transcriber.decoding).items() if key not in WITHOUT_EFFECT}
    if decoding.pop("adapter") is not None:
        decoding |= {"adapter": transcriber.decoding.adapter, "adapters": _adapters(adapters or {})}
    asked = {"task": question.task, "prompt": question.prompt, "language": question.language}
    run = {"record": RECORD_FORMAT, "model": weights, "revision": revision, "width": width}
    return json.loads(
        json.dumps(run | asked | asdict(chunking) | decoding)
    )  # with lists for tuples, as it will be read


def job_of(run: dict | None, source: Path | None) -> dict | None:
    """A run's work on one recording; None for one that cannot be known again, as what comes through a pipe."""
    recording = _recording(source)
    return None if run is None or recording is None else run | {"recording": recording}


def standing(output: Path, job: dict | None) -> Standing:
    """What lies at an output's place, seen from a job."""
    if not taken(output):
        return Standing.NOTHING
    record = _read(output)
    if record is None:
        return Standing.FOREIGN
    mine = job is not None and record.get("job") == job
    if _digest(output) == record.get("output"):
        return Standing.SAME if mine else Standing.OTHER
    return Standing.EDITED if mine else Standing.FOREIGN


@contextmanager
def noted(output: Path, job: dict | None, text: str) -> Iterator[None]:
    """Note what made an output once the block that writes it has ended. Phi4Error, or OSError as it comes."""
    path = record_of(output)
    try:
        path.parent.mkdir(exist_ok=True)
    except FileExistsError:
        raise Phi4Error(f"{path.parent} is not a folder; the outputs' records belong there") from None
    with write_whole(path) as partial:
        content = {"job": job, "output": hashlib.sha256(text.encode("utf-8")).hexdigest()}
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        yield


def record_of(output: Path) -> Path:
    """Where the record of an output is."""
    name = os.fsencode(output.name)
    return output.parent / FOLDER / f"{output.name if len(name) < 200 else hashlib.sha256(name).hexdigest()}.json"


def _read(output: Path) -> dict | None:
    with suppress(ValueError):  # ConfigError among them: none there, or spoiled
        return read_json(record_of(output))
    return None


def _digest(output: Path) -> str | None:
    with suppress(OSError):
        return hashlib.sha256(output.read_bytes()).hexdigest()
    return None


def _recording(source: Path | None) -> list | None:
    """Size, time and some bytes of a file, wherever it lies now."""
    if source is None or not source.is_file():
        return None
    with suppress(OSError), source.open("rb") as file:
        found = os.fstat(file.fileno())
        digest = hashlib.sha256()
        for start in (0, found.st_size // 2, max(found.st_size - SAMPLE, 0)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
        return [found.st_size, found.st_mtime_ns, digest.hexdigest()]
    return None


def _adapters(adapters: dict) -> dict:
    """Adapters by their names, each with what stands for it, and of a folder the state of its files."""
    paths = {name: expanded(folder) for name, folder in adapters.items()}
    return {name: [str(path), folder_state(path) if path.is_dir() else None] for name, path in paths.items()}


def _weights(model: Any) -> list | None:
    """A model by its name, and where it is a folder, by the state of its files."""
    if not isinstance(model, (str, Path)):
        return None
    folder = local_folder(model)
    if is_built_in(folder):
        return [str(model), _digest(folder / CHECKSUMS)]
    return [str(folder.resolve()), folder_state(folder)] if folder.is_dir() else [str(model), None]
