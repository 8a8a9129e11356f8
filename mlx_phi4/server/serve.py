"""A server from its start to its end: loading, listening, signals, draining."""

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable

import h11
import uvicorn
import websockets  # noqa: F401, which uvicorn asks for only when it starts
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..distributed import leave
from ..errors import Phi4Error
from .app import make_app
from .engine import Engine
from .realtime_events import LARGEST_MESSAGE
from .service import Service

HEAD_SECONDS = 20  # that a client may take to send a request's head
CLOSING_SECONDS = 5  # for the last bytes of answers that were ended
PONG_SECONDS = 120  # for a sign of life on a WebSocket; one that sends too fast is not read for a while
FILES = 8192  # connections and temporary files, where the system allows so many


class PatientProtocol(H11Protocol):
    """HTTP, with an end to patience: a head that never ends is cut off."""

    _waiting = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class Server(uvicorn.Server):
    """Uvicorn, which here drains before it stops."""

    def __init__(self, service: Service, *, grace: float = 30.0, root_path: str = ""):
        self.service, self._grace = service, grace
        self._drained: asyncio.Task | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            make_app(service),
            http=PatientProtocol,
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE,
            ws_ping_timeout=PONG_SECONDS,
            lifespan="off",
            log_config=None,
            access_log=False,
            log_level="warning",
            server_header=False,
            root_path=root_path,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame) -> None:
        """The first signal begins to drain, the second ends the process."""
        if self.service.draining:
            leave(128 + sig)
            os._exit(128 + sig)
        self.stop()

    def stop(self) -> None:
        """Refuse new requests, finish those that run, then end. From any thread or signal."""
        self.service.draining = True
        if self._loop is None:
            self.should_exit = True
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        deadline = self._loop.time() + self._grace
        while self.service.in_flight and self._loop.time() < deadline:
            await asyncio.sleep(0.05)
        if self.service.engine is not None:
            await asyncio.to_thread(self.service.engine.stop)  # what is left ends with an error
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port that is taken is known before a model is loaded. Raises Phi4Error."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise Phi4Error(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    name: str,
    service: Service,
    bound: socket.socket,
    open_engine: Callable[[], Engine],
    *,
    grace: float = 30.0,
    root_path: str = "",
) -> None:
    """Listen, load in a thread of its own meanwhile, and serve until a signal comes.

    Raises:
        Phi4Error: the model cannot be loaded.
    """
    _allow_files()
    server, failed = Server(service, grace=grace, root_path=root_path), []

    def load() -> None:
        try:
            engine = open_engine()
            if service.draining:
                return
            engine.start()
            service.open(name, engine)
            print(f"{service.names.served} listens on {address_of(bound)}", flush=True)
        except Exception as error:
            failed.append(error)
            server.should_exit = True

    loading = threading.Thread(target=load, name="loading", daemon=True)
    loading.start()
    server.run(sockets=[bound])
    if failed:
        raise failed[0]
    sys.stdout.flush()
    if loading.is_alive():  # stopped before the model was there: native code is not to be pulled from under it
        leave(0)
        os._exit(0)


def _allow_files() -> None:
    """Some systems begin with 256 open files, fewer than there may be connections."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
