"""The one thread that computes: jobs in, tokens out, row by row in one batch."""

import logging
import threading
import time
from collections import deque

from ..generation.batch import Batch
from ..generation.sequence import Sequence, SequenceToken
from ..inputs.processor import Processor
from ..model import Phi4
from .jobs import Delivery, Job, ServerError

HEARTBEAT = 30.0  # seconds without a sign of life after which the thread counts as dead
IDLE = 0.5  # seconds between two looks at an empty queue


class Engine:
    """Owns the model's batch. Any thread may submit and cancel."""

    def __init__(self, model: Phi4, processor: Processor, *, max_rows: int = 32, max_queue: int = 256):
        self.model, self.processor = model, processor
        self._max_rows, self._max_queue = max_rows, max_queue
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._cancelled: list[Job] = []
        self._jobs: dict[Sequence, tuple[Job, int]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._draining = self._stopped = False
        self._beat = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    @property
    def status(self) -> str:
        """ready, draining or failed."""
        alive = self._thread.is_alive() and time.monotonic() - self._beat < HEARTBEAT
        return "draining" if self._draining and alive else "ready" if alive else "failed"

    @property
    def running(self) -> int:
        """Rows in the batch."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises ServerError: the queue is full, the server stops, or the job can never fit."""
        for options in job.answers:
            Sequence(job.row, options, self.processor.tokenizer).check(self.model)
        with self._changed:
            if self._draining or self._stopped:
                raise ServerError("the server is stopping", 503)
            if len(self._queue) >= self._max_queue:
                raise ServerError("too many requests are waiting", 429, retry_after=5)
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

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._jobs and not self._queue

    def stop(self) -> None:
        """End what runs with an error, and the thread."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        batch = Batch(self.model, media_slices=1)
        while not self._stopped:
            self._beat = time.monotonic()
            try:
                self._turn(batch)
            except Exception as error:
                logging.getLogger(__name__).exception("a step failed")
                batch = Batch(self.model, media_slices=1)
                self._fail_all(ServerError(f"the step of this request failed: {type(error).__name__}", 500))
        self._fail_all(ServerError("the server is stopping", 503))

    def _turn(self, batch: Batch) -> None:
        with self._changed:
            if not batch.active and not self._queue and not self._cancelled:
                self._changed.wait(IDLE)
            cancelled, self._cancelled = self._cancelled, []
            self._queue = deque(job for job in self._queue if not job.cancelled)
            admitted = []
            while self._queue and len(self._jobs) + sum(len(job.answers) for job in admitted) < self._max_rows:
                admitted.append(self._queue.popleft())
        for job in cancelled:
            for sequence in job.sequences:
                if self._jobs.pop(sequence, None):
                    batch.retire(sequence)
        for job in admitted:
            self._admit(batch, job)
        for token in batch.step():
            self._deliver(token)

    def _admit(self, batch: Batch, job: Job) -> None:
        job.sequences = [Sequence(job.row, options, self.processor.tokenizer) for options in job.answers]
        for index, sequence in enumerate(job.sequences):
            self._jobs[sequence] = job, index
        batch.admit(*job.sequences)

    def _deliver(self, token: SequenceToken) -> None:
        job, index = self._jobs.get(token.sequence, (None, 0))
        if job is None:
            return
        job.cached_tokens = token.sequence.reused
        if token.finish_reason is not None:
            del self._jobs[token.sequence]
        last = token.finish_reason is not None and not any(each in self._jobs for each in job.sequences)
        job.deliver(
            Delivery(
                index,
                token.text,
                token.token,
                token.logprob,
                token.top_logprobs,
                token.finish_reason,
                token.error,
                last,
            )
        )

    def _fail_all(self, error: ServerError) -> None:
        with self._changed:
            waiting, self._queue = list(self._queue), deque()
        running = {job: None for job, _ in self._jobs.values()}
        self._jobs = {}
        for job in [*running, *waiting] if self._stopped else running:
            for index in range(len(job.answers)):
                job.deliver(Delivery(index, finish_reason="error", error=error, last=index == len(job.answers) - 1))
        if not self._stopped:
            with self._changed:
                self._queue.extendleft(reversed(waiting))
