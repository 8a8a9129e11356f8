"""Re-reading a folder: every tensor's shape, dtype and values, and the size of each component."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.folder import read_checkpoint
from ..checkpoint.tensorfile import CODES, FLOATS, StoredTensor
from ..checkpoint.weights import FLOAT_DTYPES
from ..config import OWN_SECTION
from ..errors import CheckpointError
from .converted_config import dtype_name
from .plan import PIECE
from .quantization import ORDER, component
from .writer import PLAN

# bytes that stand for NaN in the eight-bit scales of a mode: e8m0, e4m3
NAN_SCALES = {"mxfp4": (0xFF,), "mxfp8": (0xFF,), "nvfp4": (0x7F, 0xFF)}


@dataclass
class ComponentSize:
    """``tensors`` files' entries of one component, ``parameters`` weights before packing, ``nbytes`` on disk."""

    name: str
    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / max(self.parameters, 1)


def verify(folder: str | Path, progress: Callable[[int], None] = lambda count: None) -> list[ComponentSize]:
    """Read every tensor of a folder that this package loads, and return the size of each component.

    Raises:
        Phi4Error: the folder is unfinished, or tensors are missing, unexpected, of the wrong shape
            or dtype, or hold NaN or infinite values; named, in one line.
    """
    folder = Path(folder)
    if (folder / PLAN).exists():
        raise CheckpointError(f"{folder} is an unfinished conversion; --resume goes on with it")
    checkpoint = read_checkpoint(folder)
    model, _ = checkpoint.open()
    # what is published may mix dtypes; what was converted holds one beside the packed ones
    converted = checkpoint.config.quantization or OWN_SECTION in checkpoint.raw
    named = dtype_name(checkpoint.raw) if converted else None
    wanted = CODES[FLOAT_DTYPES[named]] if named else None
    stored = checkpoint.tensors()
    sizes = {name: ComponentSize(name) for name in ORDER}
    problems = []
    modules = dict(model.named_modules())
    for name, array in tree_flatten(model.parameters()):
        tensor = stored[name]
        module = modules[name.rpartition(".")[0]]
        problems += _problems(name, tensor, module, wanted)
        size = sizes[component(name)]
        size.tensors += 1
        size.nbytes += tensor.nbytes
        size.parameters += parameter_count(name, array, module)
        progress(tensor.nbytes)
    if problems:
        shown = "; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(f"{folder}: {shown}")
    return [size for size in sizes.values() if size.tensors]


def describe(sizes: list[ComponentSize]) -> str:
    """A table for people: bytes and bits per weight of each component and of all."""
    total = ComponentSize("total", *(sum(getattr(s, n) for s in sizes) for n in ("tensors", "parameters", "nbytes")))
    lines = [f"{'component':<30}{'tensors':>8}{'weights':>16}{'bytes':>16}{'bits each':>10}"]
    lines += [
        f"{s.name:<30}{s.tensors:>8}{s.parameters:>16,}{s.nbytes:>16,}{s.bits_per_weight:>10.2f}"
        for s in [*sizes, total]
    ]
    return "\n".join(lines)


def parameter_count(name: str, array: mx.array, module: nn.Module) -> int:
    """Weights before packing: none for scales and biases."""
    if not isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        return array.size
    kind = name.rpartition(".")[2]
    return {"scales": 0, "biases": 0, "weight": array.size * 32 // module.bits}.get(kind, array.size)


def _problems(name: str, tensor: StoredTensor, module: nn.Module, wanted: str | None) -> list[str]:
    """What is wrong with one tensor; reads all of it."""
    kind = name.rpartition(".")[2]
    expected, nans = (wanted,) if wanted else FLOATS, ()
    if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)) and kind in ("weight", "scales"):
        if kind == "weight":
            expected = ("U32",)
        elif module.mode != "affine":
            expected, nans = ("U8",), NAN_SCALES[module.mode]
    if tensor.dtype not in expected:
        return [f"{name} has dtype {tensor.dtype}, expected {' or '.join(expected)}"]
    try:
        for array in _pieces(tensor):  # floats are checked as they are read
            if any((array == value).any().item() for value in nans):
                return [f"{name} holds NaN scales"]
    except CheckpointError as error:
        return [str(error)]
    return []


def _pieces(tensor: StoredTensor):
    step = max(PIECE // max(tensor.row_bytes, 1), 1)
    for first in range(0, tensor.shape[0], step):
        yield tensor.read(first, min(first + step, tensor.shape[0]))
