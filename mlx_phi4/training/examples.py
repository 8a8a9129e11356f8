"""Lines as the model sees them: rows of ids, and which of their tokens are to be learnt.

What is learnt is told by the prompt builder, which knows where the assistant's turns stand; nothing is tokenized twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import Phi4Error
from ..inputs.processor import Processor, Row
from ..inputs.tokenizer import END_OF_TEXT
from ..modalities import Medium, adapter_of, modality_of
from .lines import Line, Preference

TEXT_SLOT = "text"  # the slot of rows without media


@dataclass(frozen=True)
class Place:
    """A medium without its content: ``tokens`` and ``key`` as of a ``Medium``, and what its projector asks of it."""

    kind: str
    tokens: int
    key: str
    outline: Any


@dataclass(frozen=True)
class Example:
    """A row with its targets.

    Args:
        line: where it comes from.
        row: what goes in, up to the token before the last target; media are ``Place``, the adapter is the slot's.
        positions: places (N,) int32 in the row whose next token is a target, ascending.
        targets: these next tokens (N,) int32.
        slot: which adapter it is an example for: the line's own, its mode's, or "text".
        pair: of an answer that was preferred or rejected: the pair's number, else None.
    """

    line: Line
    row: Row
    positions: np.ndarray
    targets: np.ndarray
    slot: str
    pair: int | None = None

    @property
    def length(self) -> int:
        """Tokens that go in."""
        return len(self.row.ids)


class TooLong(Phi4Error):
    """A row that would have to be cut within an answer."""


def slot_of(line: Line, mode: str) -> str:
    """The slot of a line: the adapter that it names, that of its media, or "text"."""
    return line.adapter or adapter_of(mode) or (TEXT_SLOT if mode == TEXT_SLOT else mode.split("-")[0])


def make_example(line: Line, processor: Processor, longest: int, mask_prompt: bool = True) -> Example:
    """A line as a row; without ``mask_prompt`` all but media is learnt.

    Raises Phi4Error with the line; ``TooLong`` if more than ``longest`` tokens are needed.
    """
    try:
        row, spans = processor.conversation(line.request)
    except Phi4Error as error:
        raise type(error)(f"{line.where}: {error}") from None
    ids = np.array(row.ids, np.int32)
    if line.request.raw:
        end = processor.tokenizer.special.get(END_OF_TEXT)
        if end is not None and ids[-1] != end.id:
            ids = np.append(ids, np.int32(end.id))
        ids = ids[: longest + 1]  # plain text may be cut anywhere
        learnt = np.arange(1, len(ids))
    else:
        kept = [span for turn, span in enumerate(spans) if turn not in line.unlearnt]
        learnt = np.concatenate([np.arange(*span) for span in kept])
        if not mask_prompt:
            media = [np.arange(first, first + item.tokens) for first, item in row.media]
            learnt = np.setdiff1d(np.arange(1, len(ids)), np.concatenate([[], *media]))
    if not len(learnt):
        raise Phi4Error(f"{line.where}: holds no token to learn")
    last = int(learnt[-1])
    if last > longest:
        raise TooLong(f"{line.where}: its answer ends at token {last + 1}, beyond max_seq_length {longest}")
    places = tuple((first, _place(item)) for first, item in row.media if first < last)
    slot = slot_of(line, row.mode)
    row = replace(row, ids=tuple(ids[:last].tolist()), media=places, adapter=slot)
    return Example(line, row, (learnt - 1).astype(np.int32), ids[learnt], slot)


def _place(item: Medium) -> Place:
    modality = modality_of(item)
    return Place(modality.kind, item.tokens, item.key, modality.outline(item))


def make_pair(pair: Preference, number: int, make: Callable[[Line], Example]) -> tuple[Example, Example]:
    """Both answers of a preference, only the last turn of each learnt. Raises as ``make_example``."""
    made = []
    for line in (pair.chosen, pair.rejected):
        turns = sum(message.get("role") == "assistant" for message in line.request.prompt)
        made.append(make(replace(line, unlearnt=frozenset(range(turns - 1)))))
    chosen, rejected = made
    if chosen.row.ids == rejected.row.ids and np.array_equal(chosen.targets, rejected.targets):
        raise Phi4Error(f"{pair.chosen.where}: chosen and rejected are the same answer")
    return replace(chosen, pair=number), replace(rejected, pair=number)
