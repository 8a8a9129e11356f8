"""A modality on disk, in one folder: its encoder and projector, what they are made from, and its adapter.

    modality.json           kind, settings, names of the modules, and which base they were trained on
    modality.safetensors    their tensors, by their paths in ``Phi4``
    adapter/                the LoRA of such requests, a folder of peft's; where there is one

What runs is the row of the table of modalities that the program has registered: a folder brings numbers, never code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import DecoderConfig
from ..decoder.adapters import Adapter
from ..decoder.identity import BaseIdentity
from ..errors import CheckpointError, ConfigError
from ..files import expanded, read_json, write_whole_folder
from .adapter_files import find_form, write_adapter
from .fields import object_in
from .tensorfile import read_header

MODALITY_CONFIG, MODALITY_WEIGHTS, MODALITY_ADAPTER = "modality.json", "modality.safetensors", "adapter"
MODALITY_FORMAT = 1


@dataclass(frozen=True)
class ModalityFiles:
    """A modality's folder.

    Args:
        kind: of medium, in the table of modalities.
        modules: names in ``Phi4``.
        tensors: parameters by their paths in ``Phi4``.
        settings: what the modules are made from, as JSON holds it.
        adapter: the folder of its adapter, None if it has none.
        base: norms of what it was trained on, see ``decoder.identity``.
    """

    kind: str
    modules: tuple[str, ...]
    tensors: dict[str, mx.array] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    adapter: Path | None = None
    base: BaseIdentity | None = None


def write_modality(
    folder: str | Path,
    kind: str,
    modules: tuple[str, ...],
    tensors: Mapping[str, mx.array],
    decoder: DecoderConfig,
    *,
    settings: dict[str, Any] | None = None,
    adapter: Adapter | None = None,
    base: BaseIdentity | None = None,
    about: dict[str, Any] | None = None,
) -> Path:
    """Write such a folder, whole or not at all; there is none of its name yet, or an empty one.

    Raises:
        CheckpointError: the folder is there, or the disk refuses.
    """
    folder = expanded(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; choose another folder")
    described = {
        "format": MODALITY_FORMAT,
        "kind": kind,
        "modules": list(modules),
        "settings": settings or {},
        "base": None if base is None else {"weights": base.weights, "norms": base.norms},
        "about": about or {},
    }
    try:
        with write_whole_folder(folder) as partial:
            with (partial / MODALITY_WEIGHTS).open("wb") as file:
                try:
                    arrays = {name: mx.contiguous(array) for name, array in tensors.items()}
                    mx.save_safetensors(file, arrays, {"format": "mlx"})
                except RuntimeError as error:
                    raise OSError(str(error)) from None
            if adapter is not None:
                write_adapter(partial / MODALITY_ADAPTER, adapter, decoder)
            text = json.dumps(described, indent=2) + "\n"
            (partial / MODALITY_CONFIG).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder}: the modality cannot be written: {error.strerror or error}") from None
    return folder


def read_modality(folder: str | Path) -> ModalityFiles:
    """Read such a folder, tensors included. Raises CheckpointError or ConfigError, with the folder's name."""
    folder = expanded(folder)
    if not (folder / MODALITY_CONFIG).exists():
        what = "no such folder" if not folder.is_dir() else f"holds no modality: it has no {MODALITY_CONFIG}"
        raise CheckpointError(f"{folder}: {what}")
    raw = read_json(folder / MODALITY_CONFIG)
    kind, modules, base = raw.get("kind"), raw.get("modules"), raw.get("base") or {}
    if raw.get("format") != MODALITY_FORMAT:
        raise ConfigError(f"{folder}: format is {raw.get('format')!r}, this version reads {MODALITY_FORMAT}")
    if not isinstance(kind, str) or not isinstance(modules, list) or not all(isinstance(m, str) for m in modules):
        raise ConfigError(f"{folder}: {MODALITY_CONFIG} lacks its kind or its modules")
    if not isinstance(base, dict):
        raise ConfigError(f"{folder}: base is {base!r:.60}, expected an object")
    tensors = {name: tensor.read() for name, tensor in read_header(folder / MODALITY_WEIGHTS).items()}
    adapter = folder / MODALITY_ADAPTER
    if adapter.exists():
        find_form(adapter)
    weights, norms = base.get("weights"), base.get("norms")
    return ModalityFiles(
        kind,
        tuple(modules),
        tensors,
        object_in(raw, "settings"),
        adapter if adapter.exists() else None,
        BaseIdentity(weights, norms) if isinstance(weights, str) and isinstance(norms, str) else None,
    )
