"""From requests to rows of ids and media, and to ``Inputs``, a batch of them."""

import os
from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx
import numpy as np

from ..config import Config
from ..errors import PromptError
from ..modalities import MODALITIES, Medium, adapter_of, chosen_adapter, mode_of
from .prompt import Slot, build_prompt
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """One prompt with its media, as ``Processor.__call__`` takes them.

    ``media`` brings kinds that have no keyword of their own, {kind: list}. ``adapter`` names the one to use instead of
    the mode's; "base" is none. ``options`` are the row's own in ``batch_generate``: sampling, ``stop`` and
    ``max_tokens``.
    """

    prompt: str | list[dict]
    images: list | None = None
    audios: list | None = None
    system: str | None = None
    raw: bool = False
    options: dict | None = None
    adapter: str | None = None
    media: dict[str, list] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One request, ready for the model.

    ``ids`` are its L token ids with placeholders expanded to runs, ``media`` pairs (first token, prepared medium),
    ``mode`` the label of what it holds, ``adapter`` the LoRA that it passes, None for the base alone.
    """

    ids: tuple[int, ...]
    media: tuple[tuple[int, Medium], ...] = ()
    mode: str = "text"
    adapter: str | None = None


@dataclass(frozen=True)
class Media:
    """A prepared picture or clip and where its run of tokens starts: row and column."""

    item: Medium
    row: int
    start: int


@dataclass(frozen=True)
class Inputs:
    """A batch as a rectangle, for looking at and for ``Phi4.__call__``.

    ``input_ids`` (B, L) int32 with placeholders expanded to runs, padded on the left; ``padding`` counts each row's
    padding columns; ``modes`` is each row's mode, ``adapters`` each row's adapter (None: those of the modes).
    """

    input_ids: mx.array
    padding: tuple[int, ...]
    modes: tuple[str, ...]
    media: tuple[Media, ...] = ()
    adapters: tuple[str | None, ...] | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row, without padding."""
        return tuple(self.input_ids.shape[1] - padding for padding in self.padding)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows without padding."""
        adapters = self.adapters or tuple(adapter_of(mode) for mode in self.modes)
        return tuple(
            Row(
                tuple(ids[padding:]),
                tuple((media.start - padding, media.item) for media in self.media if media.row == row),
                mode,
                adapter,
            )
            for row, (ids, padding, mode, adapter) in enumerate(
                zip(self.input_ids.tolist(), self.padding, self.modes, adapters, strict=True)
            )
        )


class Processor:
    """Builds prompts and prepares media for one checkpoint."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self.config = config
        self.tokenizer = tokenizer

    def __call__(
        self,
        prompt: str | list[dict],
        images: list | None = None,
        audios: list | None = None,
        *,
        system: str | None = None,
        raw: bool = False,
        adapter: str | None = None,
    ) -> Inputs:
        """One request as a batch of one, without padding.

        Args:
            prompt: one user turn, or chat messages (content parts in OpenAI's form, too).
            images: paths, bytes, PIL images or arrays; see ``vision.preprocess``.
            audios: paths, bytes or (array, rate); see ``audio.preprocess``.
            system: a system message in front.
            raw: take the string as it stands, special tokens included.
            adapter: instead of the mode's own; "base" is none.

        Raises:
            PromptError, MediaError: what does not fit, in one line.
        """
        return self.batch([Request(prompt, images, audios, system, raw, adapter=adapter)])

    def batch(self, requests: list[Request]) -> Inputs:
        """Several requests, of any modes and lengths, padded on the left."""
        if not requests:
            raise PromptError("a batch needs at least one request")
        rows = [self.row(request) for request in requests]
        longest = max(len(row.ids) for row in rows)
        padding = tuple(longest - len(row.ids) for row in rows)
        table = np.full((len(rows), longest), self.tokenizer.pad_id, np.int32)
        for index, row in enumerate(rows):
            table[index, padding[index] :] = row.ids
        return Inputs(
            input_ids=mx.array(table),
            padding=padding,
            modes=tuple(row.mode for row in rows),
            media=tuple(
                Media(item, index, padding[index] + start)
                for index, row in enumerate(rows)
                for start, item in row.media
            ),
            adapters=tuple(row.adapter for row in rows),
        )

    def row(self, request: Request) -> Row:
        """One request: its ids, its media prepared, its mode and adapter. Raises PromptError, MediaError."""
        given = {"image": _listed(request.images), "audio": _listed(request.audios)}
        for kind, media in request.media.items():
            if kind not in MODALITIES:
                raise PromptError(f"media are of kind {kind!r}, expected {', '.join(MODALITIES)}")
            given[kind] = [*given.get(kind, []), *_listed(media)]
        prompt = build_prompt(self.tokenizer, request.prompt, given, system=request.system, raw=request.raw)
        held = [kind for kind, media in prompt.media.items() if media]
        if lacking := [MODALITIES[kind] for kind in held if not MODALITIES[kind].held(self.config)]:
            self.config.check_multimodal()
            raise PromptError(f"this model has no encoder for a {lacking[0].noun}")
        if absent := [kind for kind in held if kind not in self.tokenizer.placeholders]:
            raise PromptError(f"this model's tokenizer has no placeholder token for {absent[0]}")
        mode = mode_of(held)
        adapter = chosen_adapter(request.adapter, mode, self.config.adapters)
        prepared = {
            kind: iter([MODALITIES[kind].prepare(source) for source in media]) for kind, media in prompt.media.items()
        }
        ids: list[int] = []
        media: list[tuple[int, Medium]] = []
        for part in prompt.parts:
            if not isinstance(part, Slot):
                ids.append(part)
                continue
            item = next(prepared[part.kind])
            media.append((len(ids), item))
            ids += [self.tokenizer.placeholders[part.kind].id] * item.tokens
        context = self.config.decoder.max_position_embeddings
        if len(ids) > context:
            raise PromptError(f"the prompt has {len(ids)} tokens; the context holds {context}")
        return Row(tuple(ids), tuple(media), mode, adapter)


def _listed(media) -> list:
    """A list of media; one alone may stand without its list."""
    if media is None:
        return []
    if isinstance(media, list):
        return media
    pair = isinstance(media, tuple) and len(media) == 2 and isinstance(media[1], (int, np.integer))
    one = isinstance(media, (str, bytes, bytearray, os.PathLike, np.ndarray)) or pair
    return list(media) if isinstance(media, tuple) and not one else [media]
