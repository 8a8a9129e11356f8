"""Stages of single operations at the published sizes, against float64: attention, norms, rotation, activations.

Every shape of attention that the models use: 24 query heads over 8 of keys with 128 dimensions (decoder), 16 of 72
(vision), 16 of 64 (speech), and the built-in model's 32; one query and many, with every kind of mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..decoder.decoder import attend
from ..decoder.rope import LongRope, rotate
from ..device import exclusive
from . import samples
from .bench import DTYPES, Bench
from .checks import Check, holds

# Scores reach 4 to 5 and are rounded before the exponent, which makes their absolute error a relative one of weights:
# the same as some 25 roundings. Scaling, weights, sums and results add one or two each
ROUNDINGS = 32
LARGE = 30.0  # entries of queries and keys whose products pass 65,504, the largest float16, before they are scaled


@dataclass(frozen=True)
class Shape:
    """``mask``: None, "causal", "keys" (padded keys), "window" (which keys each query sees) or "bias" (numbers)."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    queries: int
    keys: int
    mask: str | None = None


SHAPES = (
    Shape("decoder, prompt", 24, 8, 128, 65, 65, "causal"),
    Shape("decoder, behind a cache", 24, 8, 128, 33, 300, "causal"),
    Shape("decoder, a draft of 5", 24, 8, 128, 5, 70, "causal"),
    Shape("decoder, one token", 24, 8, 128, 1, 70),
    Shape("decoder, one token of many", 24, 8, 128, 1, 1100),
    Shape("decoder, window", 24, 8, 128, 7, 96, "window"),
    Shape("vision", 16, 16, 72, 160, 160),
    Shape("vision, padded", 16, 16, 72, 130, 130, "keys"),
    Shape("speech", 16, 16, 64, 100, 100, "bias"),
    Shape("built-in, one token", 4, 2, 32, 1, 40),
    Shape("built-in, prompt", 4, 2, 32, 40, 40, "causal"),
)


def mask_of(shape: Shape) -> np.ndarray | None:
    """What is added to scores, float64; rows are queries."""
    places = np.arange(shape.queries)[:, None] + shape.keys - shape.queries, np.arange(shape.keys)[None]
    if shape.mask == "causal":
        return np.where(places[1] <= places[0], 0.0, -np.inf)
    if shape.mask == "window":
        return np.where((places[1] <= places[0]) & ((places[1] < 4) | (places[1] > places[0] - 40)), 0.0, -np.inf)
    if shape.mask == "keys":
        return np.where(np.arange(shape.keys) % 10 < 8, 0.0, -np.inf)[None]
    if shape.mask == "bias":
        return samples.normal((shape.heads, shape.queries, shape.keys), 24).astype(np.float64)
    return None


def given_mask(shape: Shape, dtype: mx.Dtype) -> mx.array | str | None:
    """The same, as the package gives it to MLX."""
    if shape.mask in (None, "causal"):
        return shape.mask
    mask = mask_of(shape)
    return mx.array(mask.astype(np.float32)).astype(dtype)[None] if shape.mask == "bias" else mx.array(mask == 0)


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, mask: np.ndarray | None) -> np.ndarray:
    """softmax(scale q k^T + mask) v in float64; a head of keys serves several of queries."""
    repeat = q.shape[1] // k.shape[1]
    q, k, v = (each.astype(np.float64) for each in (q, k.repeat(repeat, 1), v.repeat(repeat, 1)))
    scores = scale * (q @ k.swapaxes(-1, -2))
    scores = scores if mask is None else scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v


def rounded(array: np.ndarray, dtype: str) -> tuple[mx.array, np.ndarray]:
    """An array in a type, and what it holds there."""
    made = mx.array(array).astype(getattr(mx, dtype))
    return made, np.array(made.astype(mx.float32))


def attention(bench: Bench) -> Iterator[Check]:
    """All shapes in all types, and scores that only float32 holds before they are scaled."""
    for shape in SHAPES:
        arrays = [
            samples.normal((1, heads, count, shape.head_dim), seed)
            for heads, count, seed in (
                (shape.heads, shape.queries, 21),
                (shape.kv_heads, shape.keys, 22),
                (shape.kv_heads, shape.keys, 23),
            )
        ]
        for dtype in DTYPES:
            yield _attended(bench, shape, arrays, dtype, shape.name)
        if shape.name == "decoder, prompt":
            for dtype in DTYPES:
                yield _attended(bench, shape, _large(shape), dtype, "large scores")


def _large(shape: Shape) -> list[np.ndarray]:
    """Queries and keys whose products are +-115,200, and values by that sign: a weight is 0 or as large as others."""
    direction = LARGE * np.sign(samples.normal((1, 1, 1, shape.head_dim), 27))
    signs = np.sign(samples.normal((1, shape.kv_heads, shape.keys, 1), 28))
    values = samples.normal((2, 1, shape.kv_heads, 1, shape.head_dim), 29)
    queries = np.broadcast_to(direction, (1, shape.heads, shape.queries, shape.head_dim))
    return [queries, direction * signs, np.where(signs > 0, values[0], values[1])]


def _attended(bench: Bench, shape: Shape, arrays: list[np.ndarray], dtype: str, name: str) -> Check:
    (q, exact_q), (k, exact_k), (v, exact_v) = (rounded(each, dtype) for each in arrays)
    scale = shape.head_dim**-0.5
    with exclusive():
        got = attend(q, k, v, None, scale, given_mask(shape, q.dtype))
        mx.eval(got)
    expected = exact(exact_q, exact_k, exact_v, scale, mask_of(shape))
    return bench.error(f"{name}, {dtype}", got, expected, dtype, ROUNDINGS, shape.keys)


def norms(bench: Bench) -> Iterator[Check]:
    """The built-in model's norms on numbers so small that epsilon counts, and so large that their squares overflow."""
    model = bench.model()[0]
    rms = {"decoder, first": model.model.layers[0].input_layernorm, "decoder, last": model.model.norm}
    layer = {
        "vision": (model.vision_encoder.layers[0].layer_norm1, 1e-6),
        "speech": (model.audio_encoder.encoders[0].layer_norm, 1e-5),
    }
    for size in (1e-3, 1.0, 1e3):
        x = samples.normal((5, 128), 25) * np.float32(size)
        for name, module in rms.items():
            yield from _normed(bench, f"{name}, of {size:g}", module, x, 1e-5, mean=False)
        for name, (module, eps) in layer.items():
            yield from _normed(bench, f"{name}, of {size:g}", module, x, eps, mean=True)


def _normed(bench: Bench, name: str, module: nn.Module, x: np.ndarray, eps: float, mean: bool) -> Iterator[Check]:
    for dtype in DTYPES:
        given, values = rounded(x, dtype)
        values = values.astype(np.float64)
        weight = np.array(module.weight, np.float64)
        centred = values - values.mean(-1, keepdims=True) if mean else values
        expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps) * weight
        expected = expected + np.array(module.bias, np.float64) if mean else expected
        with exclusive():
            got = module(given)
            mx.eval(got)
        yield bench.error(f"{name}, {dtype}", got, expected, dtype, 2, x.shape[-1])


def rope(bench: Bench) -> Iterator[Check]:
    """Both tables by the formula, and a turn: half-split pairs, the dimensions behind them as they were."""
    config = bench.model()[0].config.decoder.rope
    table = LongRope(config)
    # sqrt(1 + ln(131072 / 4096) / ln(4096)), both numbers as published
    scale = np.sqrt(1 + np.log(131072 / 4096) / np.log(4096))
    exponents = np.arange(0, config.dims, 2, dtype=np.float32) / np.float32(config.dims)
    powers = (10000.0 ** exponents.astype(np.float64)).astype(np.float32)
    for regime, (first, long) in samples.REGIMES.items():
        factors = np.array(config.long_factor if long else config.short_factor, np.float32)
        # angles are float32 in the reference, too
        angles = np.arange(first, first + 50, dtype=np.float32)[:, None] * (np.float32(1) / (factors * powers))
        turn = scale * np.cos(angles.astype(np.float64)), scale * np.sin(angles.astype(np.float64))
        with exclusive():
            cos, sin = table.rotation([(first, 50, long)], mx.float32)
            mx.eval(cos, sin)
        yield bench.error(f"{regime}: cosines", cos[0, :, 0, 0], turn[0], depth=2)
        yield bench.error(f"{regime}: sines", sin[0, :, 0, 1], turn[1], depth=2)
        yield bench.error(f"{regime}: sines, first half", sin[0, :, 0, 0], -turn[1], depth=2)
        yield _turned(bench, regime, config.dims, (cos, sin), turn)
    yield holds("tables differ", config.long_factor != config.short_factor, "the two tables are the same")


def _turned(bench: Bench, regime: str, dims: int, rotation, turn) -> Check:
    heads, width = 4, 32
    x = samples.normal((1, 50, heads + 1, width), 26)
    first, second = (x[0, :, :heads, i * dims // 2 : (i + 1) * dims // 2].astype(np.float64) for i in (0, 1))
    cos, sin = (each[:, None] for each in turn)
    expected = x[0].astype(np.float64)
    expected[:, :heads, : dims // 2] = first * cos - second * sin
    expected[:, :heads, dims // 2 : dims] = second * cos + first * sin
    with exclusive():
        got = rotate(mx.array(x), rotation, heads, dims)[0]
        mx.eval(got)
    return bench.error(f"{regime}: turned heads", got, expected, depth=4)
