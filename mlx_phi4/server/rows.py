"""The rows of the engine thread: which are admitted, what they may hold, and who makes room under pressure."""

import time
from collections import Counter, deque
from dataclasses import dataclass, replace

import mlx.core as mx

from ..generation.batch import Batch
from ..generation.draft_model import DraftModel
from ..generation.media_cache import DEFAULT_BYTES, MediaCache
from ..generation.options import GenerationOptions
from ..generation.sequence import Sequence, SequenceToken
from ..inputs.processor import Processor, Row
from ..model import Phi4
from .budget import STEP_TOKENS, Budget
from .jobs import Delivery, Job
from .prefixes import PrefixStore, SharedPrefixes

LEAST_PIECE = 32  # prompt tokens of a step, however short a stall is asked for


@dataclass(frozen=True)
class Limits:
    """What the engine may use.

    Args:
        rows: at most so many at once.
        memory: bytes of the whole process, weights included; None is what the machine recommends.
        reserve: bytes of it that are left to the computation of a step; None is an estimate.
        stall: seconds that a decoding row may wait for the prompts of others, see ``Rows.piece``; None: no bound.
    """

    rows: int = 32
    memory: int | None = None
    reserve: int | None = None
    stall: float | None = None


class Rows:
    """Jobs that are being answered. Belongs to the engine thread."""

    def __init__(self, model: Phi4, processor: Processor, limits: Limits, speculation: DraftModel | str = "none"):
        """``speculation`` is that of answers that do not say it themselves."""
        self._model, self._processor, self._limits, self._speculation = model, processor, limits, speculation
        draft = speculation if isinstance(speculation, DraftModel) else None
        self.budget = Budget.of(model, limits.memory, limits.reserve, draft)
        self.prefixes = PrefixStore(self.budget.total // 2)
        self.media = MediaCache(min(DEFAULT_BYTES, self.budget.total // 8))
        self.counts: Counter = Counter()
        self._batch = self._new_batch()
        self._jobs: dict[Sequence, tuple[Job, int]] = {}  # in the order of their admission
        self._put_off: deque[Sequence] = deque()
        self._token_seconds: float | None = None  # of a prompt token, measured
        self._weights = mx.get_active_memory()

    def _new_batch(self) -> Batch:
        return Batch(self._model, media_slices=1)

    def __len__(self) -> int:
        return len(self._jobs) - len(self._put_off)

    @property
    def put_off(self) -> int:
        """Rows that made room for others."""
        return len(self._put_off)

    @property
    def active(self) -> bool:
        return bool(self._jobs)

    @property
    def piece(self) -> int:
        """Prompt tokens of one step, so that decoding rows keep their pace."""
        if self._limits.stall is None or self._token_seconds is None:
            return STEP_TOKENS
        return int(min(max(self._limits.stall / self._token_seconds, LEAST_PIECE), STEP_TOKENS))

    @property
    def used(self) -> int:
        """Bytes that the rows in the batch hold, or will once their prompts are in and one token more."""
        return sum(self._charge(sequence) for sequence in self._jobs if sequence.state is not None)

    @property
    def held(self) -> tuple[int, int, int]:
        """Bytes of prefixes, of embeddings of media that were seen, and of rows."""
        return self.prefixes.nbytes, self.media.nbytes, self.used

    def _charge(self, sequence: Sequence) -> int:
        waits = sequence.unencoded is not None
        coming = self._media_bytes(sequence.row) if waits else 0
        return max(sequence.nbytes, self.budget.tokens(sequence.length + 1) + coming)

    def _media_bytes(self, row: Row) -> int:
        """What the embeddings of a row's media will take, in the row and among those that were seen."""
        decoder, width = self._model.config.decoder, self._model.model.norm.weight.dtype.size
        return 2 * sum(item.tokens for _, item in row.media) * decoder.hidden_size * width

    def fits(self, job: Job) -> bool:
        """Whether there is room for a job now; prefixes make way. A job alone always fits: it was checked before."""
        if not self._jobs:
            return True
        if len(self._jobs) + len(job.answers) > self._limits.rows or self._put_off:
            return False
        needed = len(job.answers) * self.budget.tokens(job.prompt_tokens + 1) + self._media_bytes(job.row)
        while self.used + needed + self._kept > self.budget.total:
            if not self._let_go():
                return False
        return True

    @property
    def _kept(self) -> int:
        return self.prefixes.nbytes + self.media.nbytes

    def _let_go(self) -> bool:
        """Give up something that only serves to be faster; False if there is nothing."""
        gone = self.prefixes.evict() or self.media.evict()
        self.counts["evictions"] += gone
        return gone

    def admit(self, job: Job) -> None:
        """Begin a job; what is wrong with it is delivered."""
        job.admitted_at = time.monotonic()
        shared = SharedPrefixes(self.prefixes, job.salt)
        extra = {"media_cache": self.media, "prompt_cache": shared, "prefill_step_size": self.piece}
        options: list[GenerationOptions] = [
            replace(answer, **extra, speculation=answer.speculation or self._speculation) for answer in job.answers
        ]
        try:
            job.sequences = [self._sequence(job, answer, index > 0) for index, answer in enumerate(options)]
            self._batch.admit(*job.sequences)
        except Exception as error:  # the row's own affair; the others go on
            job.end(error)
            return
        self._jobs |= {sequence: (job, index) for index, sequence in enumerate(job.sequences)}

    def _sequence(self, job: Job, options: GenerationOptions, shares_cache: bool) -> Sequence:
        constraint = None if job.form is None else job.form.constraint()
        return Sequence(job.row, options, self._processor.tokenizer, constraint=constraint, shares_cache=shares_cache)

    def cancel(self, job: Job) -> None:
        """Free a job's rows."""
        for sequence in job.sequences:
            if self._jobs.pop(sequence, None):
                if sequence in self._put_off:
                    self._put_off.remove(sequence)
                else:
                    self._batch.retire(sequence)
                self.counts["cancelled"] += 1

    def come_back(self) -> None:
        """Admit rows again that were put off, the oldest first, as far as there is room."""
        while self._put_off:
            sequence = self._put_off[0]
            if len(self) and self.used + self.budget.tokens(sequence.length + 1) > self.budget.total:
                return
            self._batch.admit(self._put_off.popleft())

    def step(self) -> None:
        """One step for all rows, within the budget."""
        self._make_room()
        began, before = time.monotonic(), self._batch.prompt_tokens
        for token in self._batch.step():
            self._deliver(token)
        self.counts["steps"] += 1
        self.counts["row_steps"] += len(self)
        prompt_tokens = self._batch.prompt_tokens - before
        self.counts["tokens"] += prompt_tokens
        if prompt_tokens:
            seconds = (time.monotonic() - began) / prompt_tokens
            self._token_seconds = seconds if self._token_seconds is None else 0.8 * self._token_seconds + 0.2 * seconds
        if mx.get_active_memory() + mx.get_cache_memory() > self._weights + self.budget.total:
            mx.clear_cache()

    def _make_room(self) -> None:
        """Prefixes go first, then the youngest rows, which are computed again later."""
        while self.used + self._kept > self.budget.total:
            if self._let_go():
                continue
            movable = [each for each in self._jobs if each.state is not None and not each.siblings]
            if len(self) < 2 or not movable:
                return
            self._batch.preempt(movable[-1])
            self._put_off.appendleft(movable[-1])
            self.counts["preemptions"] += 1

    def _deliver(self, token: SequenceToken) -> None:
        job, index = self._jobs.get(token.sequence, (None, 0))
        if job is None:
            return
        job.cached_tokens = job.sequences[0].reused
        self.counts["tokens"] += 1
        if token.finish_reason is not None:
            del self._jobs[token.sequence]
            job.open -= 1
            self.counts[f"finished {token.finish_reason}"] += 1
            self.counts[f"tokens {job.row.mode}"] += len(token.sequence.tokens)
            self.counts["accepted"] += token.sequence.accepted
            self.counts["rejected"] += token.sequence.rejected
        last = token.finish_reason is not None and not job.open
        details = token.text, token.token, token.logprob, token.top_logprobs, token.finish_reason, token.error
        job.deliver(Delivery(index, *details, last, token.tool_calls))

    def clear(self) -> list[Job]:
        """Forget all rows after a step that failed; their jobs, each once."""
        jobs = list(dict.fromkeys(job for job, _ in self._jobs.values()))
        for sequence in self._jobs:
            sequence.state = None  # nothing of it may be kept
        self._batch.close()
        self._batch, self._jobs, self._put_off = self._new_batch(), {}, deque()
        mx.clear_cache()
        return jobs
