"""Plain messages between rank 0 and each of the others over TCP, and who is still there.

A message is a JSON object and bytes behind it; nothing that could run is ever sent. Collectives on a device wait for
ever for one that is gone, and hold the others up with it: a connection that breaks, or one on which nothing came for
a while although each side sends a beat every second, says so within seconds.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ..errors import Phi4Error

BEAT = 1.0  # seconds between signs of life
SILENT_RANK = 10.0  # seconds without one after which a rank counts as lost
MOST_MESSAGE, MOST_DATA = 1 << 26, 1 << 34  # bytes of a message's JSON, and of what follows it
_FRAME = struct.Struct(">IQ")


class Broken(Phi4Error):
    """The other end is not there any more."""


class Connection:
    """One end of a connection; any thread may send, one receives."""

    def __init__(self, connected: socket.socket):
        connected.settimeout(None)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._sending = connected, threading.Lock()

    def send(self, message: dict, data: bytes | memoryview = b"") -> None:
        """Raises Broken."""
        text = json.dumps(message, separators=(",", ":")).encode()
        try:
            with self._sending:
                self._socket.sendall(_FRAME.pack(len(text), len(data)) + text)
                if data:
                    self._socket.sendall(data)
        except OSError:
            raise Broken("the connection is gone") from None

    def receive(self, seconds: float | None = None) -> tuple[dict, bytes]:
        """The next message. Raises Broken: there is none, nothing came for so long, or it is no message of ours."""
        try:
            self._socket.settimeout(seconds)
            header, count = _FRAME.unpack(self._exactly(_FRAME.size))
            if header > MOST_MESSAGE or count > MOST_DATA:
                raise ValueError
            message = json.loads(self._exactly(header))
            if not isinstance(message, dict):
                raise ValueError
            return message, self._exactly(count)
        except (OSError, ValueError, RecursionError):
            raise Broken("the connection is gone") from None

    def close(self) -> None:
        """End it; whoever receives on it is woken."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        left = memoryview(data)
        while left:
            received = self._socket.recv_into(left)
            if not received:
                raise OSError
            left = left[received:]
        return bytes(data)


class Line:
    """A connection that is listened to in a thread of its own, with a beat in both directions.

    Args:
        heard: called with each message and its bytes, in the listening thread.
        ended: called once, when the other end is gone or silent.
    """

    def __init__(self, connection: Connection, heard: Callable[[dict, bytes], None], ended: Callable[[], None]):
        self._connection, self._heard, self._ended = connection, heard, ended
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to listen and to beat."""
        for name, work in (("listening", self._listen), ("beating", self._beat)):
            threading.Thread(target=work, name=name, daemon=True).start()

    def send(self, message: dict, data: bytes | memoryview = b"") -> None:
        """As ``Connection.send``."""
        self._connection.send(message, data)

    def close(self) -> None:
        """Nothing more is heard, and no end is told."""
        self._closed.set()
        self._connection.close()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                message, data = self._connection.receive(SILENT_RANK)
            except Broken:
                if not self._closed.is_set():
                    self._closed.set()
                    self._ended()
                return
            if message.get("do") != "beat":
                self._heard(message, data)

    def _beat(self) -> None:
        with suppress(Broken):
            while not self._closed.wait(BEAT):
                self.send({"do": "beat"})


def deadline(seconds: float) -> Callable[[], float]:
    """A function that tells how many seconds of these are left, 0 at least."""
    until = time.monotonic() + seconds
    return lambda: max(until - time.monotonic(), 0.0)
