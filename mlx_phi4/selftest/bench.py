"""What the stages share: the built-in model in each type, on this machine's device and on its CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from ..device import compute_dtype, exclusive
from ..generation.media_cache import MediaCache
from ..inputs.processor import Processor
from ..loading import DTYPES, load
from ..model import Phi4
from . import samples
from .checks import Check, within
from .tolerances import Arithmetic, distance


class Bench:
    """Models, loaded once each, and comparisons with the tolerance of the device that computed."""

    def __init__(self, model: str | None = None, revision: str | None = None):
        self.device = mx.default_device()
        self.arithmetic = Arithmetic.of(self.device)
        self.cpu = Arithmetic.of(mx.Device(mx.DeviceType.cpu, 0))
        self.name, self.revision = model, revision
        self.notes: list[str] = []  # for people, beside the checks
        self._seen: dict[int, MediaCache] = {}  # of each model
        self._loaded: dict[tuple, tuple[Phi4, Processor]] = {}

    @property
    def on_gpu(self) -> bool:
        return self.device.type == mx.gpu

    @property
    def encoder_dtypes(self) -> tuple[str, ...]:
        """Types that encoders compute in: on a CPU not float16, for which they take float32."""
        return tuple(name for name in DTYPES if compute_dtype(getattr(mx, name)) == getattr(mx, name))

    def model(self, dtype: str = "float32") -> tuple[Phi4, Processor]:
        """The built-in model on the current device. Raises Phi4Error."""
        key = dtype, str(mx.default_device())
        if key not in self._loaded:
            self._loaded[key] = load(samples.BUILT_IN_MODEL, dtype=dtype)
        return self._loaded[key]

    def seen(self, model: Phi4) -> MediaCache:
        """What a model that is kept here has embedded before."""
        return self._seen.setdefault(id(model), MediaCache())

    def asked(self) -> tuple[Phi4, Processor]:
        """The model that ``--model`` names. Raises Phi4Error."""
        if "asked" not in self._loaded:
            self._loaded["asked"] = load(self.name, revision=self.revision, quiet=True)
        return self._loaded["asked"]

    def error(
        self, name: str, got, expected, dtype: str = "float32", depth: int = 1, length: int = 1, packed: bool = False
    ) -> Check:
        """Compare with the tolerance of this device and type; see ``tolerances``."""
        with exclusive():
            measured = distance(got, expected)
        return within(name, measured, self.arithmetic.allowed(dtype, depth, length, packed))

    def both(self, name: str, compute, expected, depth: int, length: int, dtypes=DTYPES) -> Iterator[Check]:
        """Compare ``compute(dtype)`` with the reference in every type, and with MLX's CPU where this is a GPU."""
        for dtype in dtypes:
            got = compute(dtype)
            yield self.error(f"{name}, {dtype}", got, expected, dtype, depth, length)
            if self.on_gpu:
                with on_cpu():
                    beside = np.array(compute(dtype).astype(mx.float32))
                # each is as far from the exact result as its tolerance allows
                limit = sum(each.allowed(dtype, depth, length) for each in (self.arithmetic, self.cpu))
                yield within(f"{name}, {dtype}, beside the CPU", distance(got, beside), limit)


@contextmanager
def on_cpu() -> Iterator[None]:
    """Compute on MLX's CPU backend, whatever the device is."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.DeviceType.cpu, 0))
    try:
        yield
    finally:
        mx.set_default_device(before)
