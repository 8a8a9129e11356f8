"""What a caller gets for each token, or for a whole answer."""

from dataclasses import dataclass

import mlx.core as mx

from ..inputs.tools import ToolCall
from .sequence import SequenceToken


@dataclass
class GenerationResponse:
    """One generated token of a stream, or one whole answer of a batch.

    ``text`` is the new piece (possibly empty) or the whole answer, ``token`` the last id, ``tokens`` all ids (batches
    only), ``mode`` one of text, vision, speech, vision-speech, ``*_tps`` tokens per second, ``peak_memory`` gigabytes
    since the process began or ``mx.reset_peak_memory`` was called, ``finish_reason`` None, then "stop" (an end token or
    a stop string), "tool_calls" (an end behind calls), "length" (``max_tokens`` reached) or "error" (batches only:
    ``error`` says why). ``reused_tokens`` counts the prompt tokens that a prompt cache had, ``accepted_tokens`` and
    ``rejected_tokens`` those drafted by speculation so far, right and wrong. With ``logprobs=``: ``logprob`` of the
    token (batches: a list, one per token) and ``top_logprobs``, pairs (id, log-probability), best first. With
    ``tools=``: ``tool_calls``, those that are whole with this token (batches: all); ``text`` is without them.
    """

    text: str
    token: int | None
    mode: str
    prompt_tokens: int
    generation_tokens: int
    prompt_tps: float
    generation_tps: float
    peak_memory: float
    finish_reason: str | None = None
    tokens: list[int] | None = None
    reused_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    logprob: float | list[float] | None = None
    top_logprobs: tuple | list | None = None
    error: Exception | None = None
    tool_calls: tuple[ToolCall, ...] = ()


def response_of(token: SequenceToken) -> GenerationResponse:
    """The response to one token of a sequence."""
    sequence = token.sequence
    length, count = len(sequence.row.ids), token.number or len(sequence.tokens)
    first = sequence.first_token_at or sequence.admitted_at
    return GenerationResponse(
        text=token.text,
        token=token.token,
        mode=sequence.row.mode,
        prompt_tokens=length,
        generation_tokens=count,
        prompt_tps=length / max(first - sequence.admitted_at, 1e-9),
        generation_tps=max(count - 1, 0) / max(sequence.last_token_at - first, 1e-9),
        peak_memory=mx.get_peak_memory() / 1e9,
        finish_reason=token.finish_reason,
        reused_tokens=sequence.reused,
        accepted_tokens=sequence.accepted,
        rejected_tokens=sequence.rejected,
        logprob=token.logprob,
        top_logprobs=token.top_logprobs,
        error=token.error,
        tool_calls=token.tool_calls,
    )


class Answer:
    """A whole answer, put together token by token."""

    def __init__(self):
        self._tokens: list[SequenceToken] = []

    def add(self, token: SequenceToken) -> GenerationResponse | None:
        """One token more; the response once the answer has ended."""
        self._tokens.append(token)
        if token.finish_reason is None:
            return None
        whole = response_of(token)
        whole.text = "".join(each.text for each in self._tokens)
        whole.tool_calls = tuple(call for each in self._tokens for call in each.tool_calls)
        kept = [each for each in self._tokens if each.token is not None]
        whole.tokens = [each.token for each in kept]
        if token.sequence.options.logprobs is not None:
            whole.logprob = [each.logprob for each in kept]
            whole.top_logprobs = [each.top_logprobs for each in kept]
        return whole
