"""From what a person calls a model to a local folder: a path, a model inside the package, or a hub id."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError
from ..files import read_json

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ASSETS = Path(__file__).parents[1] / "assets"
BUILT_IN = ("phi4-tiny",)  # models inside the package; a folder of that name in reach is ./phi4-tiny
CHECKSUMS = "SHA256SUMS"


def find_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloaded if need be. Raises CheckpointError."""
    folder, name = local_folder(path_or_hub_id), str(path_or_hub_id)
    if is_built_in(folder):
        check_asset(folder)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{name} is a folder: it has no revision {revision!r}")
        return folder
    return _download(name, revision)


def local_folder(path_or_hub_id: str | Path) -> Path:
    """The path that a name stands for, with ``~`` expanded; it need not exist."""
    if isinstance(path_or_hub_id, str) and path_or_hub_id in BUILT_IN:
        return ASSETS / path_or_hub_id
    try:
        return Path(path_or_hub_id).expanduser()
    except RuntimeError:  # ~someone, and there is no such user
        return Path(path_or_hub_id)


def is_built_in(folder: Path) -> bool:
    """Whether it is a model inside this package, which is never asked of the hub."""
    return folder.parent == ASSETS


def check_asset(folder: Path) -> None:
    """Nobody can have changed what the package brings on purpose: compare a folder with its checksums.

    Raises CheckpointError.
    """
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
    if not is_hub_id(name) or local_folder(name).exists():
        raise CheckpointError(f"{name}: no such model folder")
    from huggingface_hub import hf_hub_download

    with _hub_errors(name, revision):
        return Path(hf_hub_download(name, "config.json", revision=revision))


def _download(name: str, revision: str | None) -> Path:
    config = read_json(hub_config(name, revision))
    from huggingface_hub import snapshot_download

    # Microsoft's own layout holds the adapters in its shards and a second time beside them
    repeated = ["*-lora/*"] if config.get("model_type") == "phi4mm" else []
    patterns = ["*.json", "*.jinja", "*.txt", "*.safetensors", "LICENSE*"]
    with _hub_errors(name, revision):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=repeated))


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
