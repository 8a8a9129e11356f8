"""What a medium is: the one table that everything else reads, and what follows from what a request holds.

A modality is data. Adding one takes a row here (``register``) and a folder of its own for its preparation, encoder and
projector. Report section 2.2: each modality brings its encoder, its projector and one LoRA in the decoder.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from .arguments.kinds import shown
from .audio.encoder import AudioEncoder
from .audio.preprocess import Clip, prepare_clip
from .audio.projector import AudioProjector
from .config import Config
from .decoder.adapter_set import BASE
from .errors import Phi4Error, PromptError
from .vision.encoder import VisionEncoder
from .vision.preprocess import Picture, prepare_picture
from .vision.projector import VisionProjector

Slices = Generator[Any, None, mx.array]


class Mode(StrEnum):
    """The published modes. A mode is a label: ``mode_of`` makes it from what a request holds."""

    TEXT = "text"
    VISION = "vision"
    SPEECH = "speech"
    VISION_SPEECH = "vision-speech"

    @classmethod
    def _missing_(cls, value):
        raise Phi4Error(f"value is {shown(value)}, expected {', '.join(cls)}")


class Medium(Protocol):
    """A prepared medium: how many tokens it takes, and a digest of its content."""

    tokens: int
    key: str


@dataclass(frozen=True)
class Modality:
    """One kind of medium.

    Args:
        kind: in placeholders (``<|image_1|>``) and content parts.
        label: its part of a mode's name.
        noun: for messages.
        argument: the keyword of ``Request`` that brings such media, or None: ``Request.media`` does.
        tokens: names of its placeholder token in a tokenizer, the first one found counts.
        parts: types of content parts.
        fields: keys of a content part under which the medium may stand.
        prepare: source -> ``Medium``, raising MediaError.
        item: the class of what ``prepare`` gives.
        held: whether a checkpoint of this configuration has this modality.
        modules: configuration -> the model's modules by name.
        encode: (model, item, projector) -> a generator that pauses between slices of work, lest others wait, and
            returns embeddings (tokens, D). A pause gives the arrays to be computed by then, or None.
        features: (model, item) -> the encoder's part of ``encode``, for training: its features, arrays or a list of
            them, are kept while the encoder does not change. None: all of it is the projector's.
        project: (model, features, outline, projector) -> embeddings (tokens, D), the rest of ``encode``.
        outline: a prepared medium -> what ``project`` asks of it beside its features, without its content.
        projectors: label of another modality in the same request, or ``""`` for none of them -> projector.
        adapter: the LoRA of requests with such media, if the model has it; of several modalities the first in the
            table decides.
    """

    kind: str
    label: str
    noun: str
    argument: str | None
    tokens: tuple[str, ...]
    parts: tuple[str, ...]
    fields: tuple[str, ...]
    prepare: Callable[[Any], Medium]
    item: type
    held: Callable[[Config], bool]
    modules: Callable[[Config], dict[str, nn.Module | dict[str, nn.Module]]]
    encode: Callable[[nn.Module, Any, str], Slices]
    projectors: Mapping[str, str] = field(default_factory=lambda: {"": "own"})
    adapter: str | None = None
    features: Callable[[nn.Module, Any], Generator] | None = None
    project: Callable[[nn.Module, Any, Any, str], mx.array] | None = None
    outline: Callable[[Any], Any] = field(default=lambda item: None)

    def projector(self, mode: str) -> str:
        """The projector of such a medium in a request of this mode."""
        company = next((label for label in mode.split("-") if label in self.projectors), "")
        return self.projectors[company]


def _vision_modules(config: Config) -> dict[str, nn.Module]:
    return {
        "vision_encoder": VisionEncoder(config.vision),
        "vision_projector": VisionProjector(config.vision.hidden_size, config.decoder.hidden_size),
    }


def _encode_picture(model: nn.Module, item: Picture, projector: str) -> Slices:
    features = yield from model.vision_encoder.slices(item)
    return model.vision_projector(features, item)


def _audio_modules(config: Config) -> dict[str, nn.Module | dict[str, nn.Module]]:
    dims = config.audio.hidden_size, config.decoder.hidden_size
    return {
        "audio_encoder": AudioEncoder(config.audio),
        "audio_projectors": {name: AudioProjector(*dims) for name in MODALITIES["audio"].projectors.values()},
    }


def _encode_clip(model: nn.Module, item: Clip, projector: str) -> Slices:
    frames = yield from model.audio_encoder.slices(item.features)
    return model.audio_projectors[projector](frames)


# In order of precedence: with pictures and sound the vision adapter serves both, and sound passes the vision projector.
# Of two names of a token the first is Microsoft's, the second Transformers'.
MODALITIES: dict[str, Modality] = {
    "image": Modality(
        kind="image",
        label="vision",
        noun="picture",
        argument="images",
        tokens=("<|endoftext10|>", "<|image|>"),
        parts=("image", "image_url", "input_image"),
        fields=("image", "image_url"),
        prepare=prepare_picture,
        item=Picture,
        held=lambda config: config.vision is not None,
        modules=_vision_modules,
        encode=_encode_picture,
        projectors={"": "picture"},
        adapter="vision",
        features=lambda model, item: model.vision_encoder.slices(item),
        project=lambda model, features, outline, projector: model.vision_projector(features, outline),
        outline=lambda picture: picture.outline,
    ),
    "audio": Modality(
        kind="audio",
        label="speech",
        noun="recording",
        argument="audios",
        tokens=("<|endoftext11|>", "<|audio|>"),
        parts=("audio", "audio_url", "input_audio"),
        fields=("audio", "audio_url", "input_audio"),
        prepare=prepare_clip,
        item=Clip,
        held=lambda config: config.audio is not None,
        modules=_audio_modules,
        encode=_encode_clip,
        projectors={"": "speech", "vision": "vision"},
        adapter="speech",
        features=lambda model, item: model.audio_encoder.slices(item.features),
        project=lambda model, frames, outline, projector: model.audio_projectors[projector](frames),
    ),
}


def register(modality: Modality) -> None:
    """Add a kind of medium. Raises Phi4Error if its kind or label is taken."""
    if any(modality.kind == each.kind or modality.label == each.label for each in MODALITIES.values()):
        raise Phi4Error(f"there is a modality {modality.kind!r} ({modality.label}) already")
    MODALITIES[modality.kind] = modality


def mode_of(kinds: Iterable[str]) -> str:
    """The mode of a request that holds media of these kinds: labels in the table's order, ``text`` for none."""
    held = set(kinds)
    return "-".join(each.label for kind, each in MODALITIES.items() if kind in held) or Mode.TEXT.value


def adapter_of(mode: str) -> str | None:
    """The adapter that rows of this mode pass unless they name their own: that of the first modality that has one."""
    labels = [] if mode == Mode.TEXT else str(mode).split("-")
    known = {each.label: each.adapter for each in MODALITIES.values()}
    if unknown := [label for label in labels if label not in known]:
        raise Phi4Error(f"mode is {str(mode)!r}: there is no modality {unknown[0]!r}")
    return next((known[label] for label in known if label in labels and known[label] is not None), None)


def chosen_adapter(name: str | None, mode: str, adapters: Iterable[str]) -> str | None:
    """The adapter of a request: its own choice (``base`` is none), or its mode's. Raises PromptError."""
    if name is None:
        own = adapter_of(mode)  # a modality of one's own may be there before its adapter is trained
        return own if own in adapters or mode in set(Mode) else None
    if name == BASE:
        return None
    if name not in set(adapters):
        raise PromptError(f"adapter is {name!r}, this model has {', '.join([BASE, *sorted(adapters)])}")
    return name


def modality_of(item: Medium) -> Modality:
    """The modality of a prepared medium."""
    return next(each for each in MODALITIES.values() if isinstance(item, each.item))


def projector_of(item: Medium, mode: str) -> str:
    """The projector that a medium passes in a request of this mode."""
    return modality_of(item).projector(mode)
