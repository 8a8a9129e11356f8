"""Random checkpoints of any size in the published layouts: for tests, benchmarks and trying the commands offline.

    python -m mlx_phi4.synthetic.random_checkpoint some/folder --layout microsoft --size reduced

The same size and seed give the same weights in every layout, on every platform, so answers can be compared.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from ..checkpoint.tensorfile import itemsize, write_header
from .published import ADAPTERS, LAYOUTS, SIZES, Sizes, adapter_sources, sources
from .published_files import adapter_config, config, other_files

WRITTEN_DTYPES = {"float32": "F32", "bfloat16": "BF16"}  # and their names in the file
PERIOD = 4_194_301  # values, which then repeat; prime, so that rows do not (equal rows would tie logits)

# How large values are, first match wins: pattern of the canonical name, kind, size.
#   gain: standard deviation size / sqrt(fan in), so that an input of deviation 1 comes out with deviation `size`
#   near: uniform around a centre, (centre, half width)
# Chosen so that the reduced models behave like trained ones: logits of deviation about 5, attention neither uniform
# nor one-hot, media features as large as token embeddings, adapters that move logits by 1-3.
VALUES = (
    (r"embed_tokens\.weight$", "gain", 5.0),
    (r"(qkv_proj|gate_up_proj)\.base_layer\.weight$", "gain", 1.2),
    (r"(o_proj|down_proj)\.base_layer\.weight$", "gain", 2.5),
    (r"\.lora_A\.\w+\.weight$", "gain", 1.0),
    (r"(qkv_proj|gate_up_proj)\.lora_B\.\w+\.weight$", "gain", 0.06),
    (r"(o_proj|down_proj)\.lora_B\.\w+\.weight$", "gain", 0.12),
    (r"(glb_GN|sub_GN)$", "near", (0.0, 3.0)),
    (r"position_embedding\.weight$", "near", (0.0, 1.0)),
    (r"patch_embedding\.weight$", "gain", 3.0),
    (r"layers\.\d+\.self_attn\.[qk]_proj\.weight$", "gain", 1.4),
    (r"img_projection\.0\.weight$", "gain", 0.5),
    (r"audio_projection\.\w+\.0\.weight$", "gain", 1.0),
    (r"_projection(\.\w+)?\.2\.weight$", "embedding", 1.5),
    (r"_projection(\.\w+)?\.2\.bias$", "embedding", 0.2),
    (r"global_mean$", "near", (15.0, 2.0)),
    (r"global_invstd$", "near", (0.28, 0.08)),
    (r"bias_values\.weight$", "near", (0.0, 1.0)),
    (r"linear_[qk]\.weight$", "gain", 1.4),
    (r"embed\.conv\.\d\.weight$", "gain", 2.0),
    (r"\.b[12]$", "near", (0.0, 0.5)),
    (r"norm\w*\.weight$", "near", (1.0, 0.25)),
    (r"bias$", "near", (0.0, 0.2)),
    (r"", "gain", 1.2),
)


def write_random_checkpoint(
    folder: str | Path,
    layout: str = "microsoft",
    size: str | Sizes = "reduced",
    *,
    seed: int = 0,
    dtype: str = "float32",
    shard_bytes: int = 1_000_000_000,
) -> Path:
    """Write a random checkpoint into `folder` (made if missing) and return its path.

    Args:
        layout: "microsoft" (phi4mm, adapters in the shards), "transformers" (phi4_multimodal, adapters beside the
            shards in vision-lora/ and speech-lora/) or "text" (phi3, the base decoder alone).
        size: "reduced" (4 MB in float32), "wide" (24 MB), "full" (the published sizes, 11 GB in bfloat16),
            or any `Sizes`.
        seed: other seeds give other weights; layouts never do.
        dtype: "float32", or "bfloat16": the same values rounded to nearest even.
        shard_bytes: largest safetensors file, in bytes; only a tensor that is larger by itself exceeds it.
    """
    for what, value, known in (("layout", layout, LAYOUTS), ("size", size, SIZES), ("dtype", dtype, WRITTEN_DTYPES)):
        if isinstance(value, str) and value not in known:
            raise ValueError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")
    sizes = SIZES[size] if isinstance(size, str) else size
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ({"config.json": config(sizes, layout, dtype)} | other_files(sizes, layout)).items():
        _write_json(folder / name, content)
    _write_shards(folder, sources(sizes, layout), sizes, seed, dtype, shard_bytes)
    for adapter in ADAPTERS if layout == "transformers" else ():
        beside = folder / f"{adapter}-lora"
        beside.mkdir(exist_ok=True)
        _write_json(beside / "adapter_config.json", adapter_config(sizes, adapter))
        path = beside / "adapter_model.safetensors"
        _write_safetensors(path, adapter_sources(sizes, adapter), sizes, seed, dtype)
    return folder


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shards(folder: Path, found: dict, sizes: Sizes, seed: int, dtype: str, shard_bytes: int):
    """One model.safetensors, or numbered shards with an index where it would exceed `shard_bytes`."""
    for old in folder.glob("model*.safetensors*"):  # a rewritten folder must not keep shards of the last time
        old.unlink()
    shards, room = [{}], shard_bytes
    for name, (canonical, shape) in found.items():
        need = math.prod(shape) * itemsize(WRITTEN_DTYPES[dtype])
        if need > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = (canonical, shape)
        room -= need
    if len(shards) == 1:
        _write_safetensors(folder / "model.safetensors", found, sizes, seed, dtype)
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    total = sum(math.prod(shape) for _, shape in found.values()) * itemsize(WRITTEN_DTYPES[dtype])
    where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    for file, shard in zip(names, shards, strict=True):
        _write_safetensors(folder / file, shard, sizes, seed, dtype)
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": where},
    )


def _write_safetensors(path: Path, found: dict, sizes: Sizes, seed: int, dtype: str):
    """Stream tensors into one file: the library wants all of them in memory at once."""
    with path.open("wb") as file:
        write_header(file, {name: (WRITTEN_DTYPES[dtype], shape) for name, (_, shape) in found.items()}, "pt")
        for canonical, shape in found.values():
            for piece in _pieces(canonical, shape, sizes, seed, dtype):
                file.write(piece)


def _pieces(canonical: str, shape: tuple[int, ...], sizes: Sizes, seed: int, dtype: str) -> Iterator[np.ndarray]:
    """The little-endian data of a tensor, in pieces of at most one period."""
    total = math.prod(shape)
    centre, half = value_range(canonical, shape, sizes)
    block = centre + half * _uniform(canonical, min(total, PERIOD), seed)
    data = block.astype("<f4") if dtype == "float32" else _bfloat16(block)
    for start in range(0, total, PERIOD):
        yield data[: total - start]


def value_range(canonical: str, shape: tuple[int, ...], sizes: Sizes) -> tuple[np.float32, np.float32]:
    """(centre, half width) of the uniform distribution that fills this tensor."""
    kind, size = next((kind, size) for pattern, kind, size in VALUES if re.search(pattern, canonical))
    if kind == "near":
        centre, half = size
    else:
        fan_in = math.prod(shape[1:])
        if kind == "embedding":  # comes out as large as a token embedding, whatever the width
            size *= 5.0 / math.sqrt(sizes.hidden)
            fan_in = fan_in if len(shape) > 1 else 1
        centre, half = 0.0, size * math.sqrt(3 / fan_in)  # uniform(-a, a) has deviation a / sqrt(3)
    return np.float32(centre), np.float32(half)


def _uniform(canonical: str, count: int, seed: int) -> np.ndarray:
    """`count` float32 values in (-1, 1), the same on every platform: 24 bits from each half of PCG64's raw words."""
    digest = hashlib.sha256(f"{seed}:{canonical}".encode()).digest()
    words = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw((count + 1) // 2)
    halves = np.empty(2 * len(words), np.uint32)
    halves[0::2] = words >> np.uint64(40)
    halves[1::2] = (words >> np.uint64(8)) & np.uint64(0xFFFFFF)
    return ((halves[:count].astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)) - np.float32(1)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 as its upper 16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--layout", type=click.Choice(LAYOUTS), default="microsoft", show_default=True)
@click.option("--size", type=click.Choice(list(SIZES)), default="reduced", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dtype", type=click.Choice(list(WRITTEN_DTYPES)), default="float32", show_default=True)
def main(folder: Path, **options):
    """Write a random checkpoint in a published layout into FOLDER."""
    click.echo(write_random_checkpoint(folder, **options))


if __name__ == "__main__":
    main()
