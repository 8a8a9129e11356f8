"""Endpoints of chat, text, models, health and metrics."""

from collections.abc import AsyncGenerator, Callable
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from ..modalities import BASE
from .answers import ChatForm, TextForm
from .errors import RequestError, error_body, status_of
from .requests import Ask, Reader, read_chat, read_completion
from .service import Asked, Service, note
from .wire import EventStream, Json, dumps, read_object, server_sent, unless_gone


class Routes:
    """The endpoints of one service."""

    def __init__(self, service: Service):
        self.service = service

    async def chat(self, request: Request) -> Response:
        """/v1/chat/completions"""
        return await self._completions(request, read_chat, self._chat_form)

    async def completions(self, request: Request) -> Response:
        """/v1/completions"""
        return await self._completions(request, read_completion, self._text_form)

    async def responses(self, request: Request) -> Response:
        """/v1/responses, which this server does not have."""
        raise RequestError("there is no /v1/responses here; use /v1/chat/completions", 404)

    async def models(self, request: Request) -> Response:
        """/v1/models"""
        self.service.check_open()
        return Json({"object": "list", "data": [self._model(name) for name in self.service.names]})

    async def model(self, request: Request) -> Response:
        """/v1/models/NAME"""
        self.service.check_open()
        self.service.names.adapter(request.path_params["name"])
        return Json(self._model(request.path_params["name"]))

    async def health(self, request: Request) -> Response:
        """/health"""
        service = self.service
        engine, status = service.engine, service.status
        running, waiting = (0, 0) if engine is None else (engine.running, engine.waiting)
        rows = {"running": running, "waiting": waiting}
        return Json({"status": status} | rows, 200 if status == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """/metrics"""
        return Response(self.service.metrics.render(), media_type="text/plain; version=0.0.4")

    def _model(self, name: str) -> dict:
        context = self.service.processor.config.decoder.max_position_embeddings
        fixed = {"object": "model", "created": 0, "owned_by": "mlx_phi4"}
        return {"id": name} | fixed | {"context_length": context}

    async def _completions(self, request: Request, read: Callable[..., Ask], form: Callable) -> Response:
        service = self.service
        service.check_open()
        body = await request.body()
        ask = await unless_gone(request, service.prepared(self._read, body, read))
        ask = await unless_gone(request, service.formed(ask))
        del body
        request.scope["body"].release()
        note(request.scope, model=ask.model, mode=str(ask.mode), stream=ask.stream)
        asked, route = Asked(service, ask), _route(ask)
        if not ask.stream:
            whole = await unless_gone(request, self._whole(asked, form, request.scope))
            return Json(whole, headers=route)
        asked.__enter__()  # what is wrong is told by the status; the stream ends it
        return EventStream(self._events(form(asked), request.scope), lambda: self._close(asked, request.scope), route)

    def _read(self, body: bytes, read: Callable[..., Ask]) -> Ask:
        service = self.service
        settings, room = service.settings, service.engine.room
        reader = Reader(
            service.names, service.processor, settings.temperature, room, service.fetch, settings.think_first
        )
        return read(read_object(body), reader)

    async def _whole(self, asked: Asked, form: Callable, scope: dict) -> dict:
        try:
            with asked:
                return await form(asked).answer()
        finally:
            self._close(asked, scope)

    async def _events(self, form: ChatForm, scope: dict) -> AsyncGenerator[str, None]:
        try:
            async for event in server_sent(form.chunks()):
                yield event
        except Exception as error:
            note(scope, error=error_body(error)["error"]["message"], failed=status_of(error))
            yield f"data: {dumps(error_body(error))}\n\ndata: [DONE]\n\n"

    def _close(self, asked: Asked, scope: dict) -> None:
        asked.__exit__()
        usage = asked.usage
        note(scope, prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])

    def _chat_form(self, asked: Asked) -> ChatForm:
        return ChatForm(asked, self.service.processor.tokenizer, self.service.settings.reasoning_in_content)

    def _text_form(self, asked: Asked) -> TextForm:
        return TextForm(asked, self.service.processor.tokenizer)


def _route(ask: Ask) -> dict[str, str]:
    """Headers that say which way an answer's tokens go."""
    return {"x-phi4-mode": str(ask.mode), "x-phi4-adapter": quote(ask.rows[0].adapter or BASE)}
