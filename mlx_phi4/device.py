"""The stream that all work goes through, one thread at a time, so that a loaded model belongs to no thread.

An MLX stream belongs to the thread that made it, and so does every array that is not computed yet. All of this
package's work goes to one stream that any thread may use; since that is safe for one thread at a time only, threads
take turns, a step of generation each.
"""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx

Result = TypeVar("Result")
_turn = threading.RLock()
_streams: dict[str, mx.Stream] = {}  # by the device's name: equal devices have different hashes


class _Streams:
    """Lets go of a thread's own streams when the thread ends.

    MLX makes some where it compiles, and leaves them to the thread's last moments, which a process that ends right then
    does not outlive: it aborted.
    """

    def __del__(self):
        mx.clear_streams()


_local = threading.local()


def enter_thread() -> None:
    """Have the current thread leave nothing of MLX behind; the main thread ends with the process."""
    if not hasattr(_local, "streams"):
        _local.streams = None if threading.current_thread() is threading.main_thread() else _Streams()


@contextmanager
def exclusive() -> Iterator[None]:
    """Compute on the shared stream while no other thread does."""
    enter_thread()
    with _turn, mx.stream(_stream(mx.default_device())):
        yield


def cpu_stream() -> mx.Stream:
    """The shared stream of the CPU, where files are read whatever the device is."""
    with _turn:
        return _stream(mx.Device(mx.DeviceType.cpu, 0))


def _stream(device: mx.Device) -> mx.Stream:
    if str(device) not in _streams:
        _streams[str(device)] = mx.new_thread_unsafe_stream(device)
    return _streams[str(device)]


def compute_dtype(dtype: mx.Dtype) -> mx.Dtype:
    """The type that an encoder with weights of this type computes in: float32 for float16 on the CPU, else the same.

    MLX's CPU backend multiplies float16 with packed weights forty times slower than float32. The result is the more
    exact one.
    """
    slow = dtype == mx.float16 and mx.default_device().type == mx.cpu
    return mx.float32 if slow else dtype


def finished(slices: Generator[Any, None, Result], evaluate: bool = True) -> Result:
    """Run long work that pauses between its slices to its end.

    Each pause gives the arrays to be computed by then, or None; without ``evaluate`` all stays in one graph, as
    gradients need it.
    """
    while True:
        try:
            pending = next(slices)
        except StopIteration as end:
            return end.value
        if evaluate:
            mx.eval(pending)


def wire_memory() -> None:
    """Let Metal keep as much memory resident as the machine recommends, as mlx-lm does while it generates."""
    if mx.metal.is_available():
        mx.set_wired_limit(mx.device_info()["max_recommended_working_set_size"])
