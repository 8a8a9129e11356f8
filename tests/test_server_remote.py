"""Pictures at addresses: from hosts that are allowed, at public addresses, and nothing else."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from serving import running

from mlx_phi4.server import remote
from mlx_phi4.server.errors import RequestError
from mlx_phi4.server.remote import Fetcher

SIGN = Path(__file__).parents[1] / "examples" / "media" / "sign.png"


@contextmanager
def site(handler):
    """A web server of this machine; its port."""
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class Pictures(BaseHTTPRequestHandler):
    """/sign.png is a picture, /long too many bytes, /slow a byte at a time, /away a redirect."""

    def do_GET(self):
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/sign.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/slow":
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.05)
            return
        self.wfile.write(SIGN.read_bytes() if self.path == "/sign.png" else b"x" * 200_000)

    def log_message(self, *arguments):
        pass


def test_pictures_are_fetched_from_public_addresses_of_allowed_hosts_alone(monkeypatch):
    with site(Pictures) as port:
        fetch = Fetcher(frozenset({"localhost", "pictures.example"}), 100_000)
        for url, message in (
            (f"http://localhost:{port}/sign.png", "not at a public address"),
            (f"http://127.0.0.1:{port}/sign.png", "not fetched from '127.0.0.1'"),
            ("http://other.example/x.png", "not fetched from 'other.example'"),
            (f"http://user:word@localhost:{port}/sign.png", "not fetched"),
            ("http://localhost:99999/x", "not an address"),
            ("http://localhost/a b", "%XX"),
        ):
            with pytest.raises(RequestError, match=message):
                fetch(url, "here")
        looked_up = {"pictures.example": "127.0.0.1"}
        monkeypatch.setattr(remote, "_public_address", lambda host, port: looked_up[host])  # as if it were public
        at = f"http://pictures.example:{port}"
        assert fetch(f"{at}/sign.png", "here") == SIGN.read_bytes()
        with pytest.raises(RequestError, match="redirects are not followed"):
            fetch(f"{at}/away", "here")
        with pytest.raises(RequestError, match="larger than 100000 bytes"):
            fetch(f"{at}/long", "here")
        with monkeypatch.context() as patch:
            patch.setattr(remote, "FETCH_SECONDS", 0.5)
            began = time.monotonic()
            with pytest.raises(RequestError, match="longer than"):
                fetch(f"{at}/slow", "here")
            assert time.monotonic() - began < 2
        with running(media_hosts=frozenset({"pictures.example"})) as server:
            parts = [{"type": "image_url", "image_url": {"url": f"{at}/sign.png"}}]
            parts.append({"type": "text", "text": "what shape is it"})
            answer = server.post({"model": "phi4-tiny", "messages": [{"role": "user", "content": parts}]})
            assert answer.json()["choices"][0]["message"]["content"] == "star"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("10.0.0.1", False),
        ("127.1.2.3", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:0001::", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
    ],
)
def test_what_counts_as_public(address, public):
    assert remote._public(address) == public
