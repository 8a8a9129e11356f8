"""Pictures at http(s) addresses, where the person who runs the server allows their hosts."""

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urlsplit

from .errors import RequestError

FETCH_SECONDS = 20.0  # seconds for the whole of an address
FETCH_BYTES = 1 << 16  # taken at once, at most


class Fetcher:
    """Fetches from the hosts that were allowed, and from public addresses alone.

    A name is looked up once and that very address is connected to, so that a name cannot mean one thing when it is
    checked and another when it is used. Redirects are not followed, and nothing of ours goes along.

    Args:
        hosts: names as they stand in addresses.
        most: bytes of a picture.
    """

    def __init__(self, hosts: frozenset[str], most: int):
        self._hosts, self._most = hosts, most

    def __call__(self, url: str, where: str) -> bytes:
        """The bytes at an address; ``where`` is its place in the body, for messages. Raises RequestError."""

        def refused(why: str) -> RequestError:
            return RequestError(f"{where}: {why}", param=where, code="invalid_media")

        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}[parts.scheme.lower()]
        except (ValueError, KeyError):
            raise refused("is not an address of a picture") from None
        if host not in self._hosts or parts.username is not None:
            raise refused(f"pictures are not fetched from {host!r}; send the picture itself as a data: URL")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not path.isascii() or not path.isprintable() or " " in path:
            raise refused("the path of the address holds characters that are to be written as %XX")
        try:
            return self._get(host, port, path, parts.scheme.lower() == "https", refused)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise refused(f"{host} could not be asked: {type(error).__name__}") from None

    def _get(self, host: str, port: int, path: str, secure: bool, refused) -> bytes:
        until = time.monotonic() + FETCH_SECONDS
        address = _public_address(host, port)
        if address is None:
            raise refused(f"{host} is not at a public address")
        connection = http.client.HTTPConnection(host, port, timeout=FETCH_SECONDS)
        raw = socket.create_connection((address, port), timeout=FETCH_SECONDS)
        try:
            connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
            connection.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status != 200:
                raise refused(f"{host} answered {response.status}; redirects are not followed")
            data = b""
            while piece := response.read1(FETCH_BYTES):  # what is there: a slow host must not fill a piece first
                data += piece
                if len(data) > self._most or time.monotonic() > until:
                    raise refused(
                        f"the picture is larger than {self._most} bytes, or took longer than {FETCH_SECONDS:g} s"
                    )
            return data
        finally:
            connection.close()
            raw.close()


def _public_address(host: str, port: int) -> str | None:
    """An address of a host, if all that it has are public: none private, loopback, link-local or reserved."""
    found = {each[4][0] for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    return min(found) if found and all(_public(address) for address in found) else None


def _public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or inner.is_global)
