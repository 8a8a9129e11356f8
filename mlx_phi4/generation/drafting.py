"""Which rows draft for the next step, how far, and what."""

from collections.abc import Iterable
from time import perf_counter

from ..errors import Phi4Error
from .draft_model import propose
from .sequence import Sequence
from .step_costs import StepCosts, Wanted, shares


def waits(decoding: list[Sequence], costs: StepCosts) -> bool:
    """Whether a row is likely to draft once its last token is read, for which the next step waits then."""
    if not any(sequence.speculation for sequence in decoding):
        return False
    wanted, errors = _wanted(decoding, unread=1)
    return bool(errors) or (bool(wanted) and any(shares(list(wanted.values()), len(decoding), costs)))


def drafts(decoding: list[Sequence], costs: StepCosts, vocabulary: int) -> dict[Sequence, list[int] | Exception]:
    """What rows of which all tokens were read draft, or what went wrong in a row's own draft."""
    if not any(sequence.speculation for sequence in decoding):
        return {}
    wanted, found = _wanted(decoding)
    counts = dict(zip(wanted, shares(list(wanted.values()), len(decoding), costs), strict=True)) if wanted else {}
    found |= _modelled(decoding, wanted, counts, costs)
    for sequence, count in counts.items():
        try:
            if count and wanted[sequence].model is None:
                found[sequence] = sequence.speculation.draft(count)
            if isinstance(found.get(sequence), list):
                found[sequence] = _checked(sequence, found[sequence], vocabulary)
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


def _modelled(
    decoding: list[Sequence], wanted: dict[Sequence, Wanted], counts: dict[Sequence, int], costs: StepCosts
) -> dict[Sequence, list[int] | Exception]:
    """The tokens of those for whom a draft model is to draft; others of its rows take in a part of their prompts."""
    late = [each for each in decoding if each.speculation and each.speculation.model and each.speculation.model.behind]
    asked = [sequence for sequence, count in counts.items() if count and wanted[sequence].model]
    try:
        for sequence in late:
            sequence.speculation.model.catch_up()
        if not asked:
            return {}
        began = perf_counter()
        made = propose([(wanted[sequence].model, counts[sequence]) for sequence in asked])
        costs.note_drafting(max(counts[sequence] for sequence in asked), perf_counter() - began)
        return dict(zip(asked, made, strict=True))
    except Exception as error:  # of a draft model: of those who asked it
        return dict.fromkeys([*late, *asked], error)


def _checked(sequence: Sequence, draft: list[int], vocabulary: int) -> list[int]:
    """As much of a draft as may come. Raises Phi4Error for what is no token."""
    if wrong := [token for token in draft if not 0 <= token < vocabulary]:
        raise Phi4Error(f"a draft proposes token {wrong[0]}, expected ids from 0 to {vocabulary - 1}")
    # an end token is chosen, if it is, behind what was verified before it
    draft = draft[: next((place for place, token in enumerate(draft) if token in sequence.stop_ids), None)]
    if sequence.constraint is not None and draft:
        draft = draft[: sequence.constraint.accepts(draft)]
    if not draft:
        sequence.speculation.judged(0, 0)
    return draft
