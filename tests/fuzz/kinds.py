"""The kinds of files that are spoiled, and how each is read. To add one, add it to KINDS."""

import json
import shutil
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np
from asked import ASKED_KINDS
from asked_by_http import HTTP_KINDS
from commanded import COMMAND_KINDS
from driver import Kind
from media import MEDIA_KINDS
from mutations import spoiled_json, spoiled_safetensors, spoiled_template

import mlx_phi4
from mlx_phi4 import PromptCache
from mlx_phi4.checkpoint.config_readers import read_config
from mlx_phi4.checkpoint.folder import read_checkpoint
from mlx_phi4.checkpoint.shards import read_shards
from mlx_phi4.checkpoint.tensorfile import read_header
from mlx_phi4.decoder.rope import LongRope
from mlx_phi4.generation.prompt_cache import _checksum
from mlx_phi4.inputs.chat_template import read_default_system
from mlx_phi4.inputs.tokenizer import Tokenizer
from mlx_phi4.synthetic.published_tokenizer import CHAT_TEMPLATE

WEIGHTS = "model.safetensors"
CONFIG, TOKENIZER, PREPROCESSOR = "config.json", "tokenizer.json", "preprocessor_config.json"
PART = b"\n--part--\n"  # between a file's name and its content


def layouts(folder: Path) -> list[Path]:
    return [folder / name for name in ("microsoft", "transformers", "text")]


def files(name: str):
    """A function folder -> contents of the files of this name."""
    return lambda folder: [(layout / name).read_bytes() for layout in layouts(folder)]


def configs(folder: Path) -> list[bytes]:
    """Those of the layouts, and one as it is after converting."""
    found = files(CONFIG)(folder)
    own = {"quantization": {"group_size": 64, "bits": 4, "vision_projector.up": False}, "mlx_phi4": {"format": 1}}
    return [*found, json.dumps(json.loads(found[0]) | own).encode()]


def read_a_config(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted goes into the arithmetic of positions without overflow."""
    if b"phi4_multimodal" in content:
        for name in ("vision-lora", "speech-lora"):
            shutil.copytree(folder / "transformers" / name, scratch / name, ignore=shutil.ignore_patterns("*.safe*"))
    (scratch / CONFIG).write_bytes(content)
    config = read_config(scratch)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        LongRope(config.decoder.rope)


def read_a_tokenizer(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted gives ids that the model has."""
    (scratch / TOKENIZER).write_bytes(content)
    config = read_config(folder / "microsoft")
    tokenizer = Tokenizer(scratch, config)
    ids = tokenizer.encode("Hello  wörld 123 <|end|>\n") + tokenizer.encode_plain("<|user|>")
    assert all(0 <= id < config.decoder.vocab_size for id in ids)
    tokenizer.decode(ids)


def read_stops(content: bytes, scratch: Path, folder: Path) -> None:
    shutil.copy(folder / "text" / TOKENIZER, scratch)
    (scratch / "generation_config.json").write_bytes(content)
    stops = Tokenizer(scratch, read_config(folder / "text")).stop_ids
    assert all(type(id) is int and id >= 0 for id in stops)


def read_a_template(content: bytes, scratch: Path, folder: Path) -> None:
    (scratch / "chat_template.jinja").write_bytes(content)
    read_default_system(scratch)


def read_a_tokenizer_config(content: bytes, scratch: Path, folder: Path) -> None:
    (scratch / "tokenizer_config.json").write_bytes(content)
    read_default_system(scratch)


def preprocessors(folder: Path) -> list[bytes]:
    return [(folder / name / PREPROCESSOR).read_bytes() for name in ("microsoft", "transformers")]


def read_a_preprocessor(content: bytes, scratch: Path, folder: Path) -> None:
    for path in (folder / "microsoft").iterdir():
        (scratch / path.name).symlink_to(path)
    (scratch / PREPROCESSOR).unlink()
    (scratch / PREPROCESSOR).write_bytes(content)
    read_checkpoint(scratch)


def read_weights(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted lies within the file."""
    (scratch / WEIGHTS).write_bytes(content)
    for tensor in read_header(scratch / WEIGHTS).values():
        assert tensor.start + tensor.nbytes <= len(content)


def indices(folder: Path) -> list[bytes]:
    names = read_header(folder / "text" / WEIGHTS)
    return [json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, WEIGHTS)}).encode()]


def read_an_index(content: bytes, scratch: Path, folder: Path) -> None:
    (scratch / WEIGHTS).symlink_to(folder / "text" / WEIGHTS)
    (scratch / f"{WEIGHTS}.index.json").write_bytes(content)
    read_shards(scratch)


SPOILED = {
    CONFIG: spoiled_json,
    TOKENIZER: spoiled_json,
    "generation_config.json": spoiled_json,
    WEIGHTS: spoiled_safetensors,
}


def folders(folder: Path) -> list[bytes]:
    """A file of the whole folder each, after its layout and name."""
    return [
        f"{layout.name}/{name}".encode() + PART + (layout / name).read_bytes()
        for layout in layouts(folder)
        for name in SPOILED
    ]


def spoiled_folder(random: Random, content: bytes) -> bytes:
    place, _, content = content.partition(PART)
    return place + PART + SPOILED[place.decode().partition("/")[2]](random, content)


def read_a_folder(content: bytes, scratch: Path, folder: Path) -> None:
    """What loads answers, too."""
    place, _, content = content.partition(PART)
    layout, _, name = place.decode().partition("/")
    for path in (folder / layout).iterdir():
        (scratch / path.name).symlink_to(path)
    (scratch / name).unlink()
    (scratch / name).write_bytes(content)
    model, processor = mlx_phi4.load(scratch)
    mx.eval(model(processor("Hi <|end|>")))


@cache
def text_model(folder: Path):
    return mlx_phi4.load(folder / "text")


def prompt_caches(folder: Path) -> list[bytes]:
    """Plain, packed and of a window."""
    found, pair = [], text_model(folder)
    for options in ({}, {"kv_bits": 8, "kv_group_size": 32}, {"max_kv_size": 16}):
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / WEIGHTS
            mlx_phi4.cache_prompt(*pair, "Tell me of the sea.", **options).save(path, pair[0])
            found.append(path.read_bytes())
    return found


def spoiled_prompt_cache(random: Random, content: bytes) -> bytes:
    """Damaged, or forged: what the file says of itself is changed and its checksum made to fit."""
    if random.random() < 0.4:
        return spoiled_safetensors(random, content)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / WEIGHTS
        path.write_bytes(content)
        arrays, described = mx.load(str(path), return_metadata=True)
        state = spoiled_json(random, described["state"].encode()).decode("utf-8", "replace")
        mx.save_safetensors(str(path), arrays, {"state": state, "checksum": _checksum(state, arrays)})
        return path.read_bytes()


def read_a_prompt_cache(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted answers, too."""
    (scratch / WEIGHTS).write_bytes(content)
    model, processor = text_model(folder)
    prompt_cache = PromptCache.load(scratch / WEIGHTS, model)
    mlx_phi4.generate(model, processor, "Tell me of the sea.", max_tokens=1, prompt_cache=prompt_cache)


KINDS = [
    Kind("config", 400, read_a_config, configs, spoiled_json),
    Kind("tokenizer", 250, read_a_tokenizer, files(TOKENIZER), spoiled_json),
    Kind("stops", 50, read_stops, files("generation_config.json"), spoiled_json),
    Kind("template", 350, read_a_template, lambda folder: [CHAT_TEMPLATE.encode()], spoiled_template),
    Kind("tokenizer-config", 50, read_a_tokenizer_config, files("tokenizer_config.json"), spoiled_json),
    Kind("weights", 150, read_weights, lambda folder: files(WEIGHTS)(folder)[2:], spoiled_safetensors),
    Kind("preprocessor", 50, read_a_preprocessor, preprocessors, spoiled_json),
    Kind("index", 50, read_an_index, indices, spoiled_json),
    Kind("folder", 200, read_a_folder, folders, spoiled_folder),
    Kind("prompt-cache", 500, read_a_prompt_cache, prompt_caches, spoiled_prompt_cache),
    *MEDIA_KINDS,
    *ASKED_KINDS,
    *HTTP_KINDS,
    *COMMAND_KINDS,
]
