"""Reading checkpoints: which files there are, what they hold, and a strict fit to the model.

Everything stays lazy: headers are read and checked, tensors only when a computation needs them.
"""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import Config
from ..errors import CheckpointError
from ..files import read_json
from . import names

INDEX = "model.safetensors.index.json"
MERGED_PREFIXES = ("language_model.", "vision_tower.", "audio_encoder.")  # mlx-vlm's
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Shard:
    """A safetensors file whose header was read: tensor name -> published shape."""

    path: Path
    shapes: dict[str, tuple[int, ...]]


def read_shards(folder: Path) -> list[Shard]:
    """All shards of a folder, checked against its index. Raises CheckpointError."""
    index = folder / INDEX
    if not index.exists():
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
            reason = f"only pickled weights ({pickles[0]}), which are never loaded" if pickles else "none"
            raise CheckpointError(f"{folder}: expected *.safetensors, found {reason}")
        return [read_shard(path) for path in paths]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of names to files")
    paths = [folder / name for name in sorted(set(weight_map.values()))]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise CheckpointError(f"{folder}: shards named in the index are missing: {_some(missing)}")
    shards = [read_shard(path) for path in paths]
    held = {(name, shard.path.name) for shard in shards for name in shard.shapes}
    differing = sorted(name for name, _ in held ^ set(weight_map.items()))
    if differing:
        raise CheckpointError(f"{folder}: index and shards disagree about {_some(list(dict.fromkeys(differing)))}")
    return shards


def read_shard(path: Path) -> Shard:
    """Read a shard's header; safetensors itself checks that the file has all the bytes."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, "np") as file:
            return Shard(path, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from None


def check_layout(config: Config, shards: list[Shard]) -> None:
    """Refuse a multimodal folder whose adapters were merged into the base: text mode is lost."""
    held = {name for shard in shards for name in shard.shapes}
    merged = any(name.startswith(MERGED_PREFIXES) for name in held)
    if config.layout == "microsoft" and merged and not any("lora" in name for name in held):
        raise CheckpointError(
            "both adapters were merged into these weights when they were converted, so neither "
            "the base model nor any single mode can be had from them; start from "
            "microsoft/Phi-4-multimodal-instruct"
        )


def load_weights(model: nn.Module, folder: Path, shards: list[Shard], dtype: mx.Dtype | None = None) -> None:
    """Fit a folder's tensors to the model, strictly and lazily.

    Every tensor is used or dropped on purpose. Raises one CheckpointError that lists the missing,
    unexpected and misshapen ones together.
    """
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
    files = {path: mx.load(str(path)) for path in dict.fromkeys(path for path, _ in places.values())}
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
        raise CheckpointError(f"the quantization table disagrees with the tensors about {_some(unwanted + unmet)}")

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
    parts = [f"{len(found)} {kind}: {_some(found)}" for kind, found in kinds.items() if found]
    if parts:
        raise CheckpointError(f"{folder}: tensors do not fit the configuration: {'; '.join(parts)}")


def _some(found: list[str], shown: int = 5) -> str:
    rest = len(found) - shown
    return ", ".join(found[:shown]) + (f" and {rest} more" if rest > 0 else "")
