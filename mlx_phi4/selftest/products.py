"""Stage products: matrices of the published widths, plain and packed, against float64.

Of a product only some rows are computed, over the whole width: the kernels and the sums are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoint.packing import Scheme
from ..device import exclusive
from . import samples
from .attention import rounded
from .bench import DTYPES, Bench
from .checks import Check, holds

ROWS = 32  # of a weight
ONE, MANY = 1, 20  # tokens: other kernels serve one


@dataclass(frozen=True)
class Packed:
    """Layers of the published models with rows of ``width``, and how a conversion packs them."""

    name: str
    width: int
    scheme: Scheme


PACKED_WIDTHS = (
    Packed("decoder", 3072, Scheme(4, 64)),
    Packed("decoder, down", 8192, Scheme(4, 64)),
    Packed("decoder, groups of 32", 3072, Scheme(4, 32)),
    Packed("decoder, groups of 128", 3072, Scheme(4, 128)),
    Packed("vision adapter, up", 256, Scheme(8, 64)),
    Packed("speech adapter, up", 320, Scheme(8, 64)),
    Packed("adapters, down", 3072, Scheme(8, 64)),
    Packed("vision encoder", 1152, Scheme(8, 64)),
    Packed("vision encoder, fc2", 4352, Scheme(8, 64)),
    Packed("audio encoder", 1024, Scheme(8, 64)),
    Packed("audio encoder, down", 1536, Scheme(8, 64)),
    Packed("audio encoder, out", 10240, Scheme(8, 64)),
)
PLAIN_WIDTHS = {"decoder": 3072, "decoder, down": 8192, "vision adapter": 256, "vision encoder": 1152, "fc2": 4304}


def unpacked(weight: np.ndarray, scales: np.ndarray, biases: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Weights from packed words, by the definition: ``scale * q + bias``, the first of a word in its lowest bits."""
    shifts = np.arange(0, 32, scheme.bits, dtype=np.uint32)
    levels = (weight[..., None] >> shifts) & np.uint32(2**scheme.bits - 1)
    groups = levels.reshape(len(weight), -1, scheme.group_size).astype(np.float64)
    return (groups * scales[..., None] + biases[..., None]).reshape(len(weight), -1)


def products(bench: Bench) -> Iterator[Check]:
    """Linear layers with one token and many, and packed ones as a conversion makes them."""
    for name, width in PLAIN_WIDTHS.items():
        weight = samples.normal((ROWS, width), 31) / np.float32(width**0.5)
        for dtype in DTYPES:
            made, exact_weight = rounded(weight, dtype)
            yield from _multiplied(bench, name, lambda x, made=made: x @ made.T, exact_weight, dtype, packed=False)
    for each in PACKED_WIDTHS:
        yield from _packed(bench, each)


def _packed(bench: Bench, layer: Packed) -> Iterator[Check]:
    scheme, width = layer.scheme, layer.width
    for dtype in DTYPES:
        linear = nn.Linear(width, ROWS, bias=False)
        linear.weight = rounded(samples.normal((ROWS, width), 32) / np.float32(width**0.5), dtype)[0]
        with exclusive():
            made = linear.to_quantized(**scheme.table())
            mx.eval(made.parameters())
        groups = (ROWS, width // scheme.group_size)
        if made.scales.shape != groups:
            yield holds(f"{layer.name}: groups", False, f"scales are {made.scales.shape}, expected {groups}")
            continue
        parts = [np.array(part.astype(mx.float32), np.float64) for part in (made.scales, made.biases)]
        exact_weight = unpacked(np.array(made.weight), *parts, scheme)
        if dtype == "float32":  # half a step of a group; MLX cuts the far end of its range
            plain = np.array(linear.weight, np.float64)
            step = np.abs(parts[0]).repeat(scheme.group_size, 1)
            near = np.abs(plain - exact_weight) <= 0.51 * step + 1e-6
            yield holds(f"{layer.name}: packing", near.mean() > 0.95, "packed weights are not near the plain ones")
        yield from _multiplied(bench, f"{layer.name}, {scheme.bits} bits", made, exact_weight, dtype, packed=True)


def _multiplied(bench: Bench, name: str, multiply, weight: np.ndarray, dtype: str, packed: bool) -> Iterator[Check]:
    width = weight.shape[1]
    # MLX's CPU backend takes seconds for many tokens of packed float16
    counts = (ONE, MANY) if dtype != "float16" or bench.on_gpu else (ONE,)
    for tokens in counts:
        x, exact_x = rounded(samples.normal((tokens, width), 33), dtype)
        with exclusive():
            got = multiply(x)
            mx.eval(got)
        expected = exact_x.astype(np.float64) @ weight.astype(np.float64).T
        yield bench.error(f"{name}, {tokens} x {width}, {dtype}", got, expected, dtype, 2, width, packed=packed)
