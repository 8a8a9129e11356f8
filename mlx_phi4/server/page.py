"""The page at ``/``: its files put together into one, and headers that let nothing else run in it.

The files are in ``assets/page``. Its scripts are ES modules; together they are one script, each after those that it
imports, in one scope: a name is used once in all of them.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from .service import Service

SOURCES = Path(__file__).parents[1] / "assets" / "page"
MAIN, MARKDOWN_LIBRARY = "main.js", "marked.js"
STYLES = ("page.css", "chat.css", "transcribe.css", "dialogs.css", "narrow.css")
_IMPORT = re.compile(r'^import\s+\{[^}]*\}\s+from\s+"\./(?P<name>[\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const |let |function|async |class )", re.MULTILINE)
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)
HEADERS = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(self), geolocation=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Page:
    """The endpoint ``/`` of one service."""

    def __init__(self, service: Service):
        text, policy = assembled()
        self._body = text.replace("{{max-body}}", str(service.settings.max_body)).encode("utf-8")
        tag = f'"{hashlib.sha256(self._body).hexdigest()[:16]}"'
        self._headers = HEADERS | {"content-security-policy": policy, "etag": tag}

    async def get(self, request: Request) -> Response:
        """/"""
        if request.headers.get("if-none-match") == self._headers["etag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self._body, media_type="text/html; charset=utf-8", headers=self._headers)


@cache
def assembled() -> tuple[str, str]:
    """The page with style and scripts inside, and the content security policy that allows just these."""
    style = "\n".join(map(_read, STYLES))
    library, script = _SOURCE_MAP.sub("", _read(MARKDOWN_LIBRARY)), joined(MAIN)
    text = _read("page.html")
    for mark, part in {"{{style}}": style, "{{library}}": library, "{{script}}": script}.items():
        text = text.replace(mark, part)
    return text, security_policy([library, script], style)


def joined(name: str) -> str:
    """A module and all that it imports, each once and after what it needs itself."""
    done: dict[str, str] = {}

    def visit(module: str) -> None:
        if module in done:
            return
        text = _read(module)
        done[module] = ""  # on its way
        for found in _IMPORT.finditer(text):
            visit(found["name"])
        del done[module]
        done[module] = f"// {module}\n{_EXPORT.sub('', _IMPORT.sub('', text))}"

    visit(name)
    return "\n".join(done.values())


def security_policy(scripts: list[str], style: str) -> str:
    """Only these scripts run, only this server is called, and no text becomes markup.

    ``blob:`` is how a script hands its own lines to the thread that hears the microphone; none but these scripts can
    make such an address.
    """
    allowed = {
        "default-src": "'none'",
        "script-src": " ".join([*map(_source, scripts), "blob:"]),
        "style-src": _source(style),
        "img-src": "blob: data:",
        "media-src": "blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def _read(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")
