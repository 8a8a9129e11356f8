"""What was trained, as folders that serve: adapters in peft's form, modalities with what belongs to them."""

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.adapter_files import ADAPTER_CONFIG, WEIGHTS, write_adapter
from ..checkpoint.modality_files import MODALITY_CONFIG, write_modality
from ..decoder.adapters import Adapter, LinearAdapter, decoder_linears
from ..decoder.identity import BaseIdentity
from ..device import exclusive
from ..errors import Phi4Error
from ..modalities import MODALITIES, adapter_of
from ..model import Phi4
from .packing import Parameters
from .parts import Parts, kind_of, module_arrays

BEFORE_MOVED = ".whole"  # where an adapter is written before its files are moved to their places
CARD_NAME = "README.md"


def trained_adapter(model: Phi4, name: str, parameters: Parameters, base: BaseIdentity, about: dict) -> Adapter:
    """A trained adapter from its parameters, in float32."""
    linears, made = decoder_linears(model.config.decoder), model.adapters.get_adapter(name)
    found = {}
    for path, part in made.linears.items():
        own = {
            kind: parameters.get(f"model.{path}.lora.{name}.{kind}")
            for kind in ("down.weight", "up.weight", "magnitude")
        }
        found[path] = LinearAdapter(own["down.weight"], own["up.weight"], part.scale, own["magnitude"])
    assert found.keys() <= linears.keys()
    return Adapter(found, base, about)


def write_result(
    folder: Path, model: Phi4, parts: Parts, parameters: Parameters, base: BaseIdentity, about: dict[str, Any]
) -> dict[str, Path]:
    """Write all that was trained below a run's folder: an only adapter into the folder itself.

    Returns name -> folder: an adapter's slot, or the kind of the medium whose modules were trained. Raises Phi4Error.
    """
    adapters = {slot: trained_adapter(model, name, parameters, base, about) for slot, name in parts.adapters.items()}
    kinds = dict.fromkeys(kind_of(model, name) for name in parts.modules)
    # a modality of one's own stays in one folder, whichever part of it was trained
    kinds |= {kind: None for kind in model.config.added if _own_slot(kind) in adapters}
    if len(adapters) == 1 and not kinds:
        ((slot, adapter),) = adapters.items()
        _write_in_place(folder, adapter, model, _card(slot, adapter, about))
        return {slot: folder}
    found = {}
    for kind in kinds:
        own = _own_slot(kind)
        where = _emptied(folder / kind)
        names = _modules_to_write(model, kind, parts)
        with exclusive():
            tensors = {n: parameters.get(n, a) for name in names for n, a in module_arrays(model, name).items()}
            mx.eval(tensors)
        found[kind] = write_modality(
            where,
            kind,
            names,
            tensors,
            model.config.decoder,
            settings=model.config.added.get(kind),
            adapter=adapters.pop(own, None) if kind in model.config.added else None,
            base=base,
            about=about,
        )
    for slot, adapter in adapters.items():
        where = _emptied(folder / slot)
        companions = {CARD_NAME: _card(slot, adapter, about)}
        found[slot] = write_adapter(where, adapter, model.config.decoder, companions=companions)
    return found


def has_result(folder: Path) -> bool:
    """Whether a run's folder holds what it was to come to, whole."""
    return any(
        (place / name).exists()
        for place in (folder, *folder.glob("[!.]*/"))
        for name in (ADAPTER_CONFIG, MODALITY_CONFIG)
    )


def find_adapters(folder: Path, slots: list[str]) -> dict[str, Path]:
    """The adapters of a run's folder by slot. Raises Phi4Error where there is none."""
    if (folder / ADAPTER_CONFIG).exists():
        return {slots[0]: folder} if len(slots) == 1 else dict.fromkeys(slots, folder)
    found = {slot: folder / slot for slot in slots if (folder / slot / ADAPTER_CONFIG).exists()}
    if not found:
        raise Phi4Error(f"{folder}: holds no adapter{' yet' if (folder / 'checkpoints').exists() else ''}")
    return found


def _own_slot(kind: str) -> str:
    """The slot of requests that hold such media."""
    return adapter_of(MODALITIES[kind].label) or MODALITIES[kind].label


def _modules_to_write(model: Phi4, kind: str, parts: Parts) -> tuple[str, ...]:
    """All modules of a kind that the base does not have, else those that were trained."""
    if kind in model.config.added:
        return tuple(model.modules_of[kind])
    return tuple(name for name in parts.modules if kind_of(model, name) == kind)


def _emptied(folder: Path) -> Path:
    """A place below a run's folder, without what a former run left there."""
    if folder.is_dir() and ((folder / ADAPTER_CONFIG).exists() or (folder / MODALITY_CONFIG).exists()):
        shutil.rmtree(folder)
    return folder


def _write_in_place(folder: Path, adapter: Adapter, model: Phi4, card: str) -> None:
    """The adapter's files beside checkpoints and log; its configuration comes last, without which it is none."""
    whole = folder / BEFORE_MOVED
    shutil.rmtree(whole, ignore_errors=True)
    write_adapter(whole, adapter, model.config.decoder, companions={CARD_NAME: card})
    (folder / ADAPTER_CONFIG).unlink(missing_ok=True)
    for name in (WEIGHTS["peft"], CARD_NAME, ADAPTER_CONFIG):
        (whole / name).replace(folder / name)
    whole.rmdir()


def _card(slot: str, adapter: Adapter, about: dict[str, Any]) -> str:
    rank = max(part.rank for part in adapter.linears.values())
    kind = "DoRA" if adapter.is_dora else "LoRA"
    best = about.get("best") or {}
    lines = [
        "---", "library_name: mlx_phi4", "tags: [mlx, lora, phi-4]", "---", "",
        f"# A {kind} for {slot} requests", "",
        f"Rank {rank} on {len(adapter.linears)} linears of the decoder; trained with mlx_phi4 for "
        f"{about['iterations']} iterations on {about['examples']} examples "
        f"({about['trained_tokens']} tokens of answers), last training loss {about['train_loss']:.4g}.",
    ]  # fmt: skip
    if best:
        lines.append(f"Validation of iteration {best['iteration']}: loss {best['loss']:.4g}.")
    return "\n".join([*lines, "", 'Serve it with `load(base, adapters={"name": folder})`.', ""])
