"""A server under load: answers, memory, throughput beside mlx-lm's server, and what HTTP costs one client.

    python benchmarks/server.py --work SOME/FOLDER                     # all parts
    python benchmarks/server.py --work SOME/FOLDER --part load --requests 1000

Every part starts processes of its own on loopback and ends them. ``load`` asks for text, pictures and sound at random,
samples, streams, breaks connections off, under a memory limit that rows have to make way for, and compares each answer
with the one that ``stream_generate`` gives to the request alone. ``soak`` looks at the resident memory of a long life.
``throughput`` and ``single`` run in turns that swap; their ratios are medians with the 95 % interval by bootstrap.
"""

import base64
import http.client
import io
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import click
import numpy as np
import soundfile
from batches import checkpoint
from generation import interval, paired, table
from PIL import Image

from mlx_phi4 import Request, load, stream_generate
from mlx_phi4.decoder.kv_cache import BLOCK
from mlx_phi4.evaluation.speed import machine
from mlx_phi4.server.budget import Budget
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
from samples import MODES

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
STARTING, ENDING, PATIENCE = 120, 40, 300  # seconds: until a server answers, until it has ended, for an answer
CLIENTS = 16  # of the throughput
ROOM = 12  # blocks of keys and values that the rows under load share
SOAK_ROOM = 64  # the same for the soak, so that prefixes are full early
WIDE = Sizes(hidden=512, layers=8, heads=8, kv_heads=4, mlp=2048, vocab=320)  # single: some 10 ms a token
WORDS = ["river", "stone", "light", "seven", "northern", "harbour", "measure", "paper", "window", "answer", "quiet"]


class Lost(Exception):
    """A request got no answer."""


@dataclass
class Server:
    """A process that serves a model under a name, and how to ask it."""

    pid: int
    port: int
    model: str

    @contextmanager
    def opened(self, path: str, body: dict | None = None) -> Iterator[http.client.HTTPResponse]:
        """A response that has begun. Raises Lost."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            data = None if body is None else json.dumps({"model": self.model} | body)
            connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise Lost(f"{response.status}: {response.read()[:300]!r}")
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise Lost(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()

    def get(self, path: str) -> str:
        """What a path shows."""
        with self.opened(path) as response:
            return response.read().decode()

    def whole(self, path: str, body: dict) -> tuple[str, str, int]:
        """Text, reason and tokens of an answer."""
        with self.opened(path, body) as response:
            given = json.loads(response.read())
        choice = given["choices"][0]
        text = choice["text"] if path == TEXT else choice["message"]["content"]
        return text, choice["finish_reason"], given["usage"]["completion_tokens"]

    def stream(self, path: str, body: dict) -> Iterator[tuple[str, str | None, int | None]]:
        """Pieces of an answer, its reason and, if it is told, its tokens; closing it breaks the connection off."""
        with self.opened(path, body | {"stream": True}) as response:
            while (line := response.readline()) != b"data: [DONE]\n":
                if not line:
                    raise Lost("the stream has no end")
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise Lost(str(event["error"]))
                choice = (event["choices"] or [{}])[0]
                text = choice.get("text", "") if path == TEXT else choice.get("delta", {}).get("content") or ""
                usage = event.get("usage") or {}
                yield text, choice.get("finish_reason"), usage.get("completion_tokens")

    def metric(self, name: str) -> float:
        return self.metrics()[name]

    def metrics(self) -> dict[str, float]:
        """Figures without labels, by their names."""
        lines = (line.rpartition(" ") for line in self.get("/metrics").splitlines() if line[:1] not in ("", "#"))
        return {name.removeprefix("mlx_phi4_"): float(value) for name, _, value in lines if "{" not in name}

    @property
    def resident(self) -> int:
        """Bytes of the process that lie in memory."""
        return 1024 * int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.pid)]))


@contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen, Callable[[], str]]]:
    """A Python module that runs, and the end of what it wrote to standard error. It is ended with the block."""
    with tempfile.TemporaryFile("w+") as log:
        begun = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=log, text=True)

        def written() -> str:
            log.seek(0)
            return log.read()[-2000:]

        try:
            yield begun, written
        finally:
            begun.terminate()
            try:
                begun.communicate(timeout=ENDING)
            except subprocess.TimeoutExpired:
                begun.kill()
                begun.communicate()


@contextmanager
def ours(model: str | Path, *options: object) -> Iterator[Server]:
    """This package's server."""
    command = "mlx_phi4", "server", "--model", str(model), "--port", "0", *map(str, options)
    with process(*command) as (begun, written):
        late = threading.Timer(STARTING, begun.kill)
        late.start()
        line = begun.stdout.readline()
        late.cancel()
        if " listens on " not in line:
            raise click.ClickException(f"the server did not start: {written()}")
        yield Server(begun.pid, int(line.rpartition(":")[2]), line.partition(" ")[0])


@contextmanager
def peer(folder: Path) -> Iterator[Server]:
    """mlx-lm's server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with process("mlx_lm", "server", "--model", str(folder), "--port", str(port)) as (begun, written):
        server, until = Server(begun.pid, port, "default_model"), time.monotonic() + STARTING
        while True:
            try:
                server.whole(TEXT, {"prompt": "The", "max_tokens": 1})
                break
            except Lost as error:
                if begun.poll() is not None or time.monotonic() > until:
                    raise click.ClickException(f"mlx-lm's server does not answer: {error} {written()}") from None
                time.sleep(0.2)
        yield server


def in_threads(threads: int, work: Callable[[int], None]) -> None:
    """Call ``work`` with the number of each thread, and wait for all."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def letters(length: int, rng: random.Random) -> str:
    """A text of so many letters, each of which is a token of a random checkpoint."""
    return " ".join(rng.choices(WORDS, k=length))[:length]


# load


@dataclass(frozen=True)
class Question:
    """A request's body, and the text and the reason that it gets alone."""

    name: str
    body: dict
    text: str
    reason: str


@dataclass
class Tally:
    """What became of the requests; the locks of a Counter's own are none."""

    counts: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, note: str = "") -> None:
        with self.lock:
            self.counts[what] += 1
            if note:
                self.notes.append(f"{what}: {note}")


def content(request: Request) -> list[dict]:
    """A request in OpenAI's parts."""
    parts = []
    for pixels in request.images or ():
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_base64(data)}"}})
    for samples, rate in request.audios or ():
        data = io.BytesIO()
        soundfile.write(data, samples, rate, format="WAV", subtype="PCM_16")
        parts.append({"type": "input_audio", "input_audio": {"data": _base64(data), "format": "wav"}})
    return [*parts, {"type": "text", "text": request.prompt}]


def _base64(data: io.BytesIO) -> str:
    return base64.b64encode(data.getvalue()).decode()


def questions(model, processor) -> list[Question]:
    """Requests of all modes and of several lengths: greedy, sampled, penalized and ended by a string of their own."""
    rng, found = random.Random(0), []
    lengths = {f"text of {length}": Request(letters(length, rng)) for length in (10, 60, 205, 215, 225, 235, 480, 900)}
    sampled = {"temperature": 1.0, "seed": 7}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 8}
    for number, (name, request) in enumerate((MODES | lengths).items()):
        for options in ({}, *sampled, None):
            options = {"max_tokens": 24 + 12 * (number % 4)} | (
                options if options is not None else _stop(found[-3].text)
            )
            answer = list(stream_generate(model, processor, request.prompt, request.images, request.audios, **options))
            body = {"messages": [{"role": "user", "content": content(request)}]} | options
            found.append(Question(name, body, "".join(each.text for each in answer), answer[-1].finish_reason))
    return found


def _stop(answer: str) -> dict:
    """Two letters from the middle of an answer."""
    inside = [answer[i : i + 2] for i in range(len(answer) // 3, len(answer) - 1) if "\ufffd" not in answer[i : i + 2]]
    return {"stop": [inside[0]]} if inside else {}


class Client:
    """A thread that asks at random until all has been asked or the time is over."""

    def __init__(self, server: Server, asked: list[Question], tally: Tally):
        self.server, self.asked, self.tally = server, asked, tally

    def run(self, seed: int, numbers: Iterator[int], requests: int, until: float) -> None:
        rng = random.Random(seed)
        while next(numbers) < requests and time.monotonic() < until:
            question, streamed = rng.choice(self.asked), rng.random() < 0.6
            self.tally.add("requests")
            try:
                answer = self._streamed(question, rng) if streamed else self._whole(question, rng)
            except Lost as error:
                self.tally.add("lost", f"{question.name}: {error}")
                continue
            if answer is None:
                self.tally.add("cancelled")
            elif answer == (question.text, question.reason):
                self.tally.add("right")
            else:
                self.tally.add("different", f"{question.name}: {answer} and not {question.text, question.reason}")
            time.sleep(rng.random() / 20)

    def _streamed(self, question: Question, rng: random.Random) -> tuple[str, str] | None:
        """None: the connection was broken off."""
        left = rng.randrange(1, 16) if rng.random() < 0.25 else None
        text, reason = "", None
        pieces = self.server.stream(CHAT, question.body)
        for piece, ended, _ in pieces:
            text, reason = text + piece, ended or reason
            if left is not None:
                left -= 1
                if not left and reason is None:
                    pieces.close()
                    return None
        return text, reason

    def _whole(self, question: Question, rng: random.Random) -> tuple[str, str] | None:
        """None: the connection was broken off before the answer."""
        if rng.random() > 0.1:
            return self.server.whole(CHAT, question.body)[:2]
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        body = json.dumps({"model": self.server.model} | question.body)
        try:
            connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
            time.sleep(rng.random())
        except OSError as error:
            raise Lost(str(error)) from error
        finally:
            connection.close()
        return None


class Watch:
    """Reads a server's figures four times a second and keeps the largest."""

    def __init__(self, server: Server, tally: Tally):
        self.server, self.tally = server, tally
        self.most: Counter = Counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.25):
            try:
                found = self.server.metrics()
            except Lost as error:
                self.tally.add("metrics that failed", str(error))
                continue
            found["held_bytes"] = sum(found[f"{what}_bytes"] for what in ("row", "prefix", "media"))
            for name in ("held_bytes", "active_bytes", "running_rows", "waiting_requests"):
                self.most[name] = max(self.most[name], found[name])


def measure_load(work: Path, requests: int, minutes: float) -> list[str]:
    """64 clients at once under a small budget."""
    folder = write_random_checkpoint(work / "reduced")
    model, processor = load(folder, lazy=False)
    asked = questions(model, processor)
    unbounded = Budget.of(model, 10**12)
    budget = ROOM * BLOCK * unbounded.token
    limit = 10**12 - unbounded.total + budget
    tally, numbers, began = Tally(), count(), time.monotonic()
    with ours(folder, "--memory-limit", limit / 1e9) as server:
        client = Client(server, asked, tally)
        with Watch(server, tally) as watch:
            in_threads(64, lambda seed: client.run(seed, numbers, requests, began + 60 * minutes))
        seconds, left = time.monotonic() - began, _left(server)
        figures = server.metrics()
    counts = tally.counts
    return [
        f"load: {counts['requests']} requests ({len(asked)} different ones) of 64 clients in {seconds:.0f} s",
        *(f"  {name}: {counts[name]}" for name in ("right", "different", "lost", "cancelled", "metrics that failed")),
        f"  preemptions: {figures['preemptions']:.0f}, evictions of prefixes: {figures['evictions']:.0f}",
        f"  rows at once: {watch.most['running_rows']:.0f}, requests that waited: {watch.most['waiting_requests']:.0f}",
        f"  most bytes held, MB: {watch.most['held_bytes'] / 1e6:.2f} of a budget of {budget / 1e6:.2f}",
        f"  most memory of arrays, MB: {watch.most['active_bytes'] / 1e6:.1f} of a limit of {limit / 1e6:.1f}",
        f"  rows and requests left: {left}, their bytes: {figures['row_bytes']:.0f}",
        *(f"  {note}" for note in tally.notes[:10]),
    ]


def _left(server: Server, seconds: float = 10.0) -> int:
    """Rows and requests that are still there when all clients have gone."""
    until = time.monotonic() + seconds
    while True:
        health = json.loads(server.get("/health"))
        left = health["running"] + health["waiting"]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


# soak


def measure_soak(work: Path, requests: int, minutes: float) -> list[str]:
    """Small requests of 8 clients, and the memory of the process."""
    model, _ = load("phi4-tiny")
    unbounded = Budget.of(model, 10**12)
    limit = 10**12 - unbounded.total + SOAK_ROOM * BLOCK * unbounded.token
    tally, numbers, began = Tally(), count(), time.monotonic()
    until, marks = began + 60 * minutes, []
    with ours("phi4-tiny", "--memory-limit", limit / 1e9) as server:

        def small(seed: int) -> None:
            rng = random.Random(seed)
            while (number := next(numbers)) < requests and time.monotonic() < until:
                if number % max(requests // 10, 1) == 0:
                    marks.append((number, server.resident, time.monotonic() - began))
                text = f"What is {rng.randrange(1000)} + {rng.randrange(1000)}?"
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1 + number % 3}
                tally.add("requests")
                try:
                    server.whole(CHAT, body)
                except Lost as error:
                    tally.add("lost", str(error))

        in_threads(8, small)
        left = _left(server)
        marks.append((tally.counts["requests"], server.resident, time.monotonic() - began))
    marks.sort()
    early, last = marks[1][1], marks[-1][1]
    return [
        f"soak: {tally.counts['requests']} requests, {tally.counts['lost']} lost, {left} left",
        *(f"  after {done}: {size / 1e6:.1f} MB, {seconds:.0f} s" for done, size, seconds in marks),
        f"  growth since {marks[1][0]}: {last / early - 1:+.1%}",
        *(f"  {note}" for note in tally.notes[:10]),
    ]


# throughput


def measure_throughput(work: Path, rounds: int, each: int = 2) -> list[str]:
    """Clients with prompts of 16 to 400 tokens and 8 to 64 new ones, beside mlx-lm's server."""
    folder = checkpoint(work)
    lengths, limits = np.geomspace(16, 400, CLIENTS * each).astype(int), np.linspace(8, 64, CLIENTS * each).astype(int)
    with ours(folder) as mine, peer(folder) as theirs:

        def measured(server: Server, turns: Iterator[int]) -> Callable[[], dict]:
            def turn() -> dict:
                rng = random.Random(next(turns))  # new prompts each round, the same for both
                prompts = [letters(length, rng) for length in rng.sample(lengths.tolist(), len(lengths))]
                asked = list(zip(prompts, rng.sample(limits.tolist(), len(limits)), strict=True))
                made = [0] * len(asked)

                def ask(client: int) -> None:
                    for number in range(client, len(asked), CLIENTS):
                        prompt, most = asked[number]
                        body = {"prompt": prompt, "max_tokens": most, "temperature": 0}
                        made[number] = _patiently(server, body)

                began = time.perf_counter()
                in_threads(CLIENTS, ask)
                return {"tokens": sum(made) / (time.perf_counter() - began), "made": made}

            return turn

        found = paired(measured(mine, count()), measured(theirs, count()), rounds)
    made = [[number for row in rows for number in row["made"]] for rows in found]
    same = sum(a == b for a, b in zip(*made, strict=True))
    what = f"{CLIENTS} clients, 16 to 400 prompt tokens, 8 to 64 new, over mlx-lm's server"
    lines = [_line(what, "answer tokens a second", found, "tokens")]
    return [
        table(lines),
        f"\nTokens made: {sum(made[0])} and {sum(made[1])}, as many in {same} of {len(made[0])} answers.",
    ]


def _line(what: str, figure: str, found: tuple[list[dict], list[dict]], name: str) -> dict:
    mine, theirs = ([row[name] for row in rows] for rows in found)
    ratio = interval([a / b for a, b in zip(mine, theirs, strict=True)])
    return {"what": what, "figure": figure, "ours": np.median(mine), "peer": np.median(theirs), "ratio": ratio}


def _patiently(server: Server, body: dict) -> int:
    """Tokens of an answer. mlx-lm's server has a backlog of five connections and resets what exceeds it: ask again."""
    while True:
        try:
            return server.whole(TEXT, body)[2]
        except Lost as error:
            if not isinstance(error.__cause__, ConnectionResetError):
                raise
            time.sleep(0.01)


# single


def measure_single(work: Path, rounds: int, prompt: int = 32, answer: int = 64) -> list[str]:
    """One client over HTTP, beside the Python interface."""
    folder = write_random_checkpoint(work / "single", "text", WIDE)
    model, processor = load(folder, lazy=False)
    options = {"max_tokens": answer, "min_tokens": answer}

    def python(text: str) -> Iterator[str]:
        return (each.text for each in stream_generate(model, processor, text, raw=True, **options))

    with ours(folder) as server:

        def over_http(text: str) -> Iterator[str]:
            return (piece for piece, _, _ in server.stream(TEXT, {"prompt": text} | options))

        def measured(ask: Callable[[str], Iterator[str]], turns: Iterator[int]) -> Callable[[], dict]:
            def turn() -> dict:
                text, began, first = letters(prompt, random.Random(next(turns))), time.perf_counter(), None
                for piece in ask(text):
                    if piece and first is None:
                        first = time.perf_counter()
                ended = time.perf_counter()
                # to the first piece of text and from there on; in both ways the same pieces
                return {"rate": 1 / (first - began), "pace": (answer - 1) / (ended - first)}

            return turn

        found = paired(measured(over_http, count()), measured(python, count()), rounds)
    what = f"one client, {prompt} prompt tokens, {answer} new, over stream_generate"
    lines = [
        _line(what, "first tokens a second (1 / time to the first)", found, "rate"),
        _line(what, "answer tokens a second", found, "pace"),
    ]
    return [table(lines)]


PARTS = ("load", "soak", "throughput", "single")


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints and results.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Repeatable; without it, all.")
@click.option("--requests", type=click.IntRange(1), help="Of load and soak.  [default: 1000 and 10000]")
@click.option("--minutes", default=6.0, show_default=True, help="After which load and soak ask no more.")
@click.option("--rounds", default=9, show_default=True, help="Counted rounds of throughput and single.")
def main(work: Path, parts: tuple[str, ...], requests: int | None, minutes: float, rounds: int):
    """Measure servers on loopback."""
    work.mkdir(parents=True, exist_ok=True)
    measure = {
        "load": lambda: measure_load(work, requests or 1000, minutes),
        "soak": lambda: measure_soak(work, requests or 10_000, minutes),
        "throughput": lambda: measure_throughput(work, rounds),
        "single": lambda: measure_single(work, rounds),
    }
    click.echo(f"{machine()}\n")
    for part in parts or PARTS:
        click.echo("\n".join(measure[part]()) + "\n")


if __name__ == "__main__":
    main()
