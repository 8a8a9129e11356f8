"""What becomes of every tensor when an adapter is fused: the converter's plan, with other weights for some linears.

``W + scale * up @ down``, of DoRA times its gain, is computed in float32 and rounded once, into the type or the packing
that the weight had. All other tensors stay what they are, bit by bit, unless all are unpacked.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint import names
from ..checkpoint.folder import Checkpoint, read_checkpoint
from ..checkpoint.packing import Scheme
from ..checkpoint.tensorfile import STORED_DTYPES, StoredTensor
from ..converter.converted_config import dtype_name
from ..converter.plan import Plan, Task, plan_of, task_of, vision_width, written_name
from ..converter.quantization import ORDER, Rules, component
from ..converter.verify import parameter_count
from ..decoder.adapters import Adapter, LinearAdapter


@dataclass(frozen=True)
class Copy(Task):
    """A stored tensor that is written as it stands."""

    def compute(self, first: int, last: int) -> list[mx.array]:
        """See ``Task``."""
        weight = self.sources[0].read(first, last)
        return [mx.contiguous(names.to_mlx_axes(self.name, weight) if self.whole else weight)]


@dataclass(frozen=True)
class Fused(Task):
    """A linear's weight with an adapter in it."""

    added: LinearAdapter | None = None

    def compute(self, first: int, last: int) -> list[mx.array]:
        """See ``Task``; each row of the weight is worked on by itself."""
        weight, *others = (source.read(first, last) for source in self.sources)
        if self.stored is not None:
            weight = mx.dequantize(weight, *others, **self.stored.table(), dtype=mx.float32)
        up, down = (array.astype(mx.float32) for array in (self.added.up[first:last], self.added.down))
        weight = weight.astype(mx.float32) + self.added.scale * (up @ down)
        if self.added.magnitude is not None:
            gain = self.added.magnitude[first:last] / mx.linalg.norm(weight, axis=1)
            weight = gain[:, None] * weight
        weight = weight.astype(STORED_DTYPES[self.dtype][0])
        return [weight] if self.target is None else list(mx.quantize(weight, **self.target.table()))


def fused_plan(folder: Path, adapter: Adapter, *, dequantize: bool = False, dtype: str | None = None) -> Plan:
    """The plan of a model folder with an adapter in its base. Raises Phi4Error for a folder that does not fit.

    Args:
        dequantize: unpack all weights into ``dtype``; otherwise packed ones are packed again as they were.
        dtype: of what is not packed; None is what ``config.json`` names, else what is stored.
    """
    checkpoint = read_checkpoint(folder)
    config, raw = checkpoint.config, checkpoint.raw
    table = None if dequantize else config.quantization
    dtype = dtype or dtype_name(raw) or ("bfloat16" if dequantize and config.quantization else None)
    width = config.vision and (vision_width(config, raw, Rules()) if dequantize else config.vision.intermediate_size)
    tasks, parameters = _tasks(checkpoint, adapter, bool(table), dtype, width)
    return plan_of(folder, checkpoint, tasks, table=table, dtype=dtype, width=width, parameters=parameters)


def _tasks(
    checkpoint: Checkpoint, adapter: Adapter, keep: bool, dtype: str | None, width: int | None
) -> tuple[list[Task], int]:
    """The tasks, decoder first, and how many weights there are."""
    model, _ = checkpoint.open()
    stored, layout, modules = checkpoint.tensors(), checkpoint.config.layout, dict(model.named_modules())
    tasks, parameters = [], 0
    for name, array in tree_flatten(model.parameters()):
        path, _, kind = name.rpartition(".")
        module, scheme = modules[path], None
        parameters += parameter_count(name, array, module)
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)) and kind != "bias":
            scheme = Scheme(module.bits, module.group_size, module.mode)
        part = adapter.linears.get(path.removeprefix("model.").removesuffix(".base"))
        fused = part is not None and path.endswith(".base")
        if scheme is not None and kind != "weight" and (fused or not keep):
            continue  # part of the weight's task
        if scheme is not None and keep and not fused:
            tasks.append(_copy(name, array, stored[name], layout))
            continue
        task = task_of(name, array, scheme, stored, Rules(), dtype, width, layout)
        if fused:
            task = _fused(task, part, scheme if keep else None, layout)
        tasks.append(task)
    tasks.sort(key=lambda task: ORDER.index(component(task.name)))
    return tasks, parameters


def _copy(name: str, array: mx.array, source: StoredTensor, layout: str) -> Task:
    written = {written_name(name, layout): (source.dtype, tuple(array.shape))}
    return Copy(name, tuple(array.shape), (source,), None, None, source.dtype, source.shape != array.shape, written)


def _fused(task: Task, part: LinearAdapter, target: Scheme | None, layout: str) -> Fused:
    written, dtype = task.written, task.dtype
    if target is not None:
        path = task.name.rpartition(".")[0]
        dtype = next((s.dtype for s in task.sources[1:] if s.dtype in ("F32", "F16", "BF16")), "F32")
        outputs = target.outputs(task.shape, dtype)
        written = {written_name(f"{path}.{kind}", layout): what for kind, what in outputs.items()}
    values = {each.name: getattr(task, each.name) for each in dataclasses.fields(Task)}
    return Fused(**values | {"target": target, "dtype": dtype, "written": written}, added=part)
