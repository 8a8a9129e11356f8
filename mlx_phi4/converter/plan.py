"""What a conversion will do, decided from headers alone: every tensor's source, change and place.

Nothing is read but headers, so a source that does not fit is refused before work starts, and the
size of the result is known to the byte.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint import names
from ..checkpoint.folder import Checkpoint, read_checkpoint
from ..checkpoint.tensorfile import CODES, FLOATS, STORED_DTYPES, StoredTensor, itemsize, shard_bytes
from ..checkpoint.weights import FLOAT_DTYPES
from ..config import CONVERSION_FORMAT, OWN_SECTION, Config
from ..errors import ConversionError
from ..model import Phi4
from .converted_config import dtype_name, output_config
from .quantization import ORDER, Rules, Scheme, component

PIECE = 16_000_000  # bytes of a source tensor that are worked on at once


@dataclass(frozen=True)
class Task:
    """One tensor of the source and what becomes of it.

    ``name`` is its name in ``Phi4``, ``shape`` its shape there, ``sources`` the stored weight (with
    scales and biases if it is quantized as ``stored``), ``target`` how to quantize it, ``dtype``
    the safetensors dtype of what is not packed, ``whole`` whether its axes or its size change, so
    that it is not worked on by rows, ``written`` output name -> (dtype, shape).
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[StoredTensor, ...]
    stored: Scheme | None
    target: Scheme | None
    dtype: str
    whole: bool
    written: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return sum(source.nbytes for source in self.sources)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are worked on at once."""
        rows = self.sources[0].shape[0]
        row_bytes = math.prod(self.shape[1:]) * itemsize(self.dtype)
        step = rows if self.whole else max(PIECE // max(row_bytes, 1), 1)
        for first in range(0, rows, step):
            yield first, min(first + step, rows)

    def compute(self, first: int, last: int) -> list[mx.array]:
        """What is written of these rows, lazily, in the order of ``written``."""
        weight, *others = (source.read(first, last) for source in self.sources)
        dtype = STORED_DTYPES[self.dtype][0]
        if self.stored is not None:
            # scales of the affine mode in the target's precision: the product is rounded once
            others = [a.astype(dtype) if self.stored.mode == "affine" else a for a in others]
            weight = mx.dequantize(weight, *others, **self.stored.table(), dtype=dtype)
        elif self.whole:
            weight = names.to_mlx_axes(self.name, weight)
        weight = weight.astype(dtype)
        if self.whole:
            weight = _resized(weight, self.shape)
        if self.target is None:
            return [mx.contiguous(weight)]
        return list(mx.quantize(weight, **self.target.table()))


@dataclass(frozen=True)
class Plan:
    """All tasks in the order of the output, the output's ``config.json``, and the source's folder."""

    source: Path
    layout: str
    tasks: list[Task]
    config: dict
    parameters: int

    @property
    def bytes_in(self) -> int:
        return sum(task.nbytes for task in self.tasks)

    @property
    def bytes_out(self) -> int:
        return sum(shard_bytes(task.written) for task in self.tasks)

    def shards(self, limit: int) -> list[list[Task]]:
        """Tasks by output file, each of at most ``limit`` bytes unless one tensor is larger."""
        shards: list[list[Task]] = []
        room = 0
        for task in self.tasks:
            need = shard_bytes(task.written)
            if not shards or need > room:
                shards.append([])
                room = limit
            shards[-1].append(task)
            room -= need
        return shards

    def fingerprint(self, limit: int) -> str:
        """Equal for equal work on an unchanged source: what --resume may go on with."""
        files = {source.path for task in self.tasks for source in task.sources}
        stats = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        tasks = [
            (list(t.written.items()), [(s.path.name, s.name) for s in t.sources], str((t.stored, t.target)))
            for t in self.tasks
        ]
        text = json.dumps([CONVERSION_FORMAT, limit, stats, tasks, self.config])
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    folder: Path,
    *,
    quantize: bool = True,
    dequantize: bool = False,
    dtype: str | None = None,
    **options,
) -> Plan:
    """Check a source folder strictly and decide about every tensor. Raises Phi4Error.

    Args:
        quantize: False keeps all weights in ``dtype``.
        dequantize: turn packed weights back, instead of the other way.
        dtype: float32, float16 or bfloat16; None is what ``config.json`` names, else what is stored.
        options: of ``quantization.Rules.of``.
    """
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise ConversionError(f"dtype is {dtype!r}, expected {', '.join(FLOAT_DTYPES)}")
    checkpoint = read_checkpoint(folder)
    config, raw = checkpoint.config, checkpoint.raw
    _check_direction(config, folder, dequantize)
    rules = Rules.of(config.decoder.num_hidden_layers, **options) if quantize and not dequantize else Rules()
    model, _ = checkpoint.open()  # lazily: proves that every tensor is there and fits, and the tokenizer, too
    dtype = dtype or dtype_name(raw) or ("bfloat16" if dequantize else None)
    width = vision_width(config, raw, rules)
    tasks, table = _tasks(model, config.layout, checkpoint.tensors(), rules, dtype, width)
    parameters = sum(math.prod(task.shape) for task in tasks)
    return plan_of(folder, checkpoint, tasks, table=table, dtype=dtype, width=width, parameters=parameters)


def plan_of(
    folder: Path,
    checkpoint: Checkpoint,
    tasks: list[Task],
    *,
    table: dict | None,
    dtype: str | None,
    width: int | None,
    parameters: int,
) -> Plan:
    """The plan of these tasks, with the ``config.json`` that the result will have.

    ``table`` tells how it is packed, ``dtype`` what the rest is stored in, ``width`` how wide the vision encoder's
    MLP becomes, ``parameters`` how many weights there are.
    """
    config = checkpoint.config
    if config.vision:
        config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, intermediate_size=width))
    return Plan(
        source=folder,
        layout=config.layout,
        tasks=tasks,
        config=output_config(checkpoint.raw, config, table, dtype),
        parameters=parameters,
    )


def _check_direction(config: Config, folder: Path, dequantize: bool) -> None:
    table = config.quantization
    if table and "quant_method" in table and "bits" not in table:
        raise ConversionError(f"{folder}: quantized by {table['quant_method']!r}, which MLX does not read")
    if table and not dequantize:
        raise ConversionError(f"{folder}: the weights are quantized already; --dequantize turns them back first")
    if dequantize and not table:
        raise ConversionError(f"{folder}: nothing to dequantize, the weights are not quantized")


def vision_width(config: Config, raw: dict, rules: Rules) -> int | None:
    """Width of SigLIP's MLP in the output: padded for quantization, unpadded otherwise."""
    if config.vision is None:
        return None
    own = raw.get(OWN_SECTION) or {}
    return rules.padded(own.get("vision_intermediate_size") or config.vision.intermediate_size)


def _tasks(model: Phi4, layout: str, stored: dict[str, StoredTensor], rules: Rules, dtype: str | None, width):
    """The tasks, decoder first, and the quantization table (or None)."""
    modules = dict(model.named_modules())
    table: dict = rules.decoder.table() if rules.decoder else {}
    tasks = []
    for name, array in tree_flatten(model.parameters()):
        path, _, kind = name.rpartition(".")
        module = modules[path]
        scheme = None
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
            if kind in ("scales", "biases"):
                continue
            scheme = Scheme(module.bits, module.group_size, module.mode) if kind == "weight" else None
        task = task_of(name, array, scheme, stored, rules if _packable(module, name) else Rules(), dtype, width, layout)
        if _packable(module, name) and task.target != rules.decoder:
            # the loader's table has no entry for what follows its default
            table[written_name(path, layout)] = task.target.table() if task.target else False
        tasks.append(task)
    tasks.sort(key=lambda task: ORDER.index(component(task.name)))
    return tasks, table or None


def task_of(name, array, scheme, stored, rules, dtype, width, layout) -> Task:
    """What becomes of one parameter, stored as ``scheme`` packs it, by these rules."""
    path = name.rpartition(".")[0]
    sources = [stored[name]]
    shape = tuple(array.shape)
    before = sources[0].shape
    if scheme:
        sources += [stored[f"{path}.{part}"] for part in ("scales", "biases") if f"{path}.{part}" in stored]
        before = shape = (*shape[:-1], shape[-1] * 32 // scheme.bits)
    elif sources[0].dtype not in FLOATS:
        raise ConversionError(f"{sources[0].path}: {sources[0].name} has dtype {sources[0].dtype}, expected a float")
    if name.startswith("vision_encoder.layers."):
        shape = _vision_shape(name, shape, width)
    floats = next((s.dtype for s in reversed(sources) if s.dtype in FLOATS), "BF16")
    code = CODES[FLOAT_DTYPES[dtype]] if dtype else floats
    target = rules.scheme(path, shape)
    outputs = target.outputs(shape, code) if target else {name.rpartition(".")[2]: (code, shape)}
    prefix = f"{path}." if path else ""
    written = {written_name(prefix + part, layout): what for part, what in outputs.items()}
    return Task(name, shape, tuple(sources), scheme, target, code, before != shape, written)


def _packable(module: nn.Module, name: str) -> bool:
    """Linear layers (1x1 convolutions among them) and the token embedding."""
    kinds = (nn.Linear, nn.QuantizedLinear)
    return name == "model.embed_tokens.weight" or (name.endswith(".weight") and isinstance(module, kinds))


def _vision_shape(name: str, shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    if ".mlp.fc1." in name:
        return (width, *shape[1:])
    return (shape[0], width) if name.endswith(".mlp.fc2.weight") else shape


def _resized(weight: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Cut, or fill with zeros, at the end of each axis."""
    if weight.shape == shape:
        return weight
    weight = weight[tuple(slice(size) for size in shape)]
    return mx.pad(weight, [(0, size - have) for size, have in zip(shape, weight.shape, strict=True)])


_TEXT_NAMES = {new: old for old, new in names.TEXT.items()}


def written_name(name: str, layout: str) -> str:
    """A parameter's or module's name in the output: the ecosystem's for text models, else our own."""
    if layout != "text":
        return name
    whole = name.endswith((".weight", ".scales", ".biases"))
    found = names.rename(name if whole else f"{name}.weight", _TEXT_NAMES)
    return found if whole else found.removesuffix(".weight")
