"""What a step chose, read from the device row by row: of a draft as many tokens as were right, and the one after."""

from ..errors import Phi4Error
from .choices import Flight
from .sequence import Sequence, SequenceToken


def read_row(sequence: Sequence, indices: list[int], values: list[int], flight: Flight) -> list[SequenceToken]:
    """A row's tokens of a step: those of its choices in ``indices``, up to the first draft that was wrong."""
    found: list[SequenceToken] = []
    for index in indices:
        try:
            found.append(_token(sequence, index, values[index], flight))
        except Exception as error:  # text, sampler or constraint of this row
            found.append(sequence.fail(error))
            return found
        if found[-1].finish_reason or flight.choices[index].draft != values[index]:
            break
    drafted = len(indices) - 1
    if drafted:
        accepted = sum(flight.choices[index].draft == each.token for index, each in zip(indices, found, strict=False))
        sequence.drafted(drafted, accepted)
        if sequence.state is not None:
            _take_back(sequence, len(indices) - len(found), flight, indices[len(found) - 1])
    return found


def _token(sequence: Sequence, index: int, value: int, flight: Flight) -> SequenceToken:
    """One token, with its log-probabilities. Raises what went wrong with it."""
    sampled = flight.sampled
    if (error := sampled.errors.get(index)) is not None:
        raise error
    if index in flight.finite and not flight.finite[index].item():
        raise Phi4Error("the model gives NaN or infinite numbers: its weights are damaged")
    logprob, top = sampled.logprobs.get(index), sampled.top.get(index)
    pairs = None if logprob is None else ()
    if top is not None:
        pairs = tuple(zip(top[0].tolist(), top[1].tolist(), strict=True))
    return sequence.take(value, None if logprob is None else logprob.item(), pairs)


def _take_back(sequence: Sequence, wrong: int, flight: Flight, index: int) -> None:
    """Drafted tokens that were wrong leave the caches."""
    sequence.state.trim(wrong)
    sequence.chosen = len(sequence.tokens)
    sequence.pending = flight.sampled.tokens, index
    if wrong:
        sequence.sampler.rewind(sequence.known)
