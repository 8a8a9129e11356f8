"""Which adapter each example trains, or passes: what the data holds, and what was asked to be trained."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint.adapter_files import read_adapter
from ..decoder.adapter_set import check_adapter_name
from ..decoder.adapters import Adapter
from ..decoder.identity import BaseIdentity
from ..errors import CheckpointError, Phi4Error
from ..model import Phi4
from .checkpoints import CHECKPOINTS
from .data import DataSet
from .examples import TEXT_SLOT, Example
from .parts import TRAINED, module_names, own_adapter

LONGEST_SLOT = 48  # characters of an adapter's name, before which another word stands while it is trained
NEW = "=new"  # behind an adapter's name: do not go on from the model's own


@dataclass(frozen=True)
class Chosen:
    """What is to be trained.

    Args:
        slots: slot -> the adapter that it goes on from, None for a new one.
        modules: encoders and projectors.
    """

    slots: dict[str, Adapter | None]
    modules: tuple[str, ...]


def choose(
    model: Phi4, sets: Iterable[DataSet], tune: tuple[str, ...], begin: str | Path | None, base: BaseIdentity
) -> Chosen:
    """What ``tune`` names, or else an adapter for each slot in the data.

    Args:
        begin: a folder with an adapter that the only slot goes on from.
        base: of the model as it was loaded.

    Raises:
        Phi4Error: a name that means nothing, or an example that would train nothing.
    """
    known, examples = module_names(model), [each for part in sets for each in part.examples]
    held: dict[str, None] = {}
    for each in examples:
        if each.slot not in held:
            _check_slot(each)
        held[each.slot] = None
    modules = tuple(name for name in tune if name in known)
    wanted = [name for name in tune if name not in known] if tune else list(held)
    slots: dict[str, Adapter | None] = {}
    for name in wanted:
        slot, fresh = name.removesuffix(NEW), name.endswith(NEW)
        if slot not in held:
            names = ", ".join([*held, *known])
            raise Phi4Error(f"tune names {slot!r}, for which there is no example; expected some of {names}")
        slots[slot] = own_adapter(model, slot) if slot in model.config.adapters and not fresh else None
    if begin is not None:
        if len(slots) != 1:
            raise Phi4Error(f"resume_adapter_file begins one adapter, but {', '.join(slots) or 'none'} are trained")
        slots = dict.fromkeys(slots, _begun(begin, model, base))
    kinds = {kind for kind, names in model.modules_of.items() if {name.split(".")[0] for name in modules} & set(names)}
    for each in examples:
        if each.slot not in slots and kinds.isdisjoint(place.kind for _, place in each.row.media):
            raise Phi4Error(f"{each.line.where}: trains nothing, as tune does not name {each.slot!r}")
    return Chosen(slots, modules)


def routed(examples: Iterable[Example], model: Phi4, chosen: Chosen) -> list[Example]:
    """The examples on their way: trained adapters by the names that they have in the model."""
    return [replace(each, row=replace(each.row, adapter=_route(each, model, chosen))) for each in examples]


def _check_slot(example: Example) -> None:
    """Raises Phi4Error for a slot whose folder could not be loaded by its name, or would lie upon the run's own."""
    try:
        check_adapter_name(example.slot)
        if example.slot == CHECKPOINTS or len(example.slot) > LONGEST_SLOT:
            raise Phi4Error(f"adapter is {example.slot!r}, expected at most {LONGEST_SLOT} characters, not a run's own")
    except Phi4Error as error:
        raise type(error)(f"{example.line.where}: {error}") from None


def _route(example: Example, model: Phi4, chosen: Chosen) -> str | None:
    if example.slot in chosen.slots:
        return f"{TRAINED}{example.slot}"
    return example.slot if example.slot != TEXT_SLOT and example.slot in model.adapters else None


def _begun(folder: str | Path, model: Phi4, base: BaseIdentity) -> Adapter:
    """An adapter from a folder, or a file in it, for this base."""
    folder = Path(folder)
    found = read_adapter(folder.parent if folder.is_file() else folder, model.config.decoder)
    if found.base is not None and (found.base.weights if found.is_dora else found.base.norms) != (
        base.weights if found.is_dora else base.norms
    ):
        raise CheckpointError(f"{folder}: was trained on another base")
    return Adapter(found.linears)
