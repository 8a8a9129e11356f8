"""Stages files and tensors: what was installed is what was made, and weights are numbers that weights can be."""

import hashlib
from collections.abc import Iterator

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.hub import ASSETS, check_asset
from ..device import exclusive
from ..errors import CheckpointError
from ..model import Phi4
from . import samples
from .bench import Bench
from .checks import Check, holds

# root mean square of a matrix of weights; those of networks that were trained lie between 1e-3 and 1
LEAST_RMS, MOST_RMS = 1e-5, 10.0
MOST_WEIGHT = 3e3  # of a single number; the largest known are scales of norms, tens
BUILT_IN_WEIGHTS = "model.safetensors"


def files(bench: Bench) -> Iterator[Check]:
    """The built-in model and what it is compared with, by their checksums."""
    for folder in (ASSETS / samples.BUILT_IN_MODEL, samples.SAMPLES):
        try:
            check_asset(folder)
            yield holds(folder.name, True)
        except CheckpointError as error:
            yield holds(folder.name, False, str(error))
    digest = hashlib.sha256((ASSETS / samples.BUILT_IN_MODEL / BUILT_IN_WEIGHTS).read_bytes()).hexdigest()
    yield holds("golden values", digest == samples.made_for(), "they were made for other weights")


def tensors(bench: Bench) -> Iterator[Check]:
    """All weights of the built-in model are finite and in the range of weights."""
    yield from in_range(bench.model()[0])


def asked_tensors(bench: Bench) -> Iterator[Check]:
    """All weights of the model that was asked for are finite and in the range of weights."""
    yield from in_range(bench.asked()[0])


def in_range(model: Phi4) -> Iterator[Check]:
    """A check for each part of a model that names the first tensors that are not as weights are."""
    found: dict[str, list[str]] = {}
    for name, array in tree_flatten(model.parameters()):
        part = ".".join(name.split(".")[:2])
        reason = wrong(name, array)
        found.setdefault(part, []).extend([f"{name} {reason}"] if reason else [])
    for part, reasons in found.items():
        more = f" and {len(reasons) - 2} more" if len(reasons) > 2 else ""
        yield holds(part, not reasons, "; ".join(reasons[:2]) + more)


def wrong(name: str, array: mx.array) -> str:
    """Why a tensor cannot be a weight; empty if it can."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return ""
    with exclusive():
        x = array.astype(mx.float32)
        stats = mx.isfinite(x).all(), mx.abs(x).max(), mx.sqrt(mx.mean(mx.square(x))), x.min()
        mx.eval(*stats)
    finite, most, rms, least = (each.item() for each in stats)
    if not finite:
        return "holds NaN or infinity"
    if most > MOST_WEIGHT:
        return f"holds {most:g}, more than {MOST_WEIGHT:g}"
    if name.endswith("global_invstd") and least <= 0:
        return f"holds {least:g}; deviations are positive"
    is_matrix = array.ndim > 1 and not name.endswith((".scales", ".biases", ".bias_values.weight"))
    if is_matrix and not LEAST_RMS <= rms <= MOST_RMS:
        return f"has root mean square {rms:g}, expected {LEAST_RMS:g} to {MOST_RMS:g}"
    if name.endswith("norm.weight") and rms == 0:
        return "is zero"
    return ""
