"""Data sets of examples: a folder of JSON lines, one such file, or a data set of the hub."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import Phi4Error
from ..files import expanded
from ..inputs.processor import Processor
from .examples import Example, TooLong, make_example, make_pair
from .lines import Line, Preference, as_json, read_line, read_lines

SETS = ("train", "valid", "test")
HUB_SETS = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}
MOST_HELD_OUT = 200  # examples
NAMED_AT_MOST = 5  # lines in a message
ANSWERS, PREFERENCES = "answers", "preferences"  # what is learnt from


@dataclass
class DataSet:
    """Examples of one set; a pair's two answers stand next to each other.

    ``skipped`` names the lines whose answers are too long, ``digest`` tells two sets apart.
    """

    name: str
    examples: list[Example] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    digest: str = ""

    def __len__(self):
        return len(self.units)

    @property
    def units(self) -> list[tuple[Example, ...]]:
        """What is drawn as one: an example, or the two of a pair."""
        if self.examples and self.examples[0].pair is not None:
            return list(zip(self.examples[::2], self.examples[1::2], strict=True))
        return [(each,) for each in self.examples]


@dataclass
class Data:
    """What a run learns from; ``notes`` are told to the person."""

    train: DataSet
    valid: DataSet
    test: DataSet
    notes: list[str] = field(default_factory=list)

    @property
    def objective(self) -> str:
        """Answers, or preferences between answers."""
        first = next((each for part in (self.train, self.test, self.valid) for each in part.examples), None)
        return PREFERENCES if first is not None and first.pair is not None else ANSWERS


def load_data(
    source: str | Path,
    processor: Processor,
    *,
    wanted: tuple[str, ...] = ("train", "valid"),
    longest: int = 2048,
    refuse_long: bool = False,
    held_out: float = 0.05,
    mask_prompt: bool = True,
    seed: int = 0,
) -> Data:
    """Read and check everything, media included.

    Args:
        source: a folder with train.jsonl, valid.jsonl and test.jsonl, of which only those ``wanted`` are read; a file
            that stands for train.jsonl; or a data set of the hub.
        longest: tokens of a row.
        refuse_long: raise for an answer that does not fit, instead of leaving the line out.
        mask_prompt: only the assistant's turns are targets, else prompts, too.
        held_out: the share of train.jsonl that serves where there is no valid.jsonl; 0 for none.
        seed: which examples these are.

    Raises:
        Phi4Error: with file and line.
    """
    lines = {name: found for name in wanted if (found := _lines(source, name)) is not None}
    if wanted and wanted[0] not in lines:
        raise Phi4Error(f"{source}: has no {wanted[0]}.jsonl")
    sets = {name: DataSet(name) for name in SETS}
    kinds: dict[type, str] = {}
    for name, found in lines.items():
        make = partial(make_example, processor=processor, longest=longest, mask_prompt=mask_prompt)
        _fill(sets[name], found, make, refuse_long, kinds)
        if not sets[name].examples:
            why = f"all of its {len(sets[name].skipped)} lines are too long" if sets[name].skipped else "is empty"
            raise Phi4Error(f"{source}: {name}.jsonl {why}")
    data = Data(**sets)
    data.notes += [_told(part, longest) for part in sets.values() if part.skipped]
    if "valid" in wanted and "valid" not in lines and held_out:
        _hold_out(data, held_out, seed)
    return data


def _fill(part: DataSet, lines: Iterator, make: Callable[[Line], Example], refuse: bool, kinds: dict) -> None:
    digest, number = hashlib.sha256(), 0
    for line in lines:
        kinds.setdefault(type(line), _where(line))
        if len(kinds) > 1:
            raise Phi4Error(f"{_where(line)}: preferences and plain answers are not learnt together")
        try:
            found = make_pair(line, number, make) if isinstance(line, Preference) else (make(line),)
        except TooLong as error:
            if refuse:
                raise
            part.skipped.append(str(error).partition(":")[0])
            continue
        number += 1
        part.examples += found
        for example in found:
            digest.update(f"{as_json(example.line)}{[place.key for _, place in example.row.media]}".encode())
    part.digest = digest.hexdigest()[:16]


def _where(line: Line | Preference) -> str:
    return line.where if isinstance(line, Line) else line.chosen.where


def _told(part: DataSet, longest: int) -> str:
    shown = ", ".join(where.rpartition(", ")[2] for where in part.skipped[:NAMED_AT_MOST])
    more = f" and {len(part.skipped) - NAMED_AT_MOST} more" if len(part.skipped) > NAMED_AT_MOST else ""
    return (
        f"{part.name}.jsonl: {len(part.skipped)} left out, whose answers do not fit into {longest} tokens: "
        f"{shown}{more}"
    )


def _hold_out(data: Data, share: float, seed: int) -> None:
    """Move a part of the training set to where valid.jsonl would be, and say so."""
    units = data.train.units
    count = min(max(round(share * len(units)), 1), MOST_HELD_OUT)
    if len(units) < 2:
        data.notes.append("valid.jsonl is missing and train.jsonl has one line: nothing is validated")
        return
    chosen = set(np.random.default_rng([seed, len(units)]).permutation(len(units))[:count].tolist())
    data.valid.examples = [each for index in sorted(chosen) for each in units[index]]
    data.train.examples = [each for index, unit in enumerate(units) if index not in chosen for each in unit]
    data.valid.digest = f"{count} of {data.train.digest}"
    data.notes.append(f"valid.jsonl is missing: {count} of the {len(units)} lines of train.jsonl are held out for it")


def _lines(source: str | Path, name: str) -> Iterator[Line | Preference] | None:
    """The lines of one set; None if there is no such set."""
    path = expanded(source)
    if path.is_file():
        return read_lines(path) if name == "train" else None
    if path.is_dir():
        file = path / f"{name}.jsonl"
        return read_lines(file) if file.exists() else None
    if "/" not in str(source) or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise Phi4Error(f"{source}: no such folder")
    return _hub_lines(str(source), name)


def _hub_lines(source: str, name: str) -> Iterator[Line | Preference] | None:
    try:
        import datasets
    except ModuleNotFoundError:
        raise Phi4Error(f"{source}: no such folder, and data sets of the hub need: pip install datasets") from None
    try:
        found = datasets.load_dataset(source)
    except Exception as error:  # the library's own kinds are many
        raise Phi4Error(f"{source}: cannot be had: {error}") from None
    split = next((each for each in HUB_SETS[name] if each in found), None)
    return None if split is None else _hub_rows(found[split], f"{source}, {split}", datasets)


def _hub_rows(split, where: str, datasets) -> Iterator[Line | Preference]:
    for name, feature in split.features.items():  # as bytes, which our own readers read
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            split = split.cast_column(name, type(feature)(decode=False))
    for number, values in enumerate(split, start=1):
        yield read_line({k: v for k, v in values.items() if v is not None}, f"{where} row {number}", Path())
