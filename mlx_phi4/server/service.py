"""What all endpoints share: the engine, the names of the model, the settings, and asking the engine something."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import anyio
from anyio import to_thread

from ..errors import Phi4Error
from ..generation.structured import token_table
from ..generation.tool_choice import answer_form
from ..inputs.processor import Processor
from ..modalities import Mode, chosen_adapter
from .engine import Engine
from .errors import RequestError
from .jobs import Delivery, Job, ServerError
from .metrics import Metrics
from .names import ModelNames
from .remote import Fetcher
from .requests import Ask

Result = TypeVar("Result")
PREPARING = 4  # threads that read pictures, recordings and long texts at once
COMPILING = 2  # grammars at once; whoever asks for none waits for none
TRANSCRIBING = 8  # recordings that are on their way at once; each holds a thread
SILENCE = 5.0  # seconds without a token after which somebody looks whether the engine is alive


@dataclass(frozen=True)
class Settings:
    """What a server was started with.

    ``hosts`` are the names that a Host header may have, None for any; ``origins`` the web pages that may call;
    ``media_hosts`` those that pictures are fetched from; ``max_body`` bytes of a request; ``max_requests`` that are
    being read, waiting or answered; ``think_first`` whether thoughts may come before an answer in a given form;
    ``adapter`` that of requests whose model's name has none.
    """

    temperature: float = 0.0
    api_key: str | None = None
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    max_body: int = 64_000_000
    max_requests: int = 512
    max_rows: int = 32
    reasoning_in_content: bool = False
    think_first: bool = False
    media_hosts: frozenset[str] = frozenset()
    adapter: str | None = None


class Service:
    """A server's state; ``engine`` is None while the model is loaded."""

    def __init__(self, settings: Settings | None = None, metrics: Metrics | None = None):
        self.settings = settings or Settings()
        self.metrics = metrics or Metrics()
        hosts = self.settings.media_hosts
        self.fetch = Fetcher(hosts, self.settings.max_body) if hosts else None
        self.engine: Engine | None = None
        self.processor: Processor | None = None
        self.names: ModelNames | None = None
        self.draining = False
        self.in_flight = 0  # requests that the engine works for, or will
        self.held = 0  # bytes of bodies in memory
        self.compiling = anyio.CapacityLimiter(COMPILING)
        self.preparing = anyio.CapacityLimiter(PREPARING)
        self.transcribing = anyio.CapacityLimiter(TRANSCRIBING)

    def open(self, name: str, engine: Engine) -> None:
        """The model is there: answer from now on."""
        self.processor = engine.processor
        chosen_adapter(self.settings.adapter, Mode.TEXT, engine.processor.adapters)
        with suppress(Phi4Error):  # without the library whoever asks for a form is told so
            token_table(self.processor.tokenizer)  # no other thread runs for the second that this takes
        self.names = ModelNames(name, engine.processor.adapters, self.settings.adapter)
        self.metrics.show(engine)
        self.engine = engine

    @property
    def status(self) -> str:
        """loading, ready, draining or failed."""
        if self.draining:
            return "draining"
        return "loading" if self.engine is None else self.engine.status

    def check_open(self) -> None:
        """Raises ServerError, 503, where no request can be taken."""
        reasons = {
            "loading": "the model is being loaded",
            "draining": "the server is stopping",
            "failed": "the engine is not alive",
        }
        if self.status in reasons:
            raise ServerError(reasons[self.status], 503, retry_after=5)

    async def prepared(self, prepare: Callable[..., Result], *arguments) -> Result:
        """Call what reads media or long texts, in a thread of its own."""
        return await to_thread.run_sync(prepare, *arguments, limiter=self.preparing)

    async def formed(self, ask: Ask) -> Ask:
        """An ask with the form of its answers, if they have one. Raises RequestError."""
        tools, options = ask.rows[0].tools, ask.answers[0][0]
        if not tools and ask.grammar is None:
            return ask
        make = partial(answer_form, tools, options, self.processor.tokenizer)
        try:
            form = await to_thread.run_sync(make, limiter=self.compiling)
        except Phi4Error as error:  # which begins with what it is about
            param = str(error).partition(" ")[0]
            raise RequestError(str(error), param=param, code="invalid_value") from None
        return replace(ask, form=form)


@dataclass
class Asked:
    """An ask on its way through the engine; a context manager that leaves nothing there when it closes."""

    service: Service
    ask: Ask
    jobs: list[Job] = field(default_factory=list)
    completion_tokens: int = 0

    def __enter__(self) -> "Asked":
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue()
        first = 0
        for row, answers in zip(self.ask.rows, self.ask.answers, strict=True):
            job = Job(row, answers, self._deliverer(first), salt=self.ask.salt, form=self.ask.form)
            self.service.metrics.follow(job)
            self.jobs.append(job)
            first += len(answers)
        try:
            for job in self.jobs:
                self.service.engine.submit(job)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        for job in self.jobs:
            self.service.engine.cancel(job)

    def _deliverer(self, first: int) -> Callable[[Delivery], None]:
        """Called in the engine thread."""

        def deliver(delivery: Delivery) -> None:
            try:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (first + delivery.answer, delivery))
            except RuntimeError:  # the loop is closed: nobody listens
                return

        return deliver

    @property
    def answers(self) -> int:
        """How many there are."""
        return sum(len(answers) for answers in self.ask.answers)

    async def deliveries(self) -> AsyncIterator[tuple[int, Delivery]]:
        """Pairs (answer, delivery) until all answers have ended. Raises what ended one of them."""
        ended = 0
        while ended < self.answers:
            index, delivery = await self._next()
            if delivery.error is not None:
                raise delivery.error
            self.completion_tokens += delivery.token is not None
            ended += delivery.finish_reason is not None
            yield index, delivery

    async def _next(self) -> tuple[int, Delivery]:
        if not self._queue.empty():
            return self._queue.get_nowait()
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    return await self._queue.get()
            except TimeoutError:
                if self.service.engine.status == "failed":
                    raise ServerError("the engine is not alive", 503) from None

    @property
    def usage(self) -> dict:
        """Tokens so far, in OpenAI's form."""
        prompt = sum(job.prompt_tokens for job in self.jobs)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt + self.completion_tokens,
            "completion_tokens_details": {
                "accepted_prediction_tokens": sum(each.accepted for job in self.jobs for each in job.sequences),
                "rejected_prediction_tokens": sum(each.rejected for job in self.jobs for each in job.sequences),
            },
            "prompt_tokens_details": {"cached_tokens": sum(job.cached_tokens for job in self.jobs)},
        }


def note(scope: dict, **facts) -> None:
    """What the request's line in the log should say."""
    scope["log"].update(facts)


def check_multimodal(service: Service) -> None:
    """Raises RequestError where the model hears nothing."""
    config = service.processor.config
    if config.audio is None:
        why = "takes no recordings" if config.multimodal else "is text-only; recordings need Phi-4-multimodal"
        raise RequestError(f"this model {why}")
