"""What the HTTP side hands to the engine thread, and what comes back."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import Phi4Error
from ..generation.options import GenerationOptions
from ..generation.sequence import Sequence
from ..inputs.processor import Row


class ServerError(Phi4Error):
    """A request that is answered with an error: HTTP status, and seconds after which to try again, if any."""

    def __init__(self, message: str, status: int = 400, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class Delivery:
    """One more token of one of a job's answers, or what ended it.

    ``text`` is the piece that is certain, ``token`` its id (None where an error ended the answer), ``logprob`` and
    ``top_logprobs`` (id, log-probability), best first, where they were asked for. ``finish_reason`` is None, "stop",
    "length" or "error"; ``last`` says that no answer of the job is open any more.
    """

    answer: int
    text: str = ""
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    finish_reason: str | None = None
    error: Exception | None = None
    last: bool = False


@dataclass(eq=False)
class Job:
    """One prompt and the answers to it.

    Args:
        row: from ``Processor.row``, made outside of the engine thread.
        answers: options of each answer.
        deliver: called in the engine thread with each ``Delivery``; must not block.
        salt: prompts reuse each other's keys and values only under the same salt.
    """

    row: Row
    answers: list[GenerationOptions]
    deliver: Callable[[Delivery], None]
    salt: str = ""
    cached_tokens: int = 0  # prompt tokens that were there already; known once the first answer began
    sequences: list[Sequence] = field(default_factory=list)
    cancelled: bool = False

    @property
    def prompt_tokens(self) -> int:
        return len(self.row.ids)

    @property
    def completion_tokens(self) -> int:
        """Of all answers so far, end tokens included."""
        return sum(len(sequence.tokens) for sequence in self.sequences)
