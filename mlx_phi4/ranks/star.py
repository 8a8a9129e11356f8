"""The processes of a run and what they say to each other: rank 0 has a line to each of the others.

A rank that is lost ends a run whose ranks share a model. One that shares out work goes on without it, unless it was
rank 0. In the end each process has its own exit code, and one line was said.
"""

import os
import queue
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import Phi4Error
from ..terminal import say_error
from .channel import Broken, Connection, Line
from .meeting import Launch

FAILED = 2  # exit code of all ranks of a run that failed
LAST_SECONDS = 1.5  # that a process has to end in an orderly way
LEAVING_SECONDS = 5.0  # that it has once rank 0 left
OWN_WORDS = 0.5  # seconds that rank 0 may take to say itself what another rank has told already

Reply = Callable[[dict], None]


class Ranks:
    """This process's place among ``size`` of them; without a launch it is alone.

    ``mode`` is tensor (they share a model), data (they share out work) or none.
    """

    def __init__(self, launch: Launch | None = None, mode: str = "none"):
        self._launch, self.mode = launch, mode
        self.rank, self.size = (0, 1) if launch is None else (launch.rank, launch.size)
        self.orders: queue.SimpleQueue[tuple[dict, bytes]] = queue.SimpleQueue()  # what rank 0 told this one to do
        self.lost: dict[int, str] = {}  # rank -> its name
        self.handlers: dict[str, Callable[[int, dict, Reply], None]] = {"gather": self._gathered}
        self.on_lost: list[Callable[[int], None]] = []
        self._lines: dict[int, Line] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._answers: dict[int, queue.SimpleQueue[dict]] = {}
        self._rounds: dict[int, dict[int, Any]] = {}  # values of a gathering, by rank
        self._replies: dict[tuple[int, int], Reply] = {}
        self._asked = self._gatherings = 0
        self._gone: set[int] = set()  # ranks that left in an orderly way
        self.busy = self._all_needed = False  # whether this process cannot go on without rank 0, or without any
        if mode == "tensor":
            self.need_all()
        self._ending = self._told_to_end = False
        self._why: str | None = None
        self._group: Any = None

    def need_all(self) -> None:
        """From now on a rank that is lost ends the run."""
        self.busy = self._all_needed = True

    def connect(self, connections: dict[int, Connection]) -> None:
        """Begin to listen; in the main thread, which is the one that a lost rank ends."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, _end_here)
        for rank, connection in connections.items():
            heard = lambda message, data, rank=rank: self._heard(rank, message, data)  # noqa: E731
            self._lines[rank] = Line(connection, heard, lambda rank=rank: self._lost(rank))
        for line in self._lines.values():
            line.start()

    @property
    def group(self) -> Any:
        """MLX's group of these ranks, made when it is first asked for; all are to ask."""
        if self._group is None and self.size > 1:
            import mlx.core as mx

            backend = "jaccl" if "MLX_JACCL_COORDINATOR" in os.environ else "ring"
            try:
                self._group = mx.distributed.init(strict=True, backend=backend)
            except (RuntimeError, ValueError) as error:
                raise Phi4Error(f"the processes of this run cannot reach each other: {error}") from None
            # MLX holds Python up while it waits for its neighbours: none may be lost before all have found them
            self.gather(None)
        return self._group

    def name(self, rank: int) -> str:
        """A rank for a person."""
        return self._launch.name(rank) if self._launch else f"rank {rank}"

    def gather(self, values: Any) -> list[Any]:
        """What JSON holds of each rank, in their order, None of a lost one; waits for all."""
        if self.size == 1:
            return [values]
        number, self._gatherings = self._gatherings, self._gatherings + 1
        if self.rank:
            return self.ask("gather", {"number": number, "values": values})["values"]
        with self._changed:
            self._contribute(number, 0, values)
            self._changed.wait_for(lambda: self._complete(number))
            self._answer_round(number)
            found = self._rounds.pop(number)
            return [found.get(rank) for rank in range(self.size)]

    def ask(self, kind: str, message: dict) -> dict:
        """Ask rank 0 something, which its handler of this kind answers."""
        with self._lock:
            self._asked += 1
            number = self._asked
            answer = self._answers[number] = queue.SimpleQueue()
        self._send(0, {"do": "ask", "kind": kind, "number": number, "message": message})
        return answer.get()

    def tell(self, message: dict, data: bytes | memoryview = b"") -> None:
        """Rank 0 tells all others what to do next; what they cannot do ends the run."""
        for rank in self._lines:
            self._send(rank, message, data)

    def settle(self, what: Callable[[], Any]) -> Any:
        """Do something that may fail on any rank, and go on when none did. Raises what failed here."""
        try:
            found = what()
        except Phi4Error as error:
            self.fails(str(error))
            raise
        self.gather(None)
        return found

    def fails(self, line: str) -> bool:
        """This process ends with an error. Whether the line is another's to say: that of rank 0."""
        with self._lock:
            self._ending, self._why = True, line
        return self.rank > 0

    def is_lost(self) -> bool:
        """Whether a rank was lost, waiting a moment for the news. Whoever asks is on its way out."""
        with self._changed:
            lost = self._changed.wait_for(lambda: bool(self.lost) or self._told_to_end, LAST_SECONDS)
        _ignore_lost_ranks()
        return lost

    def leave(self, code: int) -> None:
        """Part from the others with this exit code."""
        _ignore_lost_ranks()
        with self._lock:
            self._ending = True
            lines, self._lines = self._lines, {}
        for line in lines.values():
            with suppress(Broken):
                line.send({"do": "bye", "code": code, "why": self._why})
            line.close()

    # -- what comes in -------------------------------------------------------------------------------------------

    def _heard(self, rank: int, message: dict, data: bytes) -> None:
        kind = message.get("do")
        if kind == "ask":
            number = message["number"]
            reply = lambda answer: self._send(rank, {"do": "answer", "number": number, "message": answer})  # noqa: E731
            self.handlers[message["kind"]](rank, message["message"], reply)
        elif kind == "answer":
            self._answers.pop(message["number"]).put(message["message"])
        elif kind == "bye":
            self._left(rank, message)
        elif kind == "end":
            self._end(None)
        else:
            self.orders.put((message, data))

    def _left(self, rank: int, message: dict) -> None:
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()
        why, code = message.get("why"), message.get("code")
        if self.rank:
            if self._waits:
                self._end(None)
                return
            self.orders.put((message, b""))
            if self.busy:  # it may work on, or wait for a sum that rank 0 has no part in any more
                timer = threading.Timer(LEAVING_SECONDS, lambda: os._exit(code or FAILED))
                timer.daemon = True
                timer.start()
        elif why is not None or (code and self._all_needed):
            line = why or f"ended with exit code {code}"
            threading.Timer(OWN_WORDS, self._end, [f"{self.name(rank)}: {line}"]).start()

    @property
    def _waits(self) -> bool:
        """Whether this process waits for an answer of rank 0."""
        with self._lock:
            return bool(self._answers)

    def _lost(self, rank: int) -> None:
        with self._changed:
            if rank in self._gone or self._ending:
                return
            self.lost[rank] = self.name(rank)
            self._changed.notify_all()
        if not self._all_needed and self.rank == 0:
            for tell in self.on_lost:
                tell(rank)
            return
        if not self.busy and not self._waits:  # a program of its own, whose shared work is done
            return
        # nobody else can say it where rank 0 is gone
        self._end(f"{self.name(rank)} is gone: it ended, or is not heard any more" if self.rank <= 1 else None)

    def _end(self, line: str | None) -> None:
        """End this process and the run, whatever it waits for."""
        with self._lock:
            if self._ending:
                return
            self._ending = self._told_to_end = True
            self._changed.notify_all()
            lines = dict(self._lines)
        if line is not None:
            say_error(line)
        if self.rank == 0:
            for each in lines.values():
                with suppress(Broken):
                    each.send({"do": "end"})
        threading.Thread(target=_end_soon, daemon=True).start()

    def _send(self, rank: int, message: dict, data: bytes | memoryview = b"") -> None:
        """What cannot be sent to a rank that is lost is told by whoever listens to it."""
        line = self._lines.get(rank)
        if line is not None:
            with suppress(Broken):
                line.send(message, data)

    # -- gathering ------------------------------------------------------------------------------------------------

    def _gathered(self, rank: int, message: dict, reply: Reply) -> None:
        with self._changed:
            self._replies[message["number"], rank] = reply
            self._contribute(message["number"], rank, message["values"])

    def _contribute(self, number: int, rank: int, values: Any) -> None:
        self._rounds.setdefault(number, {})[rank] = values
        self._changed.notify_all()

    def _complete(self, number: int) -> bool:
        return all(rank in self._rounds[number] or rank in self.lost for rank in range(self.size))

    def _answer_round(self, number: int) -> None:
        found = [self._rounds[number].get(rank) for rank in range(self.size)]
        for rank in range(1, self.size):
            reply = self._replies.pop((number, rank), None)
            if reply is not None:
                reply({"values": found})


def _end_here(signum, frame) -> None:
    raise SystemExit(FAILED)


def _ignore_lost_ranks() -> None:
    """The main thread is on its way out: a lost rank is not to break into what the interpreter does in its end."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) is _end_here:
        signal.signal(signal.SIGUSR1, lambda *_: None)  # not SIG_IGN: Python tells of a signal that is pending then


def _end_soon() -> None:
    """Let the main thread clean up, unless it waits for what will never come."""
    main = threading.main_thread()
    if signal.getsignal(signal.SIGUSR1) is _end_here and main.is_alive():
        signal.pthread_kill(main.ident, signal.SIGUSR1)
    main.join(LAST_SECONDS)
    os._exit(FAILED)
