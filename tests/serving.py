"""A real server on a free port of this machine, in a thread, and official clients for it."""

import threading
import time
from contextlib import contextmanager

import httpx
import openai

import mlx_phi4
from mlx_phi4.server.engine import Engine
from mlx_phi4.server.serve import Server, address_of, listen
from mlx_phi4.server.service import Service, Settings

SHARED = {}  # models by name that other ranks share with this process, see ranks_job.py
LOCAL = frozenset({"127.0.0.1", "localhost"})


class Running:
    """A server that answers: its service, where it is, and clients."""

    def __init__(self, service: Service, url: str, server: Server):
        self.service, self.url, self.server = service, url, server
        self.loaded = ()  # model and processor
        self.http = httpx.Client(base_url=url, timeout=30)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=30)

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def post(self, body=None, path="/v1/chat/completions", **options) -> httpx.Response:
        """A chat body, or anything else."""
        given = {"content": body} if isinstance(body, (bytes, str)) else {} if body is None else {"json": body}
        return self.http.post(path, **given, **options)

    def free(self, seconds: float = 5.0) -> bool:
        """Whether nothing runs or waits, before long."""
        until = time.monotonic() + seconds
        while not self.engine.idle and time.monotonic() < until:
            time.sleep(0.01)
        return self.engine.idle


@contextmanager
def running(model="phi4-tiny", limits=None, max_queue=256, grace=5.0, speculation="none", **settings):
    """A server of this model for as long as the block runs."""
    service = Service(Settings(**{"hosts": LOCAL} | settings))
    loaded = model if isinstance(model, tuple) else SHARED.get(model) or mlx_phi4.load(model)
    bound = listen("127.0.0.1", 0)
    server = Server(service, grace=grace)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    made = Engine(*loaded, limits, max_queue=max_queue, speculate=lambda *loaded: speculation)
    made.start()
    service.open("phi4-tiny", made)
    while not server.started:
        time.sleep(0.005)
    here = Running(service, address_of(bound), server)
    here.loaded = loaded
    try:
        yield here
    finally:
        here.http.close()
        here.openai.close()
        server.stop()
        thread.join(timeout=20)
        assert not thread.is_alive()
