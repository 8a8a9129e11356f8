"""A model hub on this machine: as much of its interface as a download needs, and ways to fail."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves ``folder`` as the repository ``owner/model``; ``cut`` names a file whose bytes stop half way."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.url, self.cut, self.requests = folder, url, None, []

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that send huggingface-hub here, with its cache under ``home``."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "*",
        }  # fmt: skip


@contextmanager
def fake_hub(folder: Path):
    """A running FakeHub."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            hub.requests.append(self.path)
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/owner/model/tree/"):
                files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
                self.send_json([entry(p) for p in files], body)
            elif path.startswith("/api/models/owner/model"):
                siblings = [{"rfilename": str(p.relative_to(folder))} for p in folder.rglob("*") if p.is_file()]
                self.send_json({"id": "owner/model", "sha": COMMIT, "siblings": siblings}, body)
            elif path.startswith("/owner/model/resolve/"):
                self.send_file(folder / path.split("/", 5)[5], body)
            else:
                self.send_error_code("RepoNotFound")

        def send_json(self, content, body):
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def send_file(self, path, body):
            if not path.is_file():
                self.send_error_code("EntryNotFound")
                return
            data = path.read_bytes()
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag(path)}"')
            self.end_headers()
            if body:
                half = hub.cut == path.name
                self.wfile.write(data[start : len(data) // 2] if half else data[start:])

        def send_error_code(self, code):
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    def entry(path):
        return {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": etag(path)}

    def etag(path):
        return hashlib.sha1(path.read_bytes()).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(folder, f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
