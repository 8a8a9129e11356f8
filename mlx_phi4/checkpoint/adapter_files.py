"""Adapters on disk: folders of peft's and of mlx-lm's, read strictly, written whole or not at all.

What this package writes says in the file's metadata which base it was trained on.
"""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import mlx.core as mx

from ..config import DecoderConfig
from ..decoder.adapters import Adapter
from ..decoder.identity import BaseIdentity
from ..device import exclusive
from ..errors import CheckpointError, ConfigError
from ..files import expanded, read_json, write_whole, write_whole_folder
from .mlx_lm_adapters import from_mlx_lm, to_mlx_lm
from .peft import from_peft, to_peft
from .peft_config import read_peft_config
from .shards import PICKLES
from .tensorfile import read_header, read_metadata

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = {"peft": "adapter_model.safetensors", "mlx-lm": "adapters.safetensors"}  # form -> its weights
LIBRARY = {"peft": "pt", "mlx-lm": "mlx"}  # as libraries mark their files


def read_adapter(folder: str | Path, decoder: DecoderConfig) -> Adapter:
    """The adapter in a folder of peft's or of mlx-lm's, for a model with such a decoder.

    Raises:
        CheckpointError, ConfigError: the folder is missing, damaged or not an adapter of such a model, or asks for
            what cannot be had exactly; in one line that begins with the folder.
    """
    folder = expanded(folder)
    form = find_form(folder)
    try:
        raw = read_json(folder / ADAPTER_CONFIG)
        stored = read_header(folder / WEIGHTS[form])
        with exclusive():
            tensors = {name: tensor.read() for name, tensor in stored.items()}
            if form == "peft":
                linears = from_peft(tensors, read_peft_config(raw), decoder)
            else:
                linears = from_mlx_lm(tensors, raw, decoder)
            mx.eval([part.arrays for part in linears.values()])
        return Adapter(linears, *_known(read_metadata(folder / WEIGHTS[form])))
    except (CheckpointError, ConfigError) as error:
        raise type(error)(_named(folder, str(error))) from None


def write_adapter(
    folder: str | Path,
    adapter: Adapter,
    decoder: DecoderConfig,
    *,
    form: str = "peft",
    overwrite: bool = False,
    companions: dict[str, str] | None = None,
) -> Path:
    """Write an adapter as a folder that peft or mlx-lm reads, and this package; it is there whole or not at all.

    Args:
        folder: new, or with ``overwrite`` one that holds an adapter already, whose files are replaced.
        adapter: see ``AdapterSet.get_adapter``; arrays are written in their own dtypes.
        decoder: of the model that it is for.
        form: "peft" or "mlx-lm".
        companions: further text files by their names, README.md for one.

    Raises:
        CheckpointError: there is something else, the form cannot hold the adapter, or the disk refuses.
    """
    folder = expanded(folder)
    magnitudes = [part.magnitude for part in adapter.linears.values() if part.magnitude is not None]
    if any(mx.isnan(each).any() for each in magnitudes):
        raise CheckpointError("rows that DoRA left out have no magnitude yet; a model that it is added to gives them")
    tensors, config = to_peft(adapter, decoder) if form == "peft" else to_mlx_lm(adapter, decoder)
    known = {"format": LIBRARY[form]}
    if adapter.base is not None:
        known |= {"base_weights": adapter.base.weights, "base_norms": adapter.base.norms}
    if adapter.about:
        known["about"] = json.dumps(adapter.about)
    texts = {ADAPTER_CONFIG: json.dumps(config, indent=2) + "\n", **(companions or {})}
    check_destination(folder, form, overwrite)
    try:
        if not _free(folder):
            _write_files(folder, tensors, known, texts, WEIGHTS[form])
            return folder
        with write_whole_folder(folder) as partial:
            _write_files(partial, tensors, known, texts, WEIGHTS[form])
    except OSError as error:
        raise CheckpointError(f"{folder}: the adapter cannot be written: {error.strerror or error}") from None
    return folder


def is_sum(folder: str | Path) -> bool:
    """Whether what stands for an adapter is a sum of others, as "vision+mine", and no folder of such a name."""
    return "+" in str(folder) and "/" not in str(folder) and not expanded(folder).exists()


def find_form(folder: Path) -> str:
    """Whether a folder is "peft" or "mlx-lm". Raises CheckpointError for one that is neither."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: {'is a file, expected a folder' if folder.exists() else 'no such folder'}")
    found = [form for form, name in WEIGHTS.items() if (folder / name).exists()]
    if len(found) > 1:
        raise CheckpointError(f"{folder}: holds {' and '.join(WEIGHTS.values())}; which one is meant?")
    if found and not (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder}: holds {WEIGHTS[found[0]]}, but no {ADAPTER_CONFIG}")
    if found:
        return found[0]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(f"{folder}: holds only pickled weights ({pickles[0]}), which are never loaded")
    raise CheckpointError(f"{folder}: is no adapter's folder: it has neither {' nor '.join(WEIGHTS.values())}")


def _named(folder: Path, message: str) -> str:
    return message if message.startswith(str(folder)) else f"{folder}: {message}"


def _known(metadata: dict[str, str]) -> tuple[BaseIdentity | None, dict]:
    """What the file says of its origin; nothing where another program wrote it."""
    weights, norms = metadata.get("base_weights"), metadata.get("base_norms")
    try:
        about = json.loads(metadata.get("about", "{}"))
    except (ValueError, RecursionError):
        about = {}
    base = BaseIdentity(weights, norms) if weights and norms else None
    return base, about if isinstance(about, dict) else {}


def check_destination(folder: Path, form: str, overwrite: bool) -> None:
    """Raises CheckpointError if an adapter must not be put there."""
    if _free(folder):
        return
    if not overwrite:
        raise CheckpointError(f"{folder} exists already; choose another folder or ask to overwrite it")
    if find_form(folder) != form:
        raise CheckpointError(f"{folder} holds an adapter of another form; it is not overwritten")


def _free(folder: Path) -> bool:
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))


def _write_files(
    folder: Path, tensors: dict[str, mx.array], known: dict[str, str], texts: dict[str, str], name: str
) -> None:
    """All files, which appear together once all are written."""
    with ExitStack() as together:
        for each, text in texts.items():
            together.enter_context(write_whole(folder / each)).write_text(text, encoding="utf-8")
        # an open file: of a full disk MLX says nothing where it is given a name
        with together.enter_context(write_whole(folder / name)).open("wb") as file:
            try:
                mx.save_safetensors(file, {each: mx.contiguous(array) for each, array in tensors.items()}, known)
            except RuntimeError as error:
                raise OSError(f"{error}") from None
