"""The ASGI app: endpoints behind the guard."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from ..errors import Phi4Error
from .errors import RequestError
from .guard import Guard, answer
from .jobs import ServerError
from .page import Page
from .realtime import Realtime
from .routes import Routes
from .service import Service
from .transcriptions import Transcriptions


def make_app(service: Service) -> ASGIApp:
    """All endpoints of a service, behind its guard."""
    routes, audio = Routes(service), Transcriptions(service)
    table = [
        Route("/", Page(service).get),
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/responses", routes.responses, methods=["GET", "POST"]),
        Route("/v1/models", routes.models),
        Route("/v1/models/{name:path}", routes.model),
        Route("/v1/audio/transcriptions", audio.transcriptions, methods=["POST"]),
        Route("/v1/audio/translations", audio.translations, methods=["POST"]),
        WebSocketRoute("/v1/realtime", Realtime(service).session),
        Route("/health", routes.health),
        Route("/metrics", routes.metrics),
    ]
    origins = list(service.settings.origins)
    pages = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app = Starlette(
        routes=table,
        middleware=[pages] if origins else [],
        exception_handlers={HTTPException: _protocol_error, Phi4Error: _any_error, Exception: _any_error},
    )
    return Guard(app, service)


def _any_error(request: Request, error: Exception) -> Response:
    return answer(error)


def _protocol_error(request: Request, error: HTTPException) -> Response:
    """What Starlette refuses: unknown paths, other methods, forms that are none."""
    path = request.url.path[:120]
    if error.status_code == 404:
        return answer(RequestError(f"there is no {path} here", 404))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return answer(RequestError(f"{path} does not take {request.method}, only {allowed}", 405))
    return answer(ServerError(str(error.detail), error.status_code))
