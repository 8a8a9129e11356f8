"""Around all endpoints: who may call, how much may be sent, errors in OpenAI's form, and a line of log for each call.

The server listens to browsers, too: a page that rebinds its own name to 127.0.0.1 is told by the Host header, a page
that posts to another origin by Origin.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import sys
import time
import traceback
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Phi4Error
from .errors import RequestError, error_body, error_headers, status_of
from .jobs import ServerError
from .service import Service
from .wire import ClientGone, Json

OPEN_PATHS = ("/health", "/")  # need no key: the page asks for it
WORK_PATHS = ("/v1/chat/", "/v1/completions", "/v1/audio/")  # counted as work for the engine
BODY_SECONDS = 30  # without a byte of a body that was announced
SLOWEST_BODY = 600  # seconds for all of it
BODIES = 8  # of the largest size that may lie in memory at once
DRAINED, DRAIN_SECONDS = 256_000_000, 10  # of a body that is refused, that a client may still send
CLIENT_GONE = 499  # in the log, as nginx has it
OFFERED = "openai-insecure-api-key."
log = logging.getLogger("mlx_phi4.server")


class Guard:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service
        keys = service.settings.api_key
        self._key = keys.encode("utf-8") if keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (self.app if scope["type"] == "lifespan" else self._socket)(scope, receive, send)
            return
        line = Line(scope)
        scope["log"] = line.facts

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                line.status = message["status"]
                await body.drain()
            await send(message)

        body = scope["body"] = Body(receive, self.service, scope)
        work = line.path.startswith(WORK_PATHS)
        self.service.in_flight += work
        try:
            body.check_length()
            self._check(scope, line.path, work)
            await self.app(scope, body, sending)
        except ClientGone:
            line.facts["gone"] = True
        except Exception as error:
            if not isinstance(error, Phi4Error):
                line.facts["error"] = where(error)
            if line.status is None:
                await answer(error)(scope, body, sending)
        finally:
            self.service.in_flight -= work
            body.release()
            line.write(self.service)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket: what is refused before it is accepted gets an answer of HTTP."""
        line = Line(scope)
        scope["log"] = line.facts

        async def sending(message: Message) -> None:
            line.status = 101 if message["type"] == "websocket.accept" else line.status or message.get("status")
            await send(message)

        self.service.in_flight += 1
        try:
            self._check(scope, line.path, True)
            await self.app(scope, receive, sending)
        except Exception as error:
            if not isinstance(error, Phi4Error):
                line.facts["error"] = where(error)
            if line.status is None:
                await answer(error)(scope, receive, sending)
        finally:
            self.service.in_flight -= 1
            line.write(self.service)

    def _check(self, scope: Scope, path: str, work: bool) -> None:
        """Raises RequestError, ServerError."""
        settings, headers = self.service.settings, dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if settings.hosts is not None and host_name(host) not in settings.hosts:
            raise RequestError(f"the Host {host[:120]!r} is not one of this server's; see --allowed-host", 403)
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not allowed_origin(origin, host, settings.origins):
            raise RequestError(f"pages of {origin[:120]!r} may not call this server; see --allow-origin", 403)
        if path not in OPEN_PATHS and scope.get("method") != "OPTIONS":
            self._check_key(headers.get(b"authorization", b"") or offered_key(scope))
        if work and self.service.in_flight > settings.max_requests:
            raise ServerError("too many requests are waiting", 429, retry_after=5)

    def _check_key(self, given: bytes) -> None:
        if self._key is None:
            return
        scheme, _, key = given.partition(b" ")
        if not given:
            raise RequestError("an API key is needed: Authorization: Bearer KEY", 401)
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise RequestError("the API key is wrong", 401)


class Body:
    """A request's ``receive`` that counts bytes and does not wait forever for the next."""

    def __init__(self, receive: Receive, service: Service, scope: Scope):
        self._service, most = service, service.settings.max_body
        self._receive, self._left, self._most = receive, most, most
        self._held = 0  # bytes that count for BODIES
        self._complete = self._refused = False
        self._deadline = time.monotonic() + SLOWEST_BODY
        self._headers = dict(scope["headers"])

    def check_length(self) -> None:
        """Raises RequestError for a body that is announced as too large."""
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._most:
            raise self._too_large()

    async def drain(self) -> None:
        """Read what an answer does not need: a client that still sends would miss it."""
        if b"expect" in self._headers:
            return  # it waits to be asked
        self.release()
        self._refused = True
        self._left = max(self._left, DRAINED)
        with contextlib.suppress(ClientGone, ServerError, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._complete:
                    await self()

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(min(BODY_SECONDS, max(0, self._deadline - time.monotonic()))):
                message = await self._receive()
        except TimeoutError:
            raise RequestError("the body came too slowly, or not at all", 408) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        size = len(message.get("body", b""))
        self._left -= size
        if self._left < 0:
            raise self._too_large()
        if not self._refused:
            self._hold(size)
        self._complete = not message.get("more_body", False)
        return message

    def release(self) -> None:
        """The body is needed no longer."""
        self._service.held -= self._held
        self._held = 0

    def _hold(self, size: int) -> None:
        self._held += size
        self._service.held += size
        if self._service.held > BODIES * self._most:
            raise ServerError("too many large requests at once", 429, retry_after=5)

    def _too_large(self) -> RequestError:
        return RequestError(f"the body has more than {self._most} bytes, the most that this server takes", 413)


class Line:
    """A call's line in the log: never what was said, nor keys."""

    def __init__(self, scope: Scope):
        root = scope.get("root_path", "")
        self.method, self.path = scope.get("method", "GET"), scope["path"].removeprefix(root) or "/"
        self.status: int | None = None
        self.facts: dict = {}
        self._begun = time.perf_counter()

    def write(self, service: Service) -> None:
        """Log and count it."""
        seconds = time.perf_counter() - self._begun
        gone, failed = self.facts.pop("gone", False), self.facts.pop("failed", None)
        status = CLIENT_GONE if gone else failed or self.status or 500
        endpoint = self.path if self.path in KNOWN_PATHS else "other"
        service.metrics.requests.labels(endpoint, str(status)).inc()
        service.metrics.length.observe(seconds)
        facts = {"method": self.method, "path": self.path[:200], "status": status, "seconds": round(seconds, 3)}
        log.info("a request", extra={"facts": facts | self.facts})


KNOWN_PATHS = (
    "/",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/realtime",
    "/health",
    "/metrics",
)  # labels of metrics: others could be any number


class LineFormatter(logging.Formatter):
    """A record in one line, as words or as JSON."""

    def __init__(self, as_json: bool):
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", None) or {"message": " ".join(record.getMessage().split())}
        if record.exc_info and record.exc_info[1] is not None:
            facts |= {"error": where(record.exc_info[1])}
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))
        if self._as_json:
            return json.dumps({"time": moment, "level": record.levelname.lower()} | facts)
        return " ".join([moment, *(plain(name, value) for name, value in facts.items())])


def plain(name: str, value: object) -> str:
    """A fact as a word; what a client spelled cannot forge another line."""
    text = str(value).encode("unicode_escape").decode("ascii")
    return text if name in ("method", "path", "status", "message") else f"{name}={text}"


def where(error: BaseException) -> str:
    """An error that nobody expected, in a line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def answer(error: Exception) -> Json:
    """An error as a response."""
    return Json(error_body(error), status_of(error), headers=error_headers(error))


def offered_key(scope: Scope) -> bytes:
    """The key that a page offers among a WebSocket's subprotocols, as it can send no header of its own."""
    keys = (name.removeprefix(OFFERED) for name in scope.get("subprotocols", ()) if name.startswith(OFFERED))
    return b"Bearer " + next(keys, "").encode("latin-1", "replace") if scope["type"] == "websocket" else b""


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def allowed_origin(origin: str, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a page may call: the server's own, or one that was named."""
    return origin in allowed or "*" in allowed or urlsplit_host(origin) == host.lower()


def urlsplit_host(origin: str) -> str | None:
    """Host and port of an origin."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


class ToStderr(logging.Handler):
    """Writes lines where standard error is now."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed: nobody reads the log
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


def log_to_stderr(as_json: bool) -> None:
    """One line for each record, on standard error."""
    handler = ToStderr()
    handler.setFormatter(LineFormatter(as_json))
    for name in ("mlx_phi4", "uvicorn", "asyncio"):
        logging.getLogger(name).handlers = [handler]
    logging.getLogger("mlx_phi4").setLevel(logging.INFO)
