"""A strict fit of a folder's tensors to the model. It stays lazy: bytes are read when a computation needs them."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import Config
from ..device import cpu_stream
from ..errors import CheckpointError, Phi4Error
from . import names
from .shards import Shard, read_shard, some

FLOAT_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def load_weights(model: nn.Module, folder: Path, shards: list[Shard], dtype: mx.Dtype | str | None = None) -> None:
    """Fit a folder's tensors to the model, strictly and lazily.

    Every tensor is used or dropped on purpose.

    Args:
        dtype: float32, float16 or bfloat16, for all floats; None keeps the stored one.

    Raises:
        CheckpointError: missing, unexpected and misshapen tensors, listed together.
        Phi4Error: another dtype.
    """
    dtype = _float_dtype(dtype)
    config: Config = model.config
    weights, unexpected = _collect(config, folder, shards)
    quantize_like(model, config, weights)
    expected = dict(tree_flatten(model.parameters()))
    misshapen = [
        f"{name} {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in weights.keys() & expected.keys()
        if weights[name].shape != expected[name].shape
    ]
    misshapen += [
        f"{name} is {weights[name].dtype}, expected {expected[name].dtype}"
        for name in weights.keys() & expected.keys()
        if mx.issubdtype(weights[name].dtype, mx.floating) != mx.issubdtype(expected[name].dtype, mx.floating)
    ]
    unexpected += sorted(weights.keys() - expected.keys())
    _report(folder, sorted(expected.keys() - weights.keys()), unexpected, sorted(misshapen))
    if dtype is not None:
        weights = {name: w.astype(dtype) if mx.issubdtype(w.dtype, mx.floating) else w for name, w in weights.items()}
    model.load_weights(list(weights.items()))


def locate(config: Config, folder: Path, shards: list[Shard]) -> tuple[dict[str, tuple[Path, str]], list[str]]:
    """Name in ``Phi4`` -> (file, published name) of all that is used, and the names that no table knows."""
    places: dict[str, tuple[Path, str]] = {}
    unexpected: list[str] = []
    sources = [(shard, names.TABLES.get(config.layout), "") for shard in shards]
    if config.layout == "transformers":
        for adapter in config.adapters:
            path = folder / f"{adapter}-lora" / "adapter_model.safetensors"
            table = {old: new.format(name=adapter) for old, new in names.PEFT.items()}
            sources.append((read_shard(path), table, adapter))
    for shard, table, adapter in sources:
        for name in shard.shapes:
            try:
                new = name if table is None else names.rename(_plain(name, adapter), table)
            except KeyError:
                unexpected.append(f"{shard.path.parent.name}/{name}" if adapter else name)
                continue
            if new is not None and not _unused(new, config):
                places[new] = (shard.path, name)
    return places, unexpected


def _collect(config: Config, folder: Path, shards: list[Shard]):
    """All tensors under their new names, and the names that no table knows."""
    places, unexpected = locate(config, folder, shards)
    files = {
        path: mx.load(str(path), stream=cpu_stream()) for path in dict.fromkeys(path for path, _ in places.values())
    }
    weights = {new: files[path][name] for new, (path, name) in places.items()}
    if config.layout in names.TABLES:
        weights = {name: names.to_mlx_axes(name, weight) for name, weight in weights.items()}
    return weights, unexpected


def _plain(name: str, adapter: str) -> str:
    """PEFT writes keys with or without a prefix, and sometimes the adapter's name inside."""
    if not adapter:
        return name
    name = name.removeprefix("base_model.model.")
    for inner in (adapter, "default"):
        name = name.replace(f".{inner}.weight", ".weight")
    return name


def _unused(name: str, config: Config) -> bool:
    """The last SigLIP layer, and the copy of a tied head, are dropped on purpose."""
    if config.vision and name.startswith(f"vision_encoder.layers.{config.vision.used_layers}."):
        return True
    return name == "lm_head.weight" and config.decoder.tie_word_embeddings


def quantize_like(model: nn.Module, config: Config, weights: dict[str, mx.array]) -> None:
    """Make those layers quantized that have ``.scales``, as the table in ``config.json`` says.

    Raises CheckpointError where tensors and table disagree.
    """
    quantized = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    if not quantized:
        if config.quantization:
            raise CheckpointError("config.json has a quantization table, but no tensor has scales")
        return
    if not config.quantization:
        raise CheckpointError("tensors have scales, but config.json has no quantization table")
    table = config.quantization
    default = {key: table[key] for key in ("group_size", "bits", "mode") if key in table}
    overrides = {_module_path(name): value for name, value in table.items() if isinstance(value, (dict, bool))}
    unwanted = sorted(path for path in quantized if overrides.get(path) is False)
    unmet = sorted(p for p, v in overrides.items() if isinstance(v, dict) and p not in quantized)
    if unwanted or unmet:
        raise CheckpointError(f"the quantization table disagrees with the tensors about {some(unwanted + unmet)}")

    def settings(path: str, module: nn.Module):
        if path not in quantized or not hasattr(module, "to_quantized"):
            return False
        chosen = overrides.get(path)
        return chosen if isinstance(chosen, dict) else default

    try:
        nn.quantize(model, **default, class_predicate=settings)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"quantization in config.json is not supported: {error}") from None


def _module_path(name: str) -> str:
    """A module's path in ``Phi4`` from its path in the ecosystem's text models."""
    try:
        return names.rename(f"{name}.weight", names.TEXT).removesuffix(".weight")
    except KeyError:
        return name


def _report(folder: Path, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    parts = [f"{len(found)} {kind}: {some(found)}" for kind, found in kinds.items() if found]
    if parts:
        raise CheckpointError(f"{folder}: tensors do not fit the configuration: {'; '.join(parts)}")


def _float_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    if dtype is None or dtype in FLOAT_DTYPES.values():
        return dtype
    if dtype not in FLOAT_DTYPES:
        raise Phi4Error(f"dtype is {dtype!r}, expected {', '.join(FLOAT_DTYPES)}")
    return FLOAT_DTYPES[dtype]
