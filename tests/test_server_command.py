"""The command: what it refuses to start with, where it listens, how it ends."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from serving import running

from mlx_phi4.commands.server import command, is_loopback

COMMAND = [sys.executable, "-m", "mlx_phi4", "server", "--model", "phi4-tiny", "--port", "0"]
STOP = signal.SIGTERM  # while MLX compiles a kernel for the CPU, the C library's system() lets SIGINT pass unheard
LONG = {
    "model": "phi4-tiny",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 100_000,
    "min_tokens": 100_000,
    "stream": True,
}


@pytest.fixture(autouse=True)
def log_as_before():
    loggers = [logging.getLogger(name) for name in ("mlx_phi4", "uvicorn", "asyncio")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)


@contextmanager
def process(*options):
    """The running command and its address."""
    started = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = started.stdout.readline()
        assert line.startswith("phi4-tiny listens on http://127.0.0.1:")
        yield started, line.split()[-1]
    finally:
        started.kill()
        started.communicate()


def test_a_request_a_log_line_and_an_end():
    with process("--log-json") as (started, url):
        assert httpx.get(f"{url}/health").json()["status"] == "ready"
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=20)
        assert (started.returncode, out) == (0, "")
        (line,) = err.splitlines()
        assert '"path": "/health"' in line and '"status": 200' in line


def test_draining_refuses_ends_with_an_event_and_exits_with_0():
    with (
        process("--grace", "1.5") as (started, url),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG) as ask,
    ):
        lines = ask.iter_lines()
        next(lines)
        started.send_signal(STOP)
        time.sleep(0.3)
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        refused = httpx.post(f"{url}/v1/chat/completions", json=LONG)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        rest = [line for line in lines if line]
        assert '"error"' in rest[-2] and "the server is stopping" in rest[-2] and rest[-1] == "data: [DONE]"
        assert started.wait(timeout=20) == 0
        assert "Traceback" not in started.stderr.read()


def test_a_second_signal_ends_at_once():
    with process() as (started, url), httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG) as ask:
        lines = ask.iter_lines()
        next(lines)
        started.send_signal(STOP)
        time.sleep(0.3)
        started.send_signal(STOP)
        assert started.wait(timeout=3) == 128 + STOP


def test_running_answers_are_finished():
    with running(grace=20) as server:
        answers = []
        body = LONG | {"max_tokens": 400, "min_tokens": 400, "stream": False}
        thread = threading.Thread(target=lambda: answers.append(server.post(body)))
        thread.start()
        while not server.engine.running:
            time.sleep(0.01)
        server.server.stop()
        thread.join()
        assert answers[0].json()["usage"]["completion_tokens"] == 400


SLOW = """
import sys, time
import mlx_phi4.loading
mlx_phi4.loading.load = lambda *_, **__: time.sleep(30)
sys.argv = ["mlx_phi4", "--model", "phi4-tiny", "--port", sys.argv[1]]
from mlx_phi4.commands.server import command
command()
"""


def test_a_signal_while_the_model_is_loaded_ends_it():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = subprocess.Popen([sys.executable, "-c", SLOW, str(port)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/health").json()["status"] == "loading"
            break
        except httpx.ConnectError:
            time.sleep(0.05)
    started.send_signal(STOP)
    assert started.wait(timeout=5) == 0
    assert "Traceback" not in started.stderr.read()


def test_while_it_loads_it_says_so():
    with running() as server:
        engine, server.service.engine = server.service.engine, None
        assert server.http.get("/health").json() == {"status": "loading", "running": 0, "waiting": 0}
        refused = server.post(LONG)
        assert refused.status_code == 503 and "loaded" in refused.json()["error"]["message"]
        assert "retry-after" in refused.headers
        server.service.engine = engine


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--host", "192.168.7.7"], "--api-key"),
        (["--temperature", "3"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--max-rows", "0"], "--max-rows"),
        (["--api-key", " x "], "--api-key"),
        (["--port", "99999"], "--port"),
        (["--host", "no.such.host.invalid", "--api-key", "x"], "cannot listen"),
        (["--model", "no/such/folder"], "no such"),
    ],
)
def test_what_it_does_not_start_with(run_command, monkeypatch, options, says):
    monkeypatch.delenv("MLX_PHI4_API_KEY", raising=False)
    arguments = ["--model", "phi4-tiny", "--port", "0", *options]
    code, out, err = run_command(command, *arguments)
    assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1


def test_a_port_that_is_taken(run_command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run_command(command, "--model", "phi4-tiny", "--port", taken.getsockname()[1])
    assert code == 2 and "cannot listen on 127.0.0.1" in err


def test_a_missing_extra_is_one_line(run_command, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("mlx_phi4.server.serve", "mlx_phi4.server.guard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.types", None)
    code, _, err = run_command(command, "--model", "phi4-tiny", "--port", "0")
    assert code == 2 and 'pip install "mlx_phi4[server]"' in err and len(err.splitlines()) == 1


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "")))


def test_a_server_that_is_killed_leaves_nothing_to_mend():
    with process() as (started, url), httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG) as ask:
        lines = ask.iter_lines()
        next(lines)
        os.kill(started.pid, signal.SIGKILL)
        assert started.wait(timeout=5) == -signal.SIGKILL
    with process() as (_, url):
        assert httpx.get(f"{url}/health").status_code == 200
