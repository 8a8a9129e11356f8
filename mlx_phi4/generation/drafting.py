"""Which rows draft for the next step, how far, and what."""

from collections.abc import Iterable
from time import perf_counter

from ..errors import Phi4Error
from .draft_model import DraftRow, propose
from .sequence import Sequence
from .step_costs import StepCosts, Wanted, shares


def waits(decoding: list[Sequence], costs: StepCosts) -> bool:
    """Whether a row is likely to draft once its last token is read, for which the next step waits then."""
    if not any(sequence.speculation for sequence in decoding):
        return False
    wanted, errors = _wanted(decoding, unread=1)
    return bool(errors) or any(shares(list(wanted.values()), len(decoding), costs))


def drafts(decoding: list[Sequence], costs: StepCosts, vocabulary: int) -> dict[Sequence, list[int] | Exception]:
    """What rows of which all tokens were read draft, or what went wrong in a row's own draft."""
    drafting = [sequence for sequence in decoding if sequence.speculation is not None]
    if not drafting:
        return {}
    wanted, found = _wanted(drafting)
    counts = dict(zip(wanted, shares(list(wanted.values()), len(decoding), costs), strict=True))
    made = _modelled({sequence: wanted[sequence].model for sequence in wanted}, counts, costs)
    for sequence, count in counts.items():
        if not count:
            continue
        try:
            draft = made[sequence] if sequence in made else sequence.speculation.draft(count)
            found[sequence] = _checked(sequence, draft, vocabulary)
        except Exception as error:
            found[sequence] = error
    return found


def _wanted(sequences: Iterable[Sequence], unread: int = 0) -> tuple[dict[Sequence, Wanted], dict[Sequence, Exception]]:
    wanted, errors = {}, {}
    for sequence in sequences:
        if sequence.speculation is None or sequence.unread != unread or sequence.full or sequence.crosses:
            continue
        try:
            room = min(sequence.options.max_tokens - sequence.chosen - 1, sequence.room)
            if room > 0 and (found := sequence.speculation.wanted(room, unread)) is not None:
                wanted[sequence] = found
        except Exception as error:
            errors[sequence] = error
    return wanted, errors


def _modelled(rows: dict[Sequence, DraftRow | None], counts: dict[Sequence, int], costs: StepCosts) -> dict:
    """The tokens of those for whom a draft model is to draft."""
    asked = {sequence: (row, counts[sequence]) for sequence, row in rows.items() if row and counts[sequence]}
    if not asked:
        return {}
    began = perf_counter()
    made = dict(zip(asked, propose(list(asked.values())), strict=True))
    costs.note_drafting(max(count for _, count in asked.values()), perf_counter() - began)
    return made


def _checked(sequence: Sequence, draft: list[int], vocabulary: int) -> list[int]:
    """As much of a draft as may come. Raises Phi4Error for what is no token."""
    if wrong := [token for token in draft if not 0 <= token < vocabulary]:
        raise Phi4Error(f"a draft proposes token {wrong[0]}, expected ids from 0 to {vocabulary - 1}")
    # an end token is chosen, if it is, behind what was verified before it
    draft = draft[: next((place for place, token in enumerate(draft) if token in sequence.stop_ids), None)]
    if sequence.constraint is not None and draft:
        draft = draft[: sequence.constraint.accepts(draft)]
    if not draft:
        sequence.speculation.judged(1, 0)
    return draft
