"""Starting ranks as ``mlx.launch`` does, over loopback, with ports of their own."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = (sys.executable, "-m", "mlx_phi4")
JOB = (sys.executable, str(Path(__file__).with_name("ranks_job.py")))


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def hosts(size):
    """The launcher's environment for all ranks but for their numbers."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump([[f"127.0.0.1:{port}"] for port in free_ports(size)], file)
    return {"MLX_HOSTFILE": file.name, "MLX_PHI4_MEETING_SECONDS": "20"}


def start(*commands, cwd=None, environment=None):
    """A process for each rank, with its own arguments."""
    known = hosts(len(commands)) | (environment or {})
    return [
        subprocess.Popen(
            [*map(str, command)],
            env=os.environ | known | {"MLX_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        for rank, command in enumerate(commands)
    ]


def ended(processes, timeout=120):
    """[(exit code, stdout, stderr)] of all ranks."""
    found = [process.communicate(timeout=timeout) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def launch(*arguments, size=2, program=PROGRAM, **how):
    """Run the same command on all ranks to its end."""
    return ended(start(*[[*program, *arguments]] * size, **how))


def assert_refused(results, *words):
    """One line on rank 0 with these words, nothing elsewhere, and no rank that ended well."""
    assert all(code not in (0, None) for code, _, _ in results), results
    assert [out for _, out, _ in results] == [""] * len(results)
    (line,) = results[0][2].splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert [err for _, _, err in results[1:]] == [""] * (len(results) - 1), results
