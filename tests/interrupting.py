"""Ctrl-C, as a person presses it."""

import signal
import subprocess

PRESSES, PATIENCE = 6, 10  # times, seconds between them


def pressed(process: subprocess.Popen):
    """What a process still writes, (stdout, stderr), after Ctrl-C. Raises TimeoutExpired for one that never heeds it.

    MLX's CPU backend compiles kernels by programs that it waits for, and a Ctrl-C meanwhile is lost: press again.
    """
    for left in reversed(range(PRESSES)):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            if not left:
                process.kill()
                raise
