"""A modality joins a loaded model: one that the model lacks, or other weights for one that it has."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..arguments import kinds
from ..arguments.names import takes
from ..decoder.identity import check_base
from ..device import exclusive
from ..errors import CheckpointError, Phi4Error
from ..inputs.processor import Processor
from ..modalities import MODALITIES, Modality
from ..model import Phi4
from .dense import make_dense
from .modality_files import ModalityFiles, read_modality
from .shards import some


@takes(model=kinds.model, processor=kinds.processor, folder=kinds.path)
def add_modality(model: Phi4, processor: Processor, folder: str | Path) -> str:
    """Add the modality in a folder, with its adapter, and return its kind; all other requests stay what they were.

    Its row of the table must be there: the program imports or makes it and calls ``modalities.register`` before. A
    folder for a kind that the model has already, as training of its projector gives, replaces these weights.

    Raises:
        Phi4Error: the folder is damaged, its kind is not registered, or it does not fit the model; in one line.
    """
    found = read_modality(folder)
    try:
        if found.kind not in MODALITIES:
            raise CheckpointError(
                f"its kind {found.kind!r} is not known: the program that made it registers it, see modalities.register"
            )
        if found.base is not None:
            with exclusive():
                check_base(model, found.base, exactly=False)
        name = MODALITIES[found.kind].adapter or MODALITIES[found.kind].label
        if found.adapter is not None:
            model.adapters.check_free(name)
        new = found.kind not in model.modules_of or not model.modules_of[found.kind]
        if new:
            new_modality(model, processor, found.kind, found.settings)
        try:
            _take_weights(model, found, whole=found.kind in model.config.added)
        except Phi4Error:
            if new:
                _forget(model, processor, found.kind)
            raise
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if found.adapter is not None:
        model.add_adapter(name, found.adapter)
    return found.kind


def new_modality(model: Phi4, processor: Processor, kind: str, settings: Mapping[str, Any] | None = None) -> None:
    """Give a model the modules of a registered kind, with random weights that are yet to be trained.

    ``settings`` are what ``Modality.modules`` finds in ``config.added[kind]``. Raises Phi4Error.
    """
    if kind not in MODALITIES:
        raise Phi4Error(f"kind is {kind!r}, registered are {', '.join(MODALITIES)}")
    modality = MODALITIES[kind]
    if model.modules_of.get(kind):
        raise Phi4Error(f"this model has a {modality.noun} encoder already")
    token = _token(processor, modality)
    config = replace(model.config, added={**model.config.added, kind: dict(settings or {})})
    with exclusive():
        made = modality.modules(config)
        if taken := [name for name in made if name in model]:
            raise Phi4Error(f"this model has a {taken[0]} already")
        for name, module in made.items():
            setattr(model, name, module)
        model.modules_of[kind] = list(made)
        model.config = processor.config = config
        processor.tokenizer.placeholders[kind] = token


def _token(processor: Processor, modality: Modality):
    """The special token that marks such a medium in a row; what it is embedded as does not matter."""
    known = processor.tokenizer
    used = {token.id for kind, token in known.placeholders.items() if kind != modality.kind}
    for name in modality.tokens:
        if name in known.special and known.special[name].id not in used:
            return known.special[name]
    raise Phi4Error(f"this model's tokenizer has none of {', '.join(modality.tokens)} to mark a {modality.noun}")


def _forget(model: Phi4, processor: Processor, kind: str) -> None:
    for name in model.modules_of.pop(kind):
        delattr(model, name)
    added = {other: settings for other, settings in model.config.added.items() if other != kind}
    model.config = processor.config = replace(model.config, added=added)
    del processor.tokenizer.placeholders[kind]


def _take_weights(model: Phi4, found: ModalityFiles, whole: bool) -> None:
    """Every tensor into its place, none missing. Raises CheckpointError before anything is changed."""
    own = model.modules_of[found.kind]
    if strange := [name for name in found.modules if name.split(".")[0] not in own]:
        raise CheckpointError(f"{strange[0]} is no module of a {found.kind}, which has {', '.join(own)}")
    if whole and (lacking := sorted(set(own) - set(found.modules))):
        raise CheckpointError(f"lacks {', '.join(lacking)}")
    with exclusive():
        for name in found.modules:
            make_dense(_module(model, name), bits_only=True)
        starts = tuple(f"{name}." for name in found.modules)
        places = {path: a for path, a in tree_flatten(model.parameters()) if path.startswith(starts)}
        problems = [f"{path} is missing" for path in sorted(places.keys() - found.tensors.keys())]
        problems += [f"{path} has no place" for path in sorted(found.tensors.keys() - places.keys())]
        problems += [
            f"{path} is {array.shape}, expected {places[path].shape}"
            for path, array in sorted(found.tensors.items())
            if path in places and array.shape != places[path].shape
        ]
        if problems:
            raise CheckpointError(some(problems))
        model.update(tree_unflatten(list(found.tensors.items())))
        mx.eval([found.tensors])
        model.reread(f"media {found.kind}")


def _module(model: Phi4, name: str):
    first, _, inner = name.partition(".")
    return model[first][inner] if inner else model[first]
