"""The weight files of a folder as their headers tell: which there are, and what they hold."""

from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..errors import CheckpointError
from ..files import read_json

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
        raise CheckpointError(f"{folder}: shards named in the index are missing: {some(missing)}")
    shards = [read_shard(path) for path in paths]
    held = {(name, shard.path.name) for shard in shards for name in shard.shapes}
    differing = sorted(name for name, _ in held ^ set(weight_map.items()))
    if differing:
        raise CheckpointError(f"{folder}: index and shards disagree about {some(list(dict.fromkeys(differing)))}")
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


def some(found: list[str], shown: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    rest = len(found) - shown
    return ", ".join(found[:shown]) + (f" and {rest} more" if rest > 0 else "")
