"""How near numbers must be, by the device that computes them: limits in tests are those of MLX's CPU backend.

A GPU adds in another order, whose errors are as large but others: twice the CPU's on average, four times is allowed.
One that takes float32 products in TF32 errs by more, in the ratio of the formula in ``mlx_phi4.selftest.tolerances``.
Bits of a row may depend there on how many rows a step has, as other kernels serve them: tests that compare such bits,
or greedy tokens of random weights, are marked ``cpu`` and run on the CPU backend everywhere, see ``conftest.py``.
"""

from functools import cache

import mlx.core as mx

from mlx_phi4.selftest.tolerances import UNIT, Arithmetic

OTHER_ORDER = 4
LENGTH = 512  # of a sum in the random checkpoints


@cache
def _factor(device: str) -> float:
    if device == "cpu":
        return 1.0
    arithmetic = Arithmetic.of(mx.default_device())
    whole = Arithmetic(device, UNIT["float32"])
    return OTHER_ORDER * arithmetic.allowed("float32", 1, LENGTH) / whole.allowed("float32", 1, LENGTH)


def near(limit: float) -> float:
    """A limit of the CPU backend, as it is on the device that computes now."""
    return limit * _factor(mx.default_device().type.name)
