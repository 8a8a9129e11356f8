"""mlx-lm's adapter folders: one rank and one scale for all linears, matrices transposed.

``adapters.safetensors`` holds ``model.layers.#.self_attn.o_proj.lora_a`` (inputs, rank), ``lora_b`` (rank, outputs)
and for DoRA ``m`` (outputs,); ``adapter_config.json`` says ``fine_tune_type``, ``num_layers`` from the last one,
and ``lora_parameters`` with an absolute ``scale`` (mlx_lm/tuner/utils.py).
"""

import math
import re

import mlx.core as mx

from ..config import DecoderConfig, check_float, check_integer
from ..decoder.adapters import Adapter, LinearAdapter, decoder_linears
from ..errors import CheckpointError, ConfigError
from .fields import either, need, object_in
from .names import DECODER_LINEARS
from .shards import misshapen, some

_NAME = re.compile(r"model\.(?P<path>layers\.(?:0|[1-9]\d{0,5})\.[\w.]+)\.(?P<kind>lora_a|lora_b|m)")
TUNED = ("lora", "dora")


def from_mlx_lm(tensors: dict[str, mx.array], raw: dict, decoder: DecoderConfig) -> dict[str, LinearAdapter]:
    """Path in ``Phi4.model`` -> part, from the tensors and ``adapter_config.json`` of a folder.

    Ranks of zeros, which fill up where a linear has fewer than ``rank``, are left out again.

    Raises:
        CheckpointError: tensors that do not fit; all of them are used.
        ConfigError: what is missing or cannot be exact, by name.
    """
    rank, scale, dora = _read_config(raw)
    shapes = decoder_linears(decoder)
    found: dict[str, dict[str, mx.array]] = {}
    strange, problems = [], []
    for name, array in tensors.items():
        match = _NAME.fullmatch(name)
        if not match or match["path"] not in shapes:
            strange.append(name)
        else:
            found.setdefault(match["path"], {})[match["kind"]] = array
    if strange:
        raise CheckpointError(f"{len(strange)} tensors are not of this model's decoder linears: {some(strange)}")
    if not found:
        raise CheckpointError("holds no tensors")
    for path, arrays in found.items():
        outputs, inputs = shapes[path]
        wanted = {"lora_a": (inputs, rank), "lora_b": (rank, outputs)} | ({"m": (outputs,)} if dora else {})
        problems += [f"{path} lacks {kind}" for kind in wanted if kind not in arrays]
        for kind, array in arrays.items():
            if kind not in wanted:
                problems.append(f"{path} has {kind}, but fine_tune_type is 'lora'")
            elif array.shape != wanted[kind]:
                problems.append(f"{path} {kind} {misshapen(array.shape, wanted[kind])}")
    if problems:
        raise CheckpointError(some(problems))
    return {path: _part(arrays, scale) for path, arrays in found.items()}


def to_mlx_lm(adapter: Adapter, decoder: DecoderConfig) -> tuple[dict[str, mx.array], dict]:
    """Tensors and ``adapter_config.json`` of mlx-lm's folder, smaller ranks filled up with zeros.

    Raises CheckpointError where linears have scales that one for all cannot stand for exactly.
    """
    rank = max(part.rank for part in adapter.linears.values())
    scale = next(iter(adapter.linears.values())).scale
    tensors: dict[str, mx.array] = {}
    for path, part in adapter.linears.items():
        if adapter.is_dora and part.magnitude is None:
            raise CheckpointError(f"{path} has no magnitude and other linears have one: mlx-lm knows all or none")
        ratio = part.scale / scale
        if math.frexp(ratio)[0] != 0.5:
            raise CheckpointError(f"mlx-lm has one scale for all linears, this adapter {scale:g} and {part.scale:g}")
        room = [(0, rank - part.rank), (0, 0)]
        tensors[f"model.{path}.lora_a"] = mx.pad(part.down, room).T
        tensors[f"model.{path}.lora_b"] = mx.pad((part.up if ratio == 1.0 else part.up * ratio).T, room)
        if part.magnitude is not None:
            tensors[f"model.{path}.m"] = part.magnitude
    first = min(int(path.split(".")[1]) for path in adapter.linears)
    return tensors, {
        "fine_tune_type": "dora" if adapter.is_dora else "lora",
        "num_layers": decoder.num_hidden_layers - first,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": 0.0,
            "keys": [name for name in DECODER_LINEARS if any(path.endswith(name) for path in adapter.linears)],
        },
    }


def _read_config(raw: dict) -> tuple[int, float, bool]:
    """Rank, scale, and whether it is DoRA."""
    kind = either(raw, "fine_tune_type", "lora")
    if kind not in TUNED:
        raise ConfigError(f"fine_tune_type is {kind!r}, only {' and '.join(map(repr, TUNED))} are adapters")
    parameters = object_in(raw, "lora_parameters")
    if "alpha" in parameters and "scale" not in parameters:
        raise ConfigError("lora_parameters has alpha and no scale: mlx-lm's own folders name the scale itself")
    rank, scale = need(parameters, "rank", "scale")
    check_integer("rank", rank)
    check_float("scale", scale)
    return rank, float(scale), kind == "dora"


def _part(arrays: dict[str, mx.array], scale: float) -> LinearAdapter:
    down, up = arrays["lora_a"].T, arrays["lora_b"].T
    used = (down != 0).any(axis=1).tolist()
    rank = max((index + 1 for index, each in enumerate(used) if each), default=1)
    down, up = mx.contiguous(down[:rank]), mx.contiguous(up[:, :rank])
    return LinearAdapter(down, up, scale, arrays.get("m"))
