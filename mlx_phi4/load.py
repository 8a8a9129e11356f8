"""From a folder or hub id to a model and its processor."""

import dataclasses
import re
from pathlib import Path

import mlx.core as mx

from .callable_module import make_callable
from .checkpoint import Shard, check_layout, load_weights, read_shards
from .config import Config, read_json
from .errors import CheckpointError, Phi4Error
from .model import Phi4
from .processor import Processor
from .tokenizer import Tokenizer

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BIAS_TABLE = "relative_attention_bias_layer.bias_values.weight"


def load(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | str | None = None,
    lazy: bool = True,
    quantize: int | None = None,
) -> tuple[Phi4, Processor]:
    """Load what is published, as it is published.

    Args:
        path_or_hub_id: a checkpoint folder, or a hub id (downloaded once, safetensors only).
        revision: branch, tag or commit of a hub id.
        dtype: float32, float16 or bfloat16 for all weights; None keeps the stored one.
        lazy: read a tensor when it is first needed; False reads all at once.
        quantize: bits to convert published weights to; not available yet.

    Raises:
        Phi4Error: the folder, its configuration or its tensors do not fit; in one line.
    """
    if quantize is not None:
        raise Phi4Error("quantize= needs the converter, which this version does not have yet")
    folder = find_folder(path_or_hub_id, revision)
    config = Config.from_folder(folder)
    shards = read_shards(folder)
    check_layout(config, shards)
    config = _with_bias_rows(config, shards)
    tokenizer = Tokenizer(folder, config)
    model = Phi4(config)
    load_weights(model, folder, shards, _dtype(dtype))
    model.eval()
    if not lazy:
        mx.eval(model.parameters())
    return model, Processor(config, tokenizer)


def find_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloaded if need be. Raises CheckpointError."""
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise CheckpointError(f"{name}: no such model folder")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        config = read_json(Path(hf_hub_download(name, "config.json", revision=revision)))
        # Microsoft's own layout holds the adapters in its shards and a second time beside them
        repeated = ["*-lora/*"] if config.get("model_type") == "phi4mm" else []
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=["*.json", "*.jinja", "*.safetensors"],
                ignore_patterns=repeated,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{name}: no such folder here, and the hub did not give it: {reason}") from None


def _with_bias_rows(config: Config, shards: list[Shard]) -> Config:
    """Configurations disagree about the height of the table; the tensor itself does not."""
    for shard in shards:
        for name, shape in shard.shapes.items():
            if name.endswith(BIAS_TABLE) and config.audio:
                audio = dataclasses.replace(config.audio, bias_rows=shape[0])
                return dataclasses.replace(config, audio=audio)
    return config


def _dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise Phi4Error(f"dtype is {dtype!r}, expected {', '.join(DTYPES)}")
    return DTYPES[dtype]


make_callable(__name__)
