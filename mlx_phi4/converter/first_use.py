"""Converting published weights once, when they are first used, into a folder of the user's cache."""

import hashlib
import os
from pathlib import Path

from ..checkpoint.fields import object_in
from ..checkpoint.hub import find_folder, hub_config, is_built_in, local_folder
from ..checkpoint.reach import ask_hub
from ..config import CONVERSION_FORMAT
from ..errors import CheckpointError, ConversionError
from ..files import expanded, read_json
from ..terminal import say
from .convert import convert
from .quantization import Scheme
from .writer import OtherPlan, exclusive

CACHE_VARIABLE = "MLX_PHI4_CACHE"
FIRST_USE_BITS = 4


def cache_root() -> Path:
    """``MLX_PHI4_CACHE``, else mlx_phi4 in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return expanded(chosen)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mlx_phi4"


def model_folder(path_or_hub_id: str | Path, revision: str | None = None, *, quiet: bool = False) -> Path:
    """What the commands' --model means: a folder as it is, a hub id of published weights in 4 bits.

    A hub id of weights that are quantized already is downloaded and used as it is.
    """
    if local_folder(path_or_hub_id).is_dir():
        return find_folder(path_or_hub_id, revision)
    return cached_folder(path_or_hub_id, revision=revision, quiet=quiet)


def cached_folder(
    path_or_hub_id: str | Path, *, bits: int | None = None, revision: str | None = None, quiet: bool = False
) -> Path:
    """The folder of these weights in so many bits, converted now if that has not been done yet.

    Several processes may ask at once: one converts, the others wait for it. An interrupted
    conversion is gone on with.

    Args:
        path_or_hub_id: published weights.
        bits: 2, 3, 4, 5, 6 or 8 for the decoder, with the converter's defaults for the rest.
            None means 4, and takes quantized weights as they are.
        revision: branch, tag or commit of a hub id.
        quiet: no progress on standard error.

    Raises:
        Phi4Error: as ``convert``, or ``bits`` differ from those of quantized weights.
    """
    wanted = Scheme.of(FIRST_USE_BITS if bits is None else bits)
    folder = local_folder(path_or_hub_id)
    if is_built_in(folder):
        find_folder(folder)  # says which of its files is missing
    local = folder.is_dir()
    try:
        if not local:
            ask_hub(str(path_or_hub_id), revision, quiet=quiet)
        config = folder / "config.json" if local else hub_config(str(path_or_hub_id), revision)
    except CheckpointError:
        made = _made_before(str(path_or_hub_id), wanted, revision)
        if made is None:
            raise
        return made
    table = object_in(read_json(config), "quantization")
    if table:
        if bits is not None and table.get("bits") != bits:
            raise ConversionError(f"{path_or_hub_id} is quantized already, in {table.get('bits')} bits")
        return find_folder(path_or_hub_id, revision)
    name = f"{folder.name}-{_digest(folder)}" if local else _hub_name(str(path_or_hub_id))
    target = cache_root() / name / _entry(folder_state(folder) if local else config.parent.name, wanted)
    if _complete(target):
        return target
    with exclusive(target.with_name(f"{target.name}.first-use"), wait=True):
        if not _complete(target):
            _convert(path_or_hub_id, target, wanted, None if local else config.parent.name, quiet)
    return target


def _convert(model: str | Path, target: Path, wanted: Scheme, revision: str | None, quiet: bool) -> None:
    if not quiet:
        say(f"Converting {model} to {wanted.bits} bits, once, into {target}")
    options = {"q_bits": wanted.bits, "revision": revision, "quiet": quiet}
    try:
        convert(model, target, resume=True, **options)
    except OtherPlan:
        convert(model, target, **options)


def _made_before(name: str, wanted: Scheme, revision: str | None) -> Path | None:
    """The newest conversion of a hub id that cannot be reached now, if it may be the one asked for."""
    folder = cache_root() / _hub_name(name)
    found = [entry for entry in folder.glob(_entry("*", wanted)) if _complete(entry)]
    if revision is not None:
        found = [entry for entry in found if revision.startswith(entry.name.partition("-")[0])]
    return max(found, key=lambda entry: entry.stat().st_mtime, default=None)


def _complete(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _hub_name(name: str) -> str:
    return name.replace("/", "--")


def _entry(state: str, wanted: Scheme) -> str:
    return f"{state[:12]}-{wanted.bits}bit-v{CONVERSION_FORMAT}"


def _digest(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]


def folder_state(folder: Path) -> str:
    """Changes when a local folder's files do."""
    files = sorted(path for pattern in ("*.json", "*.safetensors", "*-lora/*") for path in folder.glob(pattern))
    stats = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
