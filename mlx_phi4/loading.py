"""From a folder or hub id to a model and its processor."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

from .checkpoint.config_readers import read_config
from .checkpoint.weights import Shard, check_layout, load_weights, read_shards
from .config import Config
from .errors import CheckpointError, Phi4Error
from .files import read_json
from .inputs.processor import Processor
from .inputs.tokenizer import Tokenizer
from .model import Phi4

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BIAS_TABLE = "relative_attention_bias_layer.bias_values.weight"
ASSETS = Path(__file__).parent / "assets"
BUILT_IN = ("phi4-tiny",)  # models inside the package; a folder of that name in reach is ./phi4-tiny
CHECKSUMS = "SHA256SUMS"


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
        path_or_hub_id: a checkpoint folder, a hub id (downloaded once, safetensors only), or "phi4-tiny", the small
            trained model inside this package.
        revision: branch, tag or commit of a hub id.
        dtype: float32, float16 or bfloat16 for all weights; None keeps the stored one.
        lazy: read a tensor when it is first needed; False reads all at once.
        quantize: convert published weights to so many bits (2, 3, 4, 5, 6 or 8), once, into a
            cache folder, and load from there; see ``cache.cached_folder``.

    Raises:
        Phi4Error: the folder, its configuration or its tensors do not fit; in one line.
    """
    if quantize is not None:
        from .converter.first_use import cached_folder  # imported here: the converter itself reads with this module

        path_or_hub_id = cached_folder(path_or_hub_id, bits=quantize, revision=revision)
    folder = find_folder(path_or_hub_id, revision)
    config, shards = read_checkpoint(folder)
    tokenizer = Tokenizer(folder, config)
    model = Phi4(config)
    load_weights(model, folder, shards, _dtype(dtype))
    model.eval()
    if not lazy:
        mx.eval(model.parameters())
    return model, Processor(config, tokenizer)


def read_checkpoint(folder: Path) -> tuple[Config, list[Shard]]:
    """A folder's configuration and shards, checked as far as headers tell. Raises Phi4Error."""
    config = read_config(folder)
    shards = read_shards(folder)
    check_layout(config, shards)
    return _with_bias_rows(config, shards), shards


def find_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloaded if need be. Raises CheckpointError."""
    folder = local_folder(path_or_hub_id)
    if folder.parent == ASSETS:
        _check_asset(folder)
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if not is_hub_id(name) or folder.exists():
        raise CheckpointError(f"{name}: no such model folder")
    return _download(name, revision)


def local_folder(path_or_hub_id: str | Path) -> Path:
    """The path that a name stands for, with ``~`` expanded; it need not exist."""
    if isinstance(path_or_hub_id, str) and path_or_hub_id in BUILT_IN:
        return ASSETS / path_or_hub_id
    try:
        return Path(path_or_hub_id).expanduser()
    except RuntimeError:  # ~someone, and there is no such user
        return Path(path_or_hub_id)


def _check_asset(folder: Path) -> None:
    """Nobody can have changed a built-in model on purpose: compare its files with their checksums."""
    for line in _asset_bytes(folder / CHECKSUMS).decode().splitlines():
        digest, name = line.split()
        if hashlib.sha256(_asset_bytes(folder / name)).hexdigest() != digest:
            raise CheckpointError(f"{folder / name}: is damaged; install mlx_phi4 again")


def _asset_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}; install mlx_phi4 again") from None


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/model."""
    return HUB_ID.fullmatch(name) is not None and not name.startswith(".")


def hub_config(name: str, revision: str | None = None) -> Path:
    """``config.json`` of a hub id in the hub's cache; its folder is named by the commit. Raises CheckpointError."""
    from huggingface_hub import hf_hub_download

    with _hub_errors(name, revision):
        return Path(hf_hub_download(name, "config.json", revision=revision))


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    config = read_json(hub_config(name, revision))
    # Microsoft's own layout holds the adapters in its shards and a second time beside them
    repeated = ["*-lora/*"] if config.get("model_type") == "phi4mm" else []
    patterns = ["*.json", "*.jinja", "*.txt", "*.safetensors", "LICENSE*"]
    with _hub_errors(name, revision):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=repeated),
        )


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """What goes wrong at the hub as a CheckpointError, without the library's own messages on the way."""
    from huggingface_hub import errors, logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(f"{name}: the hub gives it only to those who accepted its terms and logged in") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{name}: no such folder here, and no such model on the hub (or it is private)") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name}: the hub has no revision {revision!r} of it") from None
    except errors.RemoteEntryNotFoundError:
        raise CheckpointError(f"{name}: the hub's repository has no config.json: not a model") from None
    except errors.LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name}: no such folder here, nor in the hub's local cache, and the hub cannot be reached"
        ) from None
    except (errors.HTTPError, errors.XetDownloadError, RuntimeError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{name}: the download stopped, the same command goes on with it: {reason}") from None
    finally:
        logging.set_verbosity(level)


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
