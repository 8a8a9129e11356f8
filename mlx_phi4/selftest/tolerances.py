"""How far a result may be from the exact one: from the type, the depth and the longest sum, in one place.

    allowed = 8 * sqrt(depth) * (max(unit, product) + sum * sqrt(length))

relative to the root mean square of what is expected. ``unit`` is the type's unit roundoff: half the distance from 1 to
the next number. ``depth`` counts the roundings that a number passes one after another, whose errors add like steps of a
random walk. ``length`` is the longest sum, in an order that each backend chooses, and ``sum`` the roundoff in which it
is kept: 2^-24, of float32, but for packed weights on MLX's CPU backend, which adds in the type itself. ``product`` is
the roundoff of what float32 products read: 2^-24, or 2^-11 on a GPU that takes float32 in TF32, which is found out by
asking it. The 8 covers that the largest of many errors is judged (four to five deviations), and their growth.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TF32 = 2.0**-11  # unit roundoff of float32 with the 11 significant bits that a tensor core reads
LARGEST_OF_MANY = 8


@dataclass(frozen=True)
class Arithmetic:
    """What products on a device keep of float32."""

    device: str
    product: float

    @classmethod
    def of(cls, device: mx.Device) -> "Arithmetic":
        """Ask a device: numbers that TF32 would round are multiplied by one, in matrices and in attention."""
        return cls(device.type.name, max(_probe_matrix(device), _probe_attention(device)))

    def allowed(self, dtype: str, depth: int, length: int, packed: bool = False) -> float:
        """The largest error relative to the root mean square; see the formula above. ``packed``: of packed weights."""
        unit = max(UNIT[dtype], self.product)
        added = UNIT[dtype if packed and self.device == "cpu" else "float32"]
        return LARGEST_OF_MANY * depth**0.5 * (unit + added * length**0.5)

    @property
    def text(self) -> str:
        return "float32 products are whole" if self.product < TF32 else "float32 products read TF32 (11 bits)"


def _kept(got: mx.array) -> float:
    """2^-24 if results are 1 + 2^-13, which TF32 does not hold; else 2^-11."""
    return UNIT["float32"] if np.all(np.array(got) == np.float32(1 + 2.0**-13)) else TF32


def _probe_matrix(device: mx.Device) -> float:
    with mx.stream(device):
        return _kept(mx.full((256, 256), 1 + 2.0**-13) @ mx.eye(256))


def _probe_attention(device: mx.Device) -> float:
    """Every query sees itself alone; the value is what comes out."""
    values = mx.full((1, 2, 64, 128), 1 + 2.0**-13)
    queries = mx.zeros((1, 2, 64, 128))
    with mx.stream(device):
        mask = mx.where(mx.eye(64, dtype=mx.bool_), 0.0, -1e9)
        return _kept(mx.fast.scaled_dot_product_attention(queries, queries, values, scale=1.0, mask=mask))


def distance(got, expected) -> float:
    """The largest difference over the root mean square of ``expected``; infinite where shapes or finiteness differ."""
    got = np.array(got.astype(mx.float32) if isinstance(got, mx.array) else got, np.float64)
    expected = np.asarray(expected, np.float64)
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    scale = np.sqrt(np.mean(np.square(expected)))
    return float(np.abs(got - expected).max() / max(scale, 1e-30))
