"""From requests to ``Inputs``, the one form that the model takes."""

import os
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..audio.preprocess import Clip, prepare_clip
from ..config import Config
from ..decoder.adapters import Mode
from ..errors import PromptError
from ..vision.preprocess import Picture, prepare_picture
from .prompt import Slot, build_prompt
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """One prompt with its media, as ``Processor.__call__`` takes them.

    ``options`` are the row's own in ``batch_generate``: sampling, ``stop`` and ``max_tokens``.
    """

    prompt: str | list[dict]
    images: list | None = None
    audios: list | None = None
    system: str | None = None
    raw: bool = False
    options: dict | None = None


@dataclass(frozen=True)
class Media:
    """A prepared picture or clip and where its run of tokens starts: row and column."""

    item: Picture | Clip
    row: int
    start: int


@dataclass(frozen=True)
class Inputs:
    """A batch, ready for the model.

    ``input_ids`` (B, L) int32 with placeholders expanded to runs, padded on the left;
    ``padding`` counts each row's padding columns; ``modes`` is each row's mode.
    """

    input_ids: mx.array
    padding: tuple[int, ...]
    modes: tuple[Mode, ...]
    media: tuple[Media, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row, without padding."""
        return tuple(self.input_ids.shape[1] - padding for padding in self.padding)


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
    ) -> Inputs:
        """One request as a batch of one, without padding.

        Args:
            prompt: one user turn, or chat messages (content parts in OpenAI's form, too).
            images: paths, bytes, PIL images or arrays; see ``vision.preprocess``.
            audios: paths, bytes or (array, rate); see ``audio.preprocess``.
            system: a system message in front.
            raw: take the string as it stands, special tokens included.

        Raises:
            PromptError, MediaError: what does not fit, in one line.
        """
        return self.batch([Request(prompt, images, audios, system, raw)])

    def batch(self, requests: list[Request]) -> Inputs:
        """Several requests, of any modes and lengths, padded on the left."""
        if not requests:
            raise PromptError("a batch needs at least one request")
        rows = [self._row(request) for request in requests]
        longest = max(len(ids) for ids, _ in rows)
        padding = tuple(longest - len(ids) for ids, _ in rows)
        table = np.full((len(rows), longest), self.tokenizer.pad_id, np.int32)
        for row, (ids, _) in enumerate(rows):
            table[row, padding[row] :] = ids
        return Inputs(
            input_ids=mx.array(table),
            padding=padding,
            modes=tuple(
                Mode.of(
                    sum(isinstance(item, Picture) for item, _ in media),
                    sum(isinstance(item, Clip) for item, _ in media),
                )
                for _, media in rows
            ),
            media=tuple(
                Media(item, row, padding[row] + start) for row, (_, media) in enumerate(rows) for item, start in media
            ),
        )

    def _row(self, request: Request) -> tuple[list[int], list[tuple[Picture | Clip, int]]]:
        """The ids of a request, and its media with the position of each one's run."""
        prompt = build_prompt(
            self.tokenizer,
            request.prompt,
            _listed(request.images),
            _listed(request.audios),
            system=request.system,
            raw=request.raw,
        )
        if prompt.images or prompt.audios:
            self.config.check_multimodal()
        prepared = {
            "image": iter([prepare_picture(source) for source in prompt.images]),
            "audio": iter([prepare_clip(source) for source in prompt.audios]),
        }
        ids: list[int] = []
        media: list[tuple[Picture | Clip, int]] = []
        for part in prompt.parts:
            if not isinstance(part, Slot):
                ids.append(part)
                continue
            item = next(prepared[part.kind])
            token = getattr(self.tokenizer, f"{part.kind}_token")
            media.append((item, len(ids)))
            ids += [token.id] * item.tokens
        context = self.config.decoder.max_position_embeddings
        if len(ids) > context:
            raise PromptError(f"the prompt has {len(ids)} tokens; the context holds {context}")
        return ids, media


def _listed(media) -> list:
    """A list of media; one alone may stand without its list."""
    if media is None:
        return []
    if isinstance(media, list):
        return media
    pair = isinstance(media, tuple) and len(media) == 2 and isinstance(media[1], (int, np.integer))
    one = isinstance(media, (str, bytes, bytearray, os.PathLike, np.ndarray)) or pair
    return list(media) if isinstance(media, tuple) and not one else [media]
