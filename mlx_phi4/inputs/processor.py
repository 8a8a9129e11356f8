"""From requests to rows of ids and media, and to ``Inputs``, a batch of them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property

import mlx.core as mx
import numpy as np

from ..arguments import kinds
from ..arguments.names import checked_fields, takes
from ..config import Config
from ..errors import Phi4Error, PromptError
from ..modalities import MODALITIES, Medium, adapter_of, chosen_adapter, mode_of
from ..vision.preprocess import crops_kind
from .media import all_prepared, brief, listed, see_all, with_frames
from .prompt import Slot, build_prompt
from .tokenizer import Tokenizer
from .tools import RESULT_ROLES, Tool


@checked_fields(
    prompt=kinds.prompt,
    system=kinds.text | None,
    raw=kinds.flag,
    adapter=kinds.text | None,
    max_crops=crops_kind | None,
)
@dataclass(frozen=True)
class Request:
    """One prompt with its media, as ``Processor.__call__`` takes them.

    ``media`` brings kinds that have no keyword of their own, {kind: list}. ``adapter`` names the one to use instead of
    the mode's; "base" is none. ``options`` are the row's own in ``batch_generate``: sampling, ``stop`` and
    ``max_tokens``. Frames of ``videos`` are pictures behind ``images``, their sounds recordings behind ``audios``.
    ``tools`` are those that the model may call, see ``inputs.tools.read_tools``.
    """

    prompt: str | list[dict]
    images: list | None = None
    audios: list | None = None
    system: str | None = None
    raw: bool = False
    options: dict | None = None
    adapter: str | None = None
    media: dict[str, list] = field(default_factory=dict)
    videos: list | None = None
    max_crops: int | None = None
    tools: list[dict] | str | None = None

    def __post_init__(self):
        for name, value in (("options", {} if self.options is None else self.options), ("media", self.media)):
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise PromptError(f"{name} is {kinds.shown(value)}, expected a dictionary with strings as keys")

    def __repr__(self):
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        told = (f"{name}={brief(value)}" for name, value in given.items() if value is not None)
        return f"Request({', '.join(told)})"


@dataclass(frozen=True)
class Row:
    """One request, ready for the model.

    ``ids`` are its L token ids with placeholders expanded to runs, ``media`` pairs (first token, prepared medium),
    ``mode`` the label of what it holds, ``adapter`` the LoRA that it passes, None for the base alone, ``tools`` what
    its answer may call.
    """

    ids: tuple[int, ...]
    media: tuple[tuple[int, Medium], ...] = ()
    mode: str = "text"
    adapter: str | None = None
    tools: tuple[Tool, ...] = ()

    def __repr__(self):
        return f"Row({len(self.ids)} tokens, media={self.media}, mode={self.mode!r}, adapter={self.adapter!r})"


@dataclass(frozen=True)
class Media:
    """A prepared picture or clip and where its run of tokens starts: row and column."""

    item: Medium
    row: int
    start: int


@checked_fields(
    input_ids=kinds.of_class("array", "an MLX array (B, L) of token ids"),
    padding=kinds.several(kinds.integer(0)),
    modes=kinds.several(kinds.text),
    media=kinds.several(kinds.of_class("Media", "a Media")),
    adapters=kinds.several(kinds.text | None) | None,
)
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

    def __post_init__(self):
        rows, columns = self.input_ids.shape if self.input_ids.ndim == 2 else (0, 0)
        if not rows or max(self.padding, default=0) > columns or {len(self.padding), len(self.modes)} != {rows}:
            raise PromptError(
                f"input_ids is {kinds.shown(self.input_ids)} for {len(self.padding)} paddings and {len(self.modes)} "
                "modes, expected (B, L) with one of each for every row"
            )

    def __repr__(self):
        rows, columns = self.input_ids.shape
        return f"Inputs({rows} x {columns} tokens, padding={self.padding}, modes={self.modes}, {len(self.media)} media)"

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

    @takes(
        config=kinds.of_class("Config", "a Config, which load reads"),
        tokenizer=kinds.of_class("Tokenizer", "a Tokenizer, which load reads"),
        tool_results=kinds.choice(*RESULT_ROLES),
    )
    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        adapters: Collection[str] | None = None,
        *,
        tool_results: str = RESULT_ROLES[0],
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.adapters = config.adapters if adapters is None else adapters  # of the model, also those added later
        self.tool_results = tool_results

    def __repr__(self):
        kinds_held = [kind for kind, each in MODALITIES.items() if each.held(self.config)]
        return f"Processor({', '.join(['text', *kinds_held])}; {self.config.decoder.vocab_size} token ids)"

    @takes()
    def __call__(
        self,
        prompt: str | list[dict],
        images: list | None = None,
        audios: list | None = None,
        *,
        system: str | None = None,
        raw: bool = False,
        adapter: str | None = None,
        videos: list | None = None,
        max_crops: int | None = None,
        tools: list[dict] | str | None = None,
    ) -> Inputs:
        """One request as a batch of one, without padding.

        Args:
            prompt: one user turn, or chat messages (content parts in OpenAI's form, too).
            images: paths, bytes, open files, PIL images or arrays, see ``vision.reader.read_picture``; one alone may
                stand without its list.
            audios: paths, bytes, open files or (array, rate), see ``audio.reader.open_recording``; likewise.
            system: a system message in front.
            raw: take the string as it stands, special tokens included.
            adapter: instead of the mode's own; "base" is none.
            videos: paths, bytes, open files or ``vision.video.Video``, which says how many frames; likewise.
            max_crops: of each picture and frame, see ``vision.preprocess.prepare_picture``; None is 36.
            tools: functions that the model may call, in OpenAI's form or flat as Phi has them.

        Raises:
            PromptError, MediaError: what does not fit, in one line.
        """
        more = {"adapter": adapter, "videos": videos, "max_crops": max_crops, "tools": tools}
        return self.batch([Request(prompt, images, audios, system, raw, **more)])

    def batch(self, requests: Iterable[Request | str]) -> Inputs:
        """Several requests, of any modes and lengths, padded on the left; a string is a request of that prompt."""
        rows = [self.row(request) for request in as_requests(requests)]
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
        return self._row(request, answered=False)[0]

    def conversation(self, request: Request) -> tuple[Row, tuple[tuple[int, int], ...]]:
        """Messages as they stand, and the spans [start, stop) of ids that the assistant says; a raw prompt has none."""
        return self._row(request, answered=True)

    def _row(self, request: Request, answered: bool) -> tuple[Row, tuple[tuple[int, int], ...]]:
        seen = see_all(listed(request.videos), request.max_crops)
        given = {
            "image": [*listed(request.images), *(each for video in seen for each in video.pictures)],
            "audio": [*listed(request.audios), *(video.sound for video in seen if video.sound)],
        }
        for kind, media in request.media.items():
            if kind not in MODALITIES:
                raise PromptError(f"media are of kind {kind!r}, expected {', '.join(MODALITIES)}")
            given[kind] = [*given.get(kind, []), *listed(media)]
        asked = with_frames(request.prompt, request.max_crops)
        said = {"system": request.system, "raw": request.raw, "tools": request.tools, "answered": answered}
        prompt = build_prompt(self.tokenizer, asked, given, **said, result_role=self.tool_results)
        held = [kind for kind, media in prompt.media.items() if media]
        if lacking := [MODALITIES[kind] for kind in held if not MODALITIES[kind].held(self.config)]:
            self.config.check_multimodal()
            raise PromptError(f"this model has no encoder for a {lacking[0].noun}")
        if absent := [kind for kind in held if kind not in self.tokenizer.placeholders]:
            raise PromptError(f"this model's tokenizer has no placeholder token for {absent[0]}")
        mode = mode_of(held)
        adapter = chosen_adapter(request.adapter, mode, self.adapters)
        ready = all_prepared(prompt.media, request.max_crops, self.config.decoder.max_position_embeddings)
        ids: list[int] = []
        media: list[tuple[int, Medium]] = []
        starts: list[int] = []
        for part in prompt.parts:
            starts.append(len(ids))
            if not isinstance(part, Slot):
                ids.append(part)
                continue
            item = next(ready[part.kind])
            media.append((len(ids), item))
            ids += [self.tokenizer.placeholders[part.kind].id] * item.tokens
        context = self.config.decoder.max_position_embeddings
        if len(ids) > context:
            raise PromptError(f"the prompt has {len(ids)} tokens; the context holds {context}")
        starts.append(len(ids))
        answers = tuple((starts[first], starts[last]) for first, last in prompt.answers)
        return Row(tuple(ids), tuple(media), mode, adapter, prompt.tools), answers


def as_requests(requests: Iterable[Request | str]) -> list[Request]:
    """Requests as a list; one alone may stand without it, and strings and lists of messages for their requests.

    Raises PromptError.
    """
    one = isinstance(requests, (str, Request))
    if not one and (isinstance(requests, (bytes, bytearray, dict)) or not hasattr(requests, "__iter__")):
        raise PromptError(f"requests is {kinds.shown(requests)}, expected a list of Request or str")
    found = []
    for index, each in enumerate([requests] if one else requests):
        if isinstance(each, (str, list)):
            try:
                each = Request(each)
            except Phi4Error as error:
                raise PromptError(f"requests[{index}]: {error}") from None
        if not isinstance(each, Request):
            raise PromptError(f"requests[{index}] is {kinds.shown(each)}, expected a Request or a str")
        found.append(each)
    if not found:
        raise PromptError("requests is empty, a batch needs at least one request")
    return found
