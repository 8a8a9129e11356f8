"""Endpoints that hear recordings: uploads, their parameters, and transcripts in OpenAI's formats."""

import math
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from typing import Any

from anyio import to_thread
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..transcription.tasks import PROMPTS
from ..transcription.transcriber import Transcriber
from ..transcription.transcript import Segment, Transcript
from . import fields
from .errors import RequestError, error_body, status_of
from .fields import one_of, refused, required, text, unsupported, wrong
from .hearing import Hearing, Recording
from .service import Service, check_multimodal, note
from .transcript_fields import finite, language
from .wire import EventStream, Json, server_sent, unless_gone

PIECES = 8  # of one recording that are decoded at once
RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


def _number(least: float, most: float) -> fields.Check:
    """A number as a form spells it."""

    def check(value: str, name: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        return fields.number(least, most)(found if math.isfinite(found) else value, name)

    return check


def _flag(value: str, name: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise wrong(name, value, "true or false")
    return value.lower() in ("true", "1")


def _granularity(value: str, name: str) -> str:
    if value == "word":
        raise unsupported(name, "word is not supported: this model knows the times of segments only")
    return one_of("segment")(value, name)


TRANSLATION = {
    "model": text,
    "prompt": text,
    "response_format": lambda value, name: one_of(*RESPONSE_FORMATS)(value, name),
    "temperature": _number(0, 1),
    "stream": _flag,
    "user": text,
}
TRANSCRIPTION = TRANSLATION | {
    "language": language,
    "timestamp_granularities[]": _granularity,
    "timestamp_granularities": _granularity,
    **dict.fromkeys(("include[]", "include", "chunking_strategy", "known_speaker_names[]"), refused),
}


class Transcriptions:
    """The endpoints of one service."""

    def __init__(self, service: Service):
        self.service = service

    async def transcriptions(self, request: Request) -> Response:
        """/v1/audio/transcriptions"""
        return await self._answer(request, "transcribe", TRANSCRIPTION)

    async def translations(self, request: Request) -> Response:
        """/v1/audio/translations, into English"""
        return await self._answer(request, "translate", TRANSLATION)

    async def _answer(self, request: Request, task: str, table: dict) -> Response:
        self.service.check_open()
        recording = await self._read(request, task, table)
        request.scope["body"].release()
        note(request.scope, model=recording.found["model"], mode="speech")
        hearing = Hearing(self.service, recording)
        if recording.found.get("stream"):
            if recording.response_format not in ("json", "text", "verbose_json"):
                raise unsupported("stream", "goes with response_format json, text or verbose_json")
            note(request.scope, stream=True)
            events = self._events(
                hearing, _segment if recording.response_format == "verbose_json" else None, request.scope
            )
            return EventStream(events, lambda: hearing.close(request.scope))
        try:
            transcript = await unless_gone(request, hearing.run())
        finally:
            hearing.close(request.scope)
        return rendered(transcript, recording)

    async def _read(self, request: Request, task: str, table: dict) -> Recording:
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise RequestError("the body is not multipart/form-data, as an upload is")
        try:
            async with request.form(max_files=1, max_fields=32) as form:
                return await self._recording(form, task, table)
        except HTTPException as error:
            raise RequestError(f"the form cannot be read: {error.detail}") from None
        except UnicodeDecodeError:
            raise RequestError("the form holds text that is not UTF-8") from None

    async def _recording(self, form: FormData, task: str, table: dict) -> Recording:
        names = [name for name, _ in form.multi_items() if not name.startswith("timestamp")]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RequestError(f"the form names {twice[:80]!r} twice", param=twice[:80])
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise RequestError("file is missing: the recording", param="file", code="missing_parameter")
        given = {name: value for name, value in form.multi_items() if name != "file"}
        if loose := [name for name, value in given.items() if not isinstance(value, str)]:
            raise wrong(loose[0], None, "a text and not a file")
        found = fields.read_fields(table, {name: value for name, value in given.items() if value != ""})
        adapter = self.service.names.adapter(required(found, "model"))
        if adapter in self.service.processor.config.adapters and found["model"] != self.service.names.served:
            raise unsupported("model", "with an adapter is not supported here: transcriptions choose the model's own")
        check_multimodal(self.service)
        transcriber = self._transcriber(task, found, adapter)
        return Recording(await to_thread.run_sync(_spooled, upload.file), transcriber, found)

    def _transcriber(self, task: str, found: dict[str, Any], adapter: str | None) -> Transcriber:
        if any(name.startswith("timestamp") for name in found) and found.get("response_format") != "verbose_json":
            raise RequestError(
                "timestamp_granularities goes with response_format verbose_json", param="timestamp_granularities[]"
            )
        prompt = None
        if "language" in found:
            prompt = f"{PROMPTS['transcribe']} The speech is in {found['language']}."
        options = {"temperatures": (found["temperature"],)} if found.get("temperature") else {}
        rows = min(PIECES, self.service.settings.max_rows)
        options |= {"batch_size": rows, "adapter": adapter}
        return Transcriber(task=task, prompt=prompt, context=found.get("prompt"), **options)

    async def _events(self, hearing: Hearing, shown: Callable | None, scope: dict) -> AsyncGenerator[str, None]:
        try:
            async for event in server_sent(hearing.events(shown)):
                yield event
        except Exception as error:
            body = error_body(error)
            note(scope, error=body["error"]["message"], failed=status_of(error))
            async for event in server_sent(_one(body)):
                yield event


async def _one(value: dict):
    yield value


def _spooled(upload) -> Any:
    """A named copy of an upload on disk, which goes when it is closed."""
    kept = tempfile.NamedTemporaryFile(prefix="mlx_phi4-")  # noqa: SIM115, closed by Hearing
    upload.seek(0)
    shutil.copyfileobj(upload, kept, 1 << 20)
    kept.flush()
    return kept


def rendered(transcript: Transcript, recording: Recording) -> Response:
    """A transcript in the format that was asked for."""
    kind = recording.response_format
    if kind in TYPES:
        body = transcript.text + "\n" if kind == "text" else transcript.render(kind)
        return Response(body.encode("utf-8", "replace"), media_type=f"{TYPES[kind]}; charset=utf-8")
    usage = {"type": "duration", "seconds": math.ceil(transcript.duration)}
    if kind == "json":
        return Json({"text": transcript.text, "usage": usage})
    return Json(
        {
            "task": transcript.task,
            "language": (transcript.language or recording.language or "").lower() or None,
            "duration": transcript.duration,
            "text": transcript.text,
            "segments": [_segment(index, each) for index, each in enumerate(transcript.segments)],
            "usage": usage,
        }
    )


def _segment(index: int, segment: Segment) -> dict:
    """OpenAI's fields, and the doubts that remain."""
    return {
        "id": index,
        "seek": 0,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": finite(segment.avg_logprob),
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": float(segment.no_speech),
        "flags": list(segment.flags),
    }
