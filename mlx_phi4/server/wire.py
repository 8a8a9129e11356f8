"""JSON in and out, strictly, and events as a stream."""

import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import RequestError

DEEPEST_BODY = 32  # levels of a request's JSON
MOST_MARKS = 4_000_000  # characters of it beside its strings: a few bytes of JSON become many of memory
# one that lacks its end reaches to the body's: to look for strings again behind each of its quotes would take forever
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BRACKET = re.compile(r"[\[{]|[\]}]")


def dumps(value: Any) -> str:
    """JSON in one line; numbers that are not finite would be an error."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_object(body: bytes) -> dict:
    """A request's JSON object. Raises RequestError: not UTF-8, not JSON, too deep, a name twice, NaN."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 text: {error.reason} at byte {error.start}") from None
    _check_depth(text)
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RequestError:
        raise
    except UnicodeEncodeError:
        raise RequestError("the body holds half a surrogate pair, which is not Unicode text") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {str(error).splitlines()[0][:200]}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is JSON of type {type_name(value)}, expected an object")
    return value


def type_name(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {bool: "boolean", str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _check_depth(text: str) -> None:
    depth = 0
    marks = _STRING.sub("", text)
    if len(marks) > MOST_MARKS:
        raise RequestError("the body holds more numbers, lists and objects than any request needs")
    for bracket in _BRACKET.finditer(marks):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEEPEST_BODY:
            raise RequestError(f"the body is nested deeper than {DEEPEST_BODY} levels")


def _no_constant(name: str):
    raise RequestError(f"the body holds {name}, which is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise RequestError(f"the body holds the number {digits[:40]}, which is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise RequestError(f"the body names {twice[:80]!r} twice", param=twice[:80])
    return found


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content).encode("utf-8", "replace")


class EventStream(Response):
    """Server-sent events. ``close`` is called when they have ended or, at once, when the client goes away."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[str, None], close: Callable[[], None], headers: dict[str, str] | None = None
    ):
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"} | (headers or {}))
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        try:
            async with anyio.create_task_group() as tasks, aclosing(self._events) as events:
                tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope, scope)
                await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
                async for event in events:
                    data = event.encode("utf-8", "replace")
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                tasks.cancel_scope.cancel()  # before the end: afterwards all clients are gone
            if not scope["log"].get("gone"):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope, connection: Scope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    connection["log"]["gone"] = True
    scope.cancel()


async def unless_gone(request, work):
    """What a coroutine returns; it is cancelled when the client goes away, and then ClientGone is raised.

    The request's body must have been read.
    """
    outcome: list = []
    failure: list[Exception] = []

    async def run() -> None:
        try:
            outcome.append(await work)
        except Exception as error:
            failure.append(error)  # a task group would wrap it
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when_gone, request.receive, tasks.cancel_scope, request.scope)
        tasks.start_soon(run)
    if failure:
        raise failure[0]
    if not outcome:
        raise ClientGone
    return outcome[0]


async def server_sent(values: AsyncIterator[dict]) -> AsyncGenerator[str, None]:
    """Objects as events, and the mark that ends OpenAI's streams."""
    async for value in values:
        yield f"data: {dumps(value)}\n\n"
    yield "data: [DONE]\n\n"
