"""How the processes that ``mlx.launch`` started find each other, before any of them computes.

Rank 0 listens where the launcher told all ranks that it would, and gives the port back before MLX takes it. MLX's own
start waits for ever for a host that does not answer; here it has a name and an end.
"""

import json
import os
import secrets
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import Phi4Error
from .channel import Broken, Connection, deadline

WAITING = "MLX_PHI4_MEETING_SECONDS"  # the environment may say how long to wait for the others
USUAL_SECONDS = 60.0
REPORTING = 3.0  # that a rank tries to tell why it failed
GREETING = 5.0  # seconds that a connection may take to say who it is


class NoAnswer(Phi4Error):
    """Rank 0 is not there to say what is wrong."""


@dataclass(frozen=True)
class Launch:
    """What the launcher told this process: its place, where rank 0 can be reached, and addresses by rank, if known."""

    rank: int
    size: int
    address: tuple[str, int]
    hosts: tuple[str, ...]

    def name(self, rank: int) -> str:
        """A rank for a person."""
        return f"rank {rank} ({self.hosts[rank]})" if rank < len(self.hosts) else f"rank {rank}"


def launched(environment: dict[str, str] | None = None) -> Launch | None:
    """What ``mlx.launch`` told, None for a process alone. Raises Phi4Error for what cannot be understood."""
    given = os.environ if environment is None else environment
    if any(name in given for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "NCCL_HOST_IP")):
        raise Phi4Error("only mlx.launch's backends ring, jaccl and jaccl-ring can be used")
    if "MLX_RANK" not in given:
        return None
    try:
        rank = int(given["MLX_RANK"])
        if "MLX_JACCL_COORDINATOR" in given:
            size, hosts = len(json.loads(Path(given["MLX_IBV_DEVICES"]).read_bytes())), ()
            address = given["MLX_JACCL_COORDINATOR"]
        else:
            text = Path(given["MLX_HOSTFILE"]).read_bytes().strip()
            if not text:  # mlx.launch -n 1
                return None
            listed = [entry[0] for entry in json.loads(text)]
            size, address = len(listed), listed[0]
            hosts = tuple(each.rpartition(":")[0] for each in listed)
        host, _, port = address.rpartition(":")
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} of {size}")
        return None if size == 1 else Launch(rank, size, (host.strip("[]"), int(port)), hosts)
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Phi4Error(f"what mlx.launch told this process cannot be read: {error}") from None


def waiting_seconds() -> float:
    """How long to wait for the others. Raises Phi4Error."""
    given = os.environ.get(WAITING)
    try:
        seconds = USUAL_SECONDS if given is None else float(given)
        if not 0 < seconds < 1e6:
            raise ValueError
    except ValueError:
        raise Phi4Error(f"{WAITING} is {given!r}, expected a number of seconds") from None
    return seconds


def receive_all(launch: Launch, facts: dict) -> dict[int, Connection]:
    """Rank 0's part: a connection to each of the others, whose ``facts`` are the same.

    Raises Phi4Error: one does not come, or is another program.
    """
    host, port = launch.address
    left = deadline(waiting_seconds())
    token, found = secrets.token_hex(16), {}
    with _listening(host, port) as meeting, _listening(host, 0) as staying:
        try:
            while len(found) < launch.size - 1:
                ready, _, _ = select.select([meeting, staying], [], [], left())
                if not ready:
                    missing = [rank for rank in range(1, launch.size) if rank not in found]
                    names = " and ".join(map(launch.name, missing))
                    verb = "does" if len(missing) == 1 else "do"
                    raise Phi4Error(f"{names} {verb} not answer: no connection to {host} port {port} was made")
                for listener in ready:
                    with suppress(OSError):
                        connection = Connection(listener.accept()[0])
                        if listener is meeting:
                            _greet(connection, launch, facts, token, staying.getsockname()[1])
                        elif (rank := _admitted(connection, token, found)) is not None:
                            found[rank] = connection
            for connection in found.values():
                connection.send({"go": True})
            return found
        except BaseException as error:
            for connection in found.values():
                with suppress(Broken):
                    connection.send({"refused": str(error) if isinstance(error, Phi4Error) else "rank 0 was stopped"})
                connection.close()
            raise


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or error
        raise Phi4Error(
            f"rank 0 cannot listen on {host} port {port}: {reason}; --starting-port of mlx.launch"
        ) from None


def _greet(connection: Connection, launch: Launch, facts: dict, token: str, port: int) -> None:
    """Tell a rank of this run where to stay. Raises Phi4Error where it is another program's, in another version."""
    with suppress(Broken):
        message, _ = connection.receive(GREETING)
        if isinstance(message.get("failed"), str):
            raise Phi4Error(f"{launch.name(message.get('rank', -1))}: {message['failed']}")
        theirs = message.get("facts")
        if isinstance(theirs, dict) and theirs != facts:
            different = next(key for key in facts | theirs if facts.get(key) != theirs.get(key))
            line = (
                f"{launch.name(message.get('rank', -1))} has {different} {theirs.get(different)}, "
                f"rank 0 has {facts.get(different)}"
            )
            connection.send({"refused": line})
            raise Phi4Error(line)
        if theirs == facts:
            connection.send({"token": token, "port": port})
            connection.receive(GREETING)  # its end: the port that MLX will need is left by the other side first
    connection.close()


def _admitted(connection: Connection, token: str, found: dict) -> int | None:
    with suppress(Broken):
        message, _ = connection.receive(GREETING)
        rank = message.get("rank")
        if message.get("token") == token and type(rank) is int and rank > 0 and rank not in found:
            return rank
    connection.close()
    return None


def report_failure(launch: Launch, line: str) -> None:
    """Tell rank 0 why this rank will not come. It may have failed, too, and not listen: then nobody is told."""
    left = deadline(REPORTING)
    while left():
        try:
            connection = Connection(socket.create_connection(launch.address, timeout=GREETING))
            connection.send({"rank": launch.rank, "failed": line})
            connection.close()
            return
        except (OSError, Broken):
            time.sleep(0.1)


def join_first(launch: Launch, facts: dict, seconds: float | None = None) -> Connection:
    """The part of the other ranks: a connection to rank 0. Raises Phi4Error."""
    left = deadline(waiting_seconds() if seconds is None else seconds)
    host, port = launch.address
    while True:
        try:
            meeting = Connection(socket.create_connection((host, port), timeout=max(left(), 0.1)))
            try:
                meeting.send({"rank": launch.rank, "facts": facts})
                answer, _ = meeting.receive(max(left(), 0.1))
            finally:
                meeting.close()
            if "refused" in answer:
                raise Phi4Error(answer["refused"])
            staying = Connection(socket.create_connection((host, answer["port"]), timeout=GREETING))
            staying.send({"rank": launch.rank, "token": answer["token"]})
            answer, _ = staying.receive(left() + GREETING)
            if "refused" in answer:
                raise Phi4Error(answer["refused"])
            return staying
        except (OSError, Broken, KeyError):
            if not left():
                raise NoAnswer(f"{launch.name(0)} does not answer on port {port}") from None
            time.sleep(0.1)
