"""/v1/realtime: a WebSocket that is sent sound and tells its text while it comes."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anyio import to_thread
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import Phi4Error
from ..transcription.chunking import ChunkingOptions
from ..transcription.live import Live
from ..transcription.live_events import Event
from . import fields
from .engine_pool import EnginePool
from .errors import RequestError
from .guard import answer
from .jobs import ServerError
from .realtime_events import SessionSettings, Told, check_model, decoded, samples_of
from .service import Service, check_multimodal, note
from .transcriptions import PIECES
from .wire import dumps, read_object

SESSIONS = 8  # at once; each has a thread
LISTEN_SECONDS = 0.05  # s that the ears wait for an answer before they look for more sound
LOOK_SECONDS = 0.5  # between two looks whether the server stops, or the ears have failed
ROOM_LOOK = 0.02  # s between two looks whether the ears have room again
MOST_EVENTS = 2000  # that a client has not taken yet
SUBPROTOCOL = "realtime"
TRY_LATER, TOO_SLOW, CLOSED_BY_FAILURE = 1012, 1008, 1011  # codes of a close


class Realtime:
    """The endpoint of one service."""

    def __init__(self, service: Service):
        self.service = service
        self._open = 0

    async def session(self, socket: WebSocket) -> None:
        """A session from its handshake to its end; what is refused before it begins gets an answer of HTTP."""
        try:
            settings = self._asked(socket)
        except Phi4Error as error:
            await socket.send_denial_response(answer(error))
            return
        note(socket.scope, model=settings.model, mode="speech", stream=True)
        self._open += 1
        session = Session(self.service, socket, settings)
        try:
            offered = socket.scope.get("subprotocols", [])
            await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
            await session.run()
        finally:
            self._open -= 1
            await session.close()
            note(socket.scope, audio_seconds=round(session.seconds, 2))

    def _asked(self, socket: WebSocket) -> SessionSettings:
        """What the address says. Raises RequestError, ServerError."""
        service = self.service
        service.check_open()
        check_multimodal(service)
        asked = dict(socket.query_params)
        if asked.get("intent", "transcription") != "transcription":
            raise fields.unsupported("intent", "is supported as transcription only")
        model = asked.get("model", service.names.served)
        check_model(model, service.names)
        if self._open >= SESSIONS:
            raise ServerError(f"{SESSIONS} sessions are open", 429, retry_after=30)
        return SessionSettings(model)


class Session:
    """One client's sound, and its ears, which begin with the first of it."""

    def __init__(self, service: Service, socket: WebSocket, settings: SessionSettings):
        self._service, self._socket, self._settings = service, socket, settings
        self._told, self._ears = Told(), None
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    @property
    def seconds(self) -> float:
        """Of sound that came."""
        return self._told.seconds + (self._ears.seconds if self._ears else 0.0)

    async def run(self) -> None:
        """Until the client leaves or the server stops."""
        sending = asyncio.ensure_future(self._send())
        self._put(self._told.event("session.created", session=self._shown()))
        code = CLOSED_BY_FAILURE
        try:
            code = await self._receive()
        except WebSocketDisconnect:
            code = None
        except Exception as error:
            self._put(self._told.error(error))
            if not isinstance(error, Phi4Error):
                raise
        finally:
            self._outbox.put_nowait(None)
            if code is None:
                sending.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sending
                await self._socket.close(code)

    async def close(self) -> None:
        """Free the rows, and end the thread."""
        if self._ears is not None:
            ears, self._ears = self._ears, None
            self._told.begin_anew(ears.seconds)
            await to_thread.run_sync(ears.stop)

    async def _send(self) -> None:
        while (event := await self._outbox.get()) is not None:
            await self._socket.send_text(dumps(event))

    async def _receive(self) -> int | None:
        """Take messages; the code to close with."""
        waiting = asyncio.ensure_future(self._socket.receive())
        try:
            while True:
                await asyncio.wait([waiting], timeout=LOOK_SECONDS)
                if self._ears is not None and self._ears.error is not None:
                    raise self._ears.error
                if self._outbox.qsize() > MOST_EVENTS:
                    return TOO_SLOW
                if self._service.draining:
                    await self._finish()
                    return TRY_LATER
                if waiting.done():
                    message = waiting.result()
                    if message["type"] == "websocket.disconnect":
                        return None
                    await self._take(message)
                    waiting = asyncio.ensure_future(self._socket.receive())
        finally:
            waiting.cancel()

    async def _finish(self) -> None:
        """Hear what is left."""
        if self._ears is not None:
            await to_thread.run_sync(self._ears.finish)
            await asyncio.sleep(0)  # what it told is in the outbox then

    async def _take(self, message: dict[str, Any]) -> None:
        """One message; what is wrong with it is told, and the session goes on."""
        event: dict[str, Any] = {}
        try:
            if message.get("bytes") is not None:
                await self._hear(message["bytes"])
                return
            event = read_object(message["text"].encode("utf-8", "replace"))
            handler = self._handler(event.get("type"))
            await handler(event)
        except Phi4Error as error:
            if self._ears is not None and self._ears.error is error:
                raise
            named = event.get("event_id")
            self._put(self._told.error(error, named if isinstance(named, str) else None))

    def _handler(self, kind: Any) -> Callable:
        handlers = {
            "session.update": self._update,
            "transcription_session.update": self._old_update,
            "input_audio_buffer.append": lambda event: self._hear(decoded(fields.required(event, "audio"))),
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }
        if not isinstance(kind, str) or kind not in handlers:
            known = ", ".join(name for name in handlers if "_session" not in name)
            raise fields.wrong("type", kind, known)
        return handlers[kind]

    async def _update(self, event: dict[str, Any]) -> None:
        if self._ears is not None:
            raise RequestError("a session can be updated before its first sound only", code="session_began")
        given = fields.mapping(fields.required(event, "session"), "session")
        self._settings = self._settings.updated(given, self._service.names)
        self._put(self._told.event("session.updated", session=self._shown()))

    async def _old_update(self, event: dict[str, Any]) -> None:
        raise fields.unsupported("type", "transcription_session.update is of the beta; send session.update")

    async def _hear(self, data: bytes) -> None:
        samples = samples_of(data)
        if self._ears is None:
            self._ears = self._new_ears()
        while self._ears.full and self._ears.error is None:  # the socket is not read meanwhile
            await asyncio.sleep(ROOM_LOOK)
        self._ears.feed(samples, wait=False)  # the loop serves others, too

    def _new_ears(self) -> Live:
        service, told = self._service, self._told
        ears = Live(
            self._settings.transcriber(min(PIECES, service.settings.max_rows)),
            None,  # the pool has it
            service.processor,
            rate=self._settings.rate,
            told=lambda event: self._tell(event, ears),
            pool=lambda: EnginePool(service, LISTEN_SECONDS),
        )
        told.begin_anew(0.0)
        return ears.__enter__()

    async def _commit(self, event: dict[str, Any]) -> None:
        if self._ears is None:
            raise RequestError("there is no sound to commit", code="input_audio_buffer_commit_empty")
        self._ears.flush()

    async def _clear(self, event: dict[str, Any]) -> None:
        await self.close()
        self._put(self._told.event("input_audio_buffer.cleared"))

    def _tell(self, event: Event, ears: Live) -> None:
        """Called in the ears' thread."""

        def put() -> None:
            if ears is self._ears:
                for each in self._told.events(event):
                    self._put(each)

        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(put)

    def _put(self, event: dict[str, Any]) -> None:
        self._outbox.put_nowait(event)

    def _shown(self) -> dict[str, Any]:
        usual = ChunkingOptions().suited_to(self._service.processor.config)
        return self._settings.shown(usual.pause)
