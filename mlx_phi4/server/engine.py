"""The one thread that computes: jobs in, tokens out, row by row in one batch."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from ..generation.draft_model import DraftModel
from ..inputs.processor import Processor, Row
from ..model import Phi4
from .jobs import Job, ServerError
from .rows import Limits, Rows

HEARTBEAT = 60.0  # seconds without a sign of life after which the thread counts as dead
IDLE = 0.5  # seconds between two looks at an empty queue
SLOWEST, FASTEST = 1.0, 600.0  # seconds, bounds of what a client is told to wait


@dataclass(frozen=True)
class Snapshot:
    """What the engine does now, for health and metrics. ``status`` is loading, ready, draining or failed."""

    status: str
    running: int
    waiting: int
    counts: Counter
    prefix_bytes: int
    media_bytes: int
    row_bytes: int


class Engine:
    """Owns the model's rows. Any thread may submit and cancel.

    Args:
        limits: how many rows at once, and how much memory.
        max_queue: jobs that may wait.
        reload: gives model and processor again after ``idle_unload`` seconds without work let the weights go.
        speculate: gives how answers that do not say it themselves are drafted, the option ``speculation``.
    """

    def __init__(
        self,
        model: Phi4,
        processor: Processor,
        limits: Limits | None = None,
        *,
        max_queue: int = 256,
        reload: Callable[[], tuple[Phi4, Processor]] | None = None,
        idle_unload: float | None = None,
        speculate: Callable[[Phi4, Processor], DraftModel | str] = lambda model, processor: "none",
    ):
        self.processor, self.limits = processor, limits or Limits()
        self._speculate = speculate
        self._rows: Rows | None = Rows(model, processor, self.limits, speculate(model, processor))
        self._budget = self._rows.budget
        self._max_queue, self._reload, self._idle_unload = max_queue, reload, idle_unload
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._cancelled: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._draining = self._stopped = False
        self._held = 0, 0, 0  # bytes after the last turn: other threads must not walk over rows
        self._beat = self._used = time.monotonic()
        self._began = time.monotonic()

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    @property
    def status(self) -> str:
        """ready, draining or failed."""
        alive = self._thread.is_alive() and time.monotonic() - self._beat < HEARTBEAT
        return "draining" if self._draining and alive else "ready" if alive else "failed"

    @property
    def running(self) -> int:
        """Rows in the batch."""
        return len(self._rows) if self._rows is not None else 0

    @property
    def waiting(self) -> int:
        """Jobs in the queue, and rows that were put off."""
        return len(self._queue) + (self._rows.put_off if self._rows is not None else 0)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not self.waiting

    def snapshot(self) -> Snapshot:
        """What it does now."""
        rows = self._rows
        counts = Counter(rows.counts) if rows is not None else Counter()
        return Snapshot(self.status, self.running, self.waiting, counts, *self._held)

    def room(self, row: Row) -> int:
        """Most tokens that can follow a prompt, by the context and by the memory; 0 if none."""
        context = self.processor.config.decoder.max_position_embeddings
        return max(min(context, self._budget.longest) - len(row.ids), 0)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Phi4Error: it can never be served; or ServerError: not now."""
        context = self.processor.config.decoder.max_position_embeddings
        if job.most_tokens > context:
            answer = job.most_tokens - job.prompt_tokens
            raise ServerError(
                f"a prompt of {job.prompt_tokens} tokens and max_tokens {answer} exceed the context of {context}"
            )
        needed = self._budget.tokens(job.most_tokens)
        if needed > self._budget.total:
            raise ServerError(
                f"prompt and answer of {job.most_tokens} tokens take {needed / 1e6:.1f} MB of memory; the server has "
                f"{self._budget.total / 1e6:.1f} MB for all requests"
            )
        with self._changed:
            if self._draining or self._stopped:
                raise ServerError("the server is stopping", 503)
            if len(self._queue) >= self._max_queue:
                raise ServerError(f"{len(self._queue)} requests are waiting", 429, self._wait())
            self._queue.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Forget a job, wherever it is; its rows are free within a step."""
        with self._changed:
            job.cancelled = True
            self._cancelled.append(job)
            self._changed.notify_all()

    def drain(self) -> None:
        """Take no more jobs; those that are there are finished."""
        with self._changed:
            self._draining = True

    def stop(self) -> None:
        """End what runs with an error, and the thread."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=HEARTBEAT)

    def _wait(self) -> float:
        """Seconds that what waits will take, by what was done so far."""
        seconds = time.monotonic() - self._began
        done = self._rows.counts["tokens"] if self._rows is not None else 0
        left = sum(job.most_tokens for job in self._queue)
        return min(max(left * seconds / max(done, 1), SLOWEST), FASTEST)

    def _run(self) -> None:
        while not self._stopped:
            self._beat = time.monotonic()
            try:
                self._turn()
                self._held = (0, 0, 0) if self._rows is None else self._rows.held
            except Exception as error:
                logging.getLogger(__name__).error("a step failed: %s: %s", type(error).__name__, error)
                failed = ServerError("the step that this request was part of failed; it may be tried again", 500)
                for job in self._rows.clear() if self._rows is not None else ():
                    job.end(failed)
        with self._changed:
            waiting, self._queue = list(self._queue), deque()
        for job in [*(self._rows.clear() if self._rows is not None else ()), *waiting]:
            job.end(ServerError("the server is stopping", 503))

    def _turn(self) -> None:
        with self._changed:
            if self._idle_now():
                self._changed.wait(IDLE)
            cancelled, self._cancelled = self._cancelled, []
            self._queue = deque(job for job in self._queue if not job.cancelled)
            wanted = bool(self._queue)
        if self._rows is None:
            if not wanted:
                return
            self._load_again()
        for job in cancelled:
            self._rows.cancel(job)
        self._rows.come_back()
        while (job := self._next()) is not None:
            self._rows.admit(job)
        if self._rows.active:
            self._used = time.monotonic()
            self._rows.step()
        elif self._idle_unload is not None and time.monotonic() - self._used > self._idle_unload:
            self._rows = None
            logging.getLogger(__name__).info("idle: the weights were let go")

    def _idle_now(self) -> bool:
        active = self._rows is not None and self._rows.active
        return not (active or self._queue or self._cancelled or self._stopped)

    def _next(self) -> Job | None:
        """The oldest job that waits, if there is room for it now."""
        with self._changed:
            if self._queue and self._rows.fits(self._queue[0]):
                return self._queue.popleft()
            return None

    def _load_again(self) -> None:
        model, self.processor = self._reload()
        self._rows = Rows(model, self.processor, self.limits, self._speculate(model, self.processor))
        self._used = time.monotonic()
