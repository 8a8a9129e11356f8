"""Ctrl-C, as a person presses it."""

import contextlib
import signal
import subprocess


def pressed(process: subprocess.Popen):
    """What a process still writes, (stdout, stderr), after Ctrl-C.

    MLX's CPU backend compiles kernels by programs that it waits for, and a Ctrl-C meanwhile is lost: press again.
    """
    while True:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=10)
