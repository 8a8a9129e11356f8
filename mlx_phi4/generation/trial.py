"""Grammars are compiled in a process of its own first: one that takes too long, too much or crashes ends there."""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import trial_worker

WALL_SECONDS = 60.0  # for an answer, however busy the machine is; the process counts its own seconds
CPU_SECONDS = 3  # that compiling may take


class TrialProcess:
    """The process, started when it is first needed. Any thread may ask; they take turns."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        # a program that holds an interpreter within would be started instead of one
        self._usable = bool(sys.executable) and not getattr(sys, "frozen", False)

    def error(self, task: dict[str, Any]) -> str | None:
        """What is wrong with a grammar, None for nothing; also where no process can be had."""
        line = json.dumps(task | {"seconds": CPU_SECONDS}) + "\n"
        with self._lock:
            while self._usable:
                new = self._process is None
                try:
                    if new:
                        self._start()
                    self._process.stdin.write(line)
                    self._process.stdin.flush()
                    answer = self._read()
                except OSError:  # it could not be started, or went away between two trials
                    self._usable = not new
                    self._end()
                    continue
                if answer:
                    return json.loads(answer)["error"]
                self._end()
                return f"compiling it takes more than {CPU_SECONDS} seconds, or too much memory"
        return None

    def _start(self) -> None:
        """Raises OSError."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(trial_worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )
        atexit.register(self._end)
        if not self._read():
            raise OSError("no process to try grammars in")

    def _read(self) -> str:
        """A line; empty where the process ended, or said nothing in time."""
        ready, _, _ = select.select([self._process.stdout], [], [], WALL_SECONDS)
        return self._process.stdout.readline() if ready else ""

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            atexit.unregister(self._end)
            process.kill()
            with suppress(OSError):  # what it did not read
                process.communicate()
