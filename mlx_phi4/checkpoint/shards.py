"""The weight files of a folder as their headers tell: which there are, and what they hold."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..errors import CheckpointError
from ..files import read_json
from .tensorfile import StoredTensor, read_header

INDEX = "model.safetensors.index.json"
MERGED_PREFIXES = ("language_model.", "vision_tower.", "audio_encoder.")  # mlx-vlm's
FILE_NAME = re.compile(r"[^/\\\0]+\.safetensors")  # inside the folder: an index names no other places
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Shard:
    """A safetensors file whose header was read: published tensor name -> where and what it is."""

    path: Path
    tensors: dict[str, StoredTensor]


def read_shards(folder: Path) -> list[Shard]:
    """All shards of a folder, checked against its index. Raises CheckpointError."""
    index = folder / INDEX
    if not index.exists():
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
            reason = f"only pickled weights ({pickles[0]}), which are never loaded" if pickles else "none"
            raise CheckpointError(f"{folder}: expected *.safetensors, found {reason}")
        return [Shard(path, read_header(path)) for path in paths]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of names to files")
    names = sorted(set(weight_map.values()))
    if elsewhere := [name for name in names if not FILE_NAME.fullmatch(name)]:
        raise CheckpointError(f"{index} names what is no safetensors file of this folder: {some(elsewhere)}")
    paths = [folder / name for name in names]
    missing = [path.name for path in paths if not os.path.exists(path)]  # noqa: PTH110, a name may be too long
    if missing:
        raise CheckpointError(f"{folder}: shards named in the index are missing: {some(missing)}")
    shards = [Shard(path, read_header(path)) for path in paths]
    held = {(name, shard.path.name) for shard in shards for name in shard.tensors}
    differing = sorted(name for name, _ in held ^ set(weight_map.items()))
    if differing:
        raise CheckpointError(f"{folder}: index and shards disagree about {some(list(dict.fromkeys(differing)))}")
    return shards


def check_layout(config: Config, shards: list[Shard]) -> None:
    """Refuse a multimodal folder whose adapters were merged into the base: text mode is lost."""
    held = {name for shard in shards for name in shard.tensors}
    merged = any(name.startswith(MERGED_PREFIXES) for name in held)
    if config.layout == "microsoft" and merged and not any("lora" in name for name in held):
        raise CheckpointError(
            "both adapters were merged into these weights when they were converted, so neither "
            "the base model nor any single mode can be had from them; start from "
            "microsoft/Phi-4-multimodal-instruct"
        )


def some(found: list[str], count: int | None = None, shown: int = 5) -> str:
    """The first few of many names, and how many more there are; ``count`` in all, if not all are given."""
    rest = (len(found) if count is None else count) - shown
    return ", ".join(found[:shown]) + (f" and {rest} more" if rest > 0 else "")


def misshapen(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """A wrong shape in words."""
    return f"is {shape}, expected {wanted}" + (": it is transposed" if shape == wanted[::-1] else "")
