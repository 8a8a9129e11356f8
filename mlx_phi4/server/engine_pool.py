"""The transcriber's pieces as rows of the server's own batch, beside those of chat."""

import math
import queue
import threading
import time
from typing import Any

from ..generation.options import make_options
from ..generation.responses import GenerationResponse
from ..inputs.processor import Request
from .jobs import Delivery, Job, ServerError
from .service import Service

ROOM_SECONDS = 0.2  # between two tries to enter a full queue
SILENT_SECONDS = 5.0  # without a sign from the engine, before it is asked whether it is alive


class Stopped(Exception):
    """Nobody waits for the transcript any more."""


class EnginePool:
    """``AnswerPool``'s methods on the engine; one thread asks and steps, any thread may ``stop`` it.

    ``patience`` is how many seconds a step waits for an answer, None for as long as it takes.
    """

    def __init__(self, service: Service, patience: float | None = None):
        self._patience = patience
        self._service, self._engine = service, service.engine
        self._jobs: dict[Job, tuple[Any, list[Delivery]]] = {}
        self._told: queue.SimpleQueue[tuple[Job, Delivery] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self.prompt_tokens = self.completion_tokens = 0

    def __enter__(self) -> "EnginePool":
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def __len__(self) -> int:
        """Requests without an answer yet."""
        return len(self._jobs)

    def stop(self) -> None:
        """Free all rows at once, and end ``ask`` and ``step``."""
        with self._lock:
            self._stopped = True
            for job in self._jobs:
                self._engine.cancel(job)
        self._told.put(None)

    def ask(self, key: Any, request: Request, **options) -> None:
        """Submit a request; while the queue is full, wait, once anything of this recording was let in."""
        row = self._service.processor.row(request)
        chosen = make_options({"speculation": "none"} | options, request.options)  # what is heard never stood there
        job = Job(row, [chosen], lambda delivery: self._told.put((job, delivery)))
        self._service.metrics.follow(job)
        while True:
            with self._lock:
                if self._stopped:
                    raise Stopped
                try:
                    self._engine.submit(job)
                except ServerError as error:
                    # what is being said cannot be asked for again: who listens waits from the first piece on
                    if error.status != 429 or not (self.prompt_tokens or self._patience):
                        raise
                else:
                    self._jobs[job] = key, []
                    self.prompt_tokens += job.prompt_tokens
                    return
            time.sleep(ROOM_SECONDS)

    def step(self) -> list[tuple[Any, GenerationResponse]]:
        """Wait until an answer has ended -> [(key, answer)]; none if ``patience`` is over before."""
        until = math.inf if self._patience is None else time.monotonic() + self._patience
        while True:
            try:
                told = self._next(until)
            except TimeoutError:
                return []
            if told is None or self._stopped:
                raise Stopped
            job, delivery = told
            key, deliveries = self._jobs[job]
            deliveries.append(delivery)
            if delivery.finish_reason is None:
                continue
            with self._lock:
                del self._jobs[job]
            self.completion_tokens += sum(each.token is not None for each in deliveries)
            return [(key, _response(job, deliveries))]

    def _next(self, until: float) -> tuple[Job, Delivery] | None:
        while True:
            left = until - time.monotonic()
            try:
                return self._told.get(timeout=min(max(left, 0.001), SILENT_SECONDS))
            except queue.Empty:
                if left < SILENT_SECONDS and self._engine.status != "failed":
                    raise TimeoutError from None
                if self._engine.status == "failed":
                    raise ServerError("the engine is not alive", 503) from None


def _response(job: Job, deliveries: list[Delivery]) -> GenerationResponse:
    """A whole answer; its speed is not this pool's to tell."""
    last, kept = deliveries[-1], [each for each in deliveries if each.token is not None]
    return GenerationResponse(
        text="".join(each.text for each in deliveries),
        token=last.token,
        mode=job.row.mode,
        prompt_tokens=job.prompt_tokens,
        generation_tokens=len(kept),
        prompt_tps=0.0,
        generation_tps=0.0,
        peak_memory=0.0,
        finish_reason=last.finish_reason,
        tokens=[each.token for each in kept],
        reused_tokens=job.cached_tokens,
        logprob=[each.logprob for each in kept],
        error=last.error,
    )
