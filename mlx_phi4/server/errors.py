"""What is wrong with a request, in OpenAI's form."""

import math

from ..errors import Phi4Error
from .jobs import ServerError

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ERROR_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    429: "too_many_requests",
    503: "unavailable",
}


class RequestError(ServerError):
    """As ``ServerError``; ``param`` names the parameter that is meant, ``code`` the kind of error for programs."""

    def __init__(self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None):
        super().__init__(message, status)
        self.param, self.code = param, code


def status_of(error: Exception) -> int:
    """The HTTP status of what went wrong: what a user can mend is 400."""
    if isinstance(error, ServerError):
        return error.status
    return 400 if isinstance(error, Phi4Error) else 500


def error_body(error: Exception) -> dict:
    """``{"error": {"message", "type", "param", "code"}}``; nothing of internals."""
    status = status_of(error)
    message = " ".join(str(error).split()) if isinstance(error, Phi4Error) else f"{type(error).__name__} in the server"
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = getattr(error, "code", None) or ERROR_CODES.get(status)
    return {"error": {"message": message, "type": kind, "param": getattr(error, "param", None), "code": code}}


def error_headers(error: Exception) -> dict[str, str]:
    """When to come again, and how to say who one is."""
    headers = {}
    if (seconds := getattr(error, "retry_after", None)) is not None:
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    if status_of(error) == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def located(error: Phi4Error, where: str) -> RequestError:
    """The error of one medium, which names its place instead of the type of its bytes."""
    text = str(error)
    for noun in ("audio bytes: ", "audio array: ", "video: "):
        text = text.removeprefix(noun)
    if text.startswith("picture (") and "): " in text:
        text = text.partition("): ")[2]
    return RequestError(f"{where}: {text}", param=where, code="invalid_media")
