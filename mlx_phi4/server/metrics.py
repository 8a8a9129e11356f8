"""What a server counts, for Prometheus."""

import time

import mlx.core as mx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Engine
from .jobs import Delivery, Job

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mlx_phi4_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"mlx_phi4_{name}_seconds", text, buckets=BUCKETS, registry=self.registry)

        self.requests = counter("requests", "Requests answered", "endpoint", "status")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of answers that began", "mode")
        self.cached_tokens = counter("cached_prompt_tokens", "Of these, tokens whose keys were there already", "mode")
        self.completion_tokens = counter("completion_tokens", "Tokens of answers", "mode")
        self.first_token = histogram("time_to_first_token", "From the engine's queue to the first token")
        self.next_token = histogram("inter_token", "Between two tokens of an answer")
        self.queued = histogram("queue_time", "From the engine's queue to the batch")
        self.length = histogram("request_duration", "From a request's head to the end of its answer")

    def show(self, engine: Engine) -> None:
        """Gauges that ask the engine when they are read."""
        gauges = {
            "running_rows": ("Rows in the batch", lambda: engine.running),
            "waiting_requests": ("Requests in the engine's queue", lambda: engine.waiting),
            "prefix_bytes": (
                "Keys and values that later prompts may begin with",
                lambda: engine.snapshot().prefix_bytes,
            ),
            "media_bytes": ("Embeddings of media that were seen", lambda: engine.snapshot().media_bytes),
            "row_bytes": ("Keys and values of rows", lambda: engine.snapshot().row_bytes),
            "evictions": ("Prefixes that made way", lambda: engine.snapshot().counts["evictions"]),
            "preemptions": ("Rows that were put off", lambda: engine.snapshot().counts["preemptions"]),
            "steps": ("Steps of the decoder", lambda: engine.snapshot().counts["steps"]),
            "row_steps": ("Rows of all steps; by steps, the batch size", lambda: engine.snapshot().counts["row_steps"]),
            "accepted_draft_tokens": ("Drafted tokens that were right", lambda: engine.snapshot().counts["accepted"]),
            "rejected_draft_tokens": ("Drafted tokens that were wrong", lambda: engine.snapshot().counts["rejected"]),
            "active_bytes": ("Memory in use by arrays", mx.get_active_memory),
            "cached_bytes": ("Freed memory that is kept for the next arrays", mx.get_cache_memory),
        }
        for name, (text, read) in gauges.items():
            Gauge(f"mlx_phi4_{name}", text, registry=self.registry).set_function(read)

    def follow(self, job: Job) -> None:
        """Count what is delivered to a job from now on."""
        deliver, submitted = job.deliver, time.perf_counter()
        last: dict[int, float] = {}

        def counted(delivery: Delivery) -> None:
            self._count(job, delivery, last, submitted)
            deliver(delivery)

        job.deliver = counted

    def _count(self, job: Job, delivery: Delivery, last: dict[int, float], submitted: float) -> None:
        if delivery.token is None:
            return
        now, mode = time.perf_counter(), str(job.row.mode)
        if not last:
            self.first_token.observe(now - submitted)
            self.prompt_tokens.labels(mode).inc(job.prompt_tokens)
            self.cached_tokens.labels(mode).inc(job.cached_tokens)
            self.queued.observe(max(0.0, (job.admitted_at or job.submitted_at) - job.submitted_at))
        elif delivery.answer in last:
            self.next_token.observe(now - last[delivery.answer])
        last[delivery.answer] = now
        self.completion_tokens.labels(mode).inc()

    def render(self) -> bytes:
        """All of it, in Prometheus' text form."""
        return generate_latest(self.registry)
