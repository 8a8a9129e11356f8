"""A recording on its way from an upload to its transcript, in a thread of its own."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread

from ..transcription.chunking import Failure
from ..transcription.transcriber import Transcriber
from ..transcription.transcript import Segment, Transcript
from .engine_pool import EnginePool, Stopped
from .errors import RequestError
from .jobs import ServerError
from .service import Service, note
from .wire import ClientGone


@dataclass
class Recording:
    """An upload in a file of its own, and what is to be done with it."""

    file: Any
    transcriber: Transcriber
    found: dict[str, Any]

    @property
    def response_format(self) -> str:
        return self.found.get("response_format", "json")

    @property
    def language(self) -> str | None:
        """As it was asked for; the model itself does not name it."""
        return self.found.get("language")


class Hearing:
    """A recording on its way: a thread that cuts it, and rows of the engine's batch."""

    def __init__(self, service: Service, recording: Recording):
        self._service, self._recording = service, recording
        self._pool = EnginePool(service)

    async def run(self, heard: Callable[[Segment], None] = lambda segment: None) -> Transcript:
        """The transcript. Raises RequestError for what is no recording, ClientGone where it was closed before."""
        limiter = self._service.transcribing
        task = asyncio.ensure_future(to_thread.run_sync(self._hear, heard, limiter=limiter))
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # looked at, also after a shield
        try:
            result = await asyncio.shield(task)
        except asyncio.CancelledError:
            self._pool.stop()  # wakes the thread
            raise
        except Stopped:
            raise ClientGone from None
        if isinstance(result, Failure):
            raise _file_error(result)
        return result

    async def events(self, shown: Callable[[int, Segment], dict] | None = None) -> AsyncGenerator[dict, None]:
        """The text as it is heard, segment by segment, and all of it at the end.

        ``shown`` gives the fields of a segment, by its number: segments are told, too, and the duration at the end.
        """
        loop, heard = asyncio.get_running_loop(), asyncio.Queue()
        task = asyncio.ensure_future(self.run(lambda segment: loop.call_soon_threadsafe(heard.put_nowait, segment)))
        task.add_done_callback(lambda _: heard.put_nowait(None))
        segments, told = [], ""
        try:
            while (segment := await heard.get()) is not None:
                segments.append(segment)
                if shown is not None:
                    yield {"type": "transcript.text.segment"} | shown(len(segments) - 1, segment)
                whole = Transcript(segments, duration=segment.end).text
                if len(whole) > len(told):
                    yield {"type": "transcript.text.delta", "delta": whole[len(told) :]}
                told = whole
            transcript = await task
            done = {"type": "transcript.text.done", "text": transcript.text, "usage": self._tokens()}
            yield done | ({} if shown is None else {"duration": transcript.duration, "warnings": transcript.warnings})
        finally:
            task.cancel()

    def close(self, scope: dict) -> None:
        """Free the rows; the file goes once nobody reads it."""
        self._pool.stop()
        note(scope, prompt_tokens=self._pool.prompt_tokens, completion_tokens=self._pool.completion_tokens)

    def _tokens(self) -> dict:
        given, made = self._pool.prompt_tokens, self._pool.completion_tokens
        return {"type": "tokens", "input_tokens": given, "output_tokens": made, "total_tokens": given + made}

    def _hear(self, heard: Callable[[Segment], None]) -> Transcript | Failure:
        """The work of a thread."""
        service, path = self._service, Path(self._recording.file.name)
        results = self._recording.transcriber(
            None,  # the pool has it
            service.processor,
            [path],
            heard=lambda index, segment: heard(segment),
            pool=lambda: self._pool,
        )
        with self._recording.file, closing(results):
            [(_, result)] = results
        return result


def _file_error(failure: Failure) -> ServerError:
    """What is wrong with an upload, without the path of its copy."""
    if isinstance(failure.error, ServerError):
        return failure.error
    line = re.sub(r"\S*mlx_phi4-\w+: ", "", failure.line("file"))
    return RequestError(f"file: {line.removeprefix('file: ')}", param="file", code="invalid_media")
