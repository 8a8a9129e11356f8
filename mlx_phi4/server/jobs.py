"""What the HTTP side hands to the engine thread, and what comes back."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import Phi4Error
from ..generation.options import GenerationOptions
from ..generation.sequence import Sequence
from ..generation.tool_choice import Form
from ..inputs.processor import Row
from ..inputs.tools import ToolCall


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
    "tool_calls", "length" or "error"; ``last`` says that no answer of the job is open any more. ``tool_calls`` are
    those that are whole with this token.
    """

    answer: int
    text: str = ""
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    finish_reason: str | None = None
    error: Exception | None = None
    last: bool = False
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(eq=False)
class Job:
    """One prompt and the answers to it.

    Args:
        row: from ``Processor.row``, made outside of the engine thread.
        answers: options of each answer.
        deliver: called in the engine thread with each ``Delivery``; must not block.
        salt: prompts reuse each other's keys and values only under the same salt.
        form: which tokens its answers may have, compiled outside of the engine thread.
    """

    row: Row
    answers: list[GenerationOptions]
    deliver: Callable[[Delivery], None]
    salt: str = ""
    form: Form | None = None
    cached_tokens: int = 0  # prompt tokens that were there already; known once the first answer began
    sequences: list[Sequence] = field(default_factory=list)
    open: int = 0  # answers that have not ended
    cancelled: bool = False
    submitted_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None

    def __post_init__(self):
        self.open = len(self.answers)

    @property
    def prompt_tokens(self) -> int:
        return len(self.row.ids)

    @property
    def completion_tokens(self) -> int:
        """Of all answers so far, end tokens included."""
        return sum(len(sequence.tokens) for sequence in self.sequences)

    @property
    def most_tokens(self) -> int:
        """Tokens of its longest row, if no answer ends before its limit."""
        return self.prompt_tokens + max(options.max_tokens for options in self.answers)

    def end(self, error: Exception) -> None:
        """Tell every answer that is open that there will be no more of it."""
        done = ("stop", "tool_calls", "length")
        ended = {index for index, sequence in enumerate(self.sequences) if sequence.finish_reason in done}
        left = [index for index in range(len(self.answers)) if index not in ended]
        self.open = 0
        for index in left:
            self.deliver(Delivery(index, finish_reason="error", error=error, last=index == left[-1]))
