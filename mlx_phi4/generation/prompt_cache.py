"""Keys and values of a conversation, reused as far as a new prompt begins alike, in memory or from a file."""

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import mlx.core as mx

from ..decoder.adapters import ROUTES, Mode
from ..decoder.state import CacheOptions, DecodeState
from ..errors import Phi4Error, PromptError
from ..files import write_whole
from ..inputs.processor import Inputs
from ..model import Phi4, projector_of
from .media_cache import MediaCache

FILE_FORMAT = "mlx_phi4 prompt cache 1"

Mark = tuple[int, str, str]  # where a picture or clip starts, its content's digest, its projector


@dataclass
class PromptCache:
    """One sequence's state, and what it was computed from.

    Reuse is keyed by tokens *and* the content of media *and* the route *and* the RoPE regime: nothing is reused across
    another picture, adapter or table. ``media`` keeps embeddings of pictures and clips beside it.
    """

    media: MediaCache = field(default_factory=MediaCache)
    state: DecodeState | None = None
    tokens: list[int] = field(default_factory=list)
    marks: frozenset[Mark] = frozenset()
    options: CacheOptions = field(default_factory=CacheOptions)
    source: Path | None = None  # the file that it was loaded from, until it is used

    def clear(self) -> None:
        """Forget the sequence; embeddings of media stay."""
        self.state, self.tokens, self.marks, self.source = None, [], frozenset(), None

    def common(self, inputs: Inputs, long: bool) -> int:
        """How many tokens of a prompt (a batch of one) are in the cache already; at least one is left to compute."""
        if self.state is None or self.state.long != (long,):
            return 0
        if ROUTES[self.state.modes[0]][0] != ROUTES[inputs.modes[0]][0]:
            return 0
        ids = inputs.input_ids[0].tolist()
        limit = min(len(ids) - 1, len(self.tokens))
        count = next((i for i in range(limit) if ids[i] != self.tokens[i]), limit)
        # runs of placeholders look alike whatever they stand for
        return min([count, *(start for start, _, _ in self.marks ^ marks_of(inputs))])

    def take(self, inputs: Inputs, long: bool, options: CacheOptions) -> DecodeState | None:
        """The state cut to what it shares with a prompt, or None. The caller gives it back with ``put``.

        Raises PromptError if it came from a file of another mode or other cache options: that is a mistake, where in
        a conversation it is a change of subject.
        """
        if self.source is not None:
            self._check_source(inputs.modes[0], options)
        count = self.common(inputs, long) if options == self.options else 0
        state, spare = self.state, len(self.tokens) - count
        self.clear()
        if not count or (spare and not all(cache.is_trimmable() for cache in state.cache)):
            return None
        for cache in state.cache:
            cache.trim(spare)
        state.modes, state.offset = inputs.modes, count
        state.__post_init__()
        return state

    def put(self, state: DecodeState, inputs: Inputs, generated: list[int], options: CacheOptions) -> None:
        """Keep a finished sequence: its prompt and the generated tokens that went through the model."""
        self.state, self.options = state, options
        self.tokens = (inputs.input_ids[0].tolist() + generated)[: state.offset]
        self.marks = frozenset(mark for mark in marks_of(inputs) if mark[0] < state.offset)

    def save(self, path: str | Path, model: Phi4) -> None:
        """Write to a safetensors file, beside its place and then renamed. Raises Phi4Error."""
        from mlx_lm.models.cache import save_prompt_cache

        if self.state is None:
            raise Phi4Error("there is nothing in the prompt cache to save")
        mode = self.state.modes[0]
        metadata = {
            "format": FILE_FORMAT,
            "model": fingerprint(model, mode),
            "mode": mode.value,
            "long": json.dumps(self.state.long[0]),
            "tokens": json.dumps(self.tokens),
            "marks": json.dumps(sorted(self.marks)),
            "options": json.dumps(vars(self.options)),
        }
        path = _checked(path)
        try:
            # an open file: of a full disk MLX says nothing where it is given a name
            with write_whole(path) as partial, partial.open("wb") as file:
                save_prompt_cache(file, self.state.cache, metadata)
        except (OSError, RuntimeError) as error:
            raise Phi4Error(f"{path}: the prompt cache cannot be written: {error}") from None

    @classmethod
    def load(cls, path: str | Path, model: Phi4) -> "PromptCache":
        """Read a file that ``save`` wrote for this very model. Raises Phi4Error."""
        from mlx_lm.models.cache import load_prompt_cache

        path = _checked(path)
        if not path.is_file():
            raise Phi4Error(f"{path}: no such prompt-cache file")
        try:
            cache, known = load_prompt_cache(str(path), return_metadata=True)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise Phi4Error(f"{path}: is not a prompt-cache file: {error}") from None
        if not isinstance(known, dict) or known.get("format") != FILE_FORMAT:
            raise Phi4Error(f"{path}: is not a prompt cache of this version")
        mode = Mode(known["mode"])
        if known["model"] != fingerprint(model, mode):
            raise Phi4Error(f"{path}: was made with another model")
        tokens = json.loads(known["tokens"])
        state = DecodeState((mode,), (0,), (json.loads(known["long"]),), cache, len(tokens))
        marks = frozenset((start, key, projector) for start, key, projector in json.loads(known["marks"]))
        options = CacheOptions(**json.loads(known["options"]))
        return cls(MediaCache(), state, tokens, marks, options, path)

    def _check_source(self, mode: Mode, options: CacheOptions) -> None:
        mine = self.state.modes[0]
        if ROUTES[mine][0] != ROUTES[mode][0]:
            raise PromptError(f"{self.source}: was made in {mine} mode and cannot serve a request in {mode} mode")
        if options != self.options:
            raise PromptError(f"{self.source}: was made with other --kv options ({_spelled(self.options)})")


def _checked(path: str | Path) -> Path:
    """mlx tells the format by the ending."""
    if Path(path).suffix != ".safetensors":
        raise Phi4Error(f"{path}: a prompt-cache file's name must end in .safetensors")
    return Path(path)


def _spelled(options: CacheOptions) -> str:
    return ", ".join(f"{name} {value}" for name, value in vars(options).items() if value is not None)


def marks_of(inputs: Inputs) -> frozenset[Mark]:
    """Where the first row's media stand, and what they are."""
    return frozenset(
        (media.start, media.item.key, projector_of(media.item, inputs.modes[0]))
        for media in inputs.media
        if media.row == 0
    )


def fingerprint(model: Phi4, mode: Mode) -> str:
    """A digest of a model's configuration and of some of the weights that a mode's keys depend on."""
    config = model.config
    digest = blake2b(repr((config.decoder, config.quantization)).encode(), digest_size=16)
    layer = model.model.layers[0]
    samples = [model.model.norm.weight, layer.input_layernorm.weight, model.model.embed_tokens.weight[:4]]
    adapter = ROUTES[mode][0]
    if adapter is not None:
        samples.append(layer.self_attn.qkv_proj.lora[adapter].down.weight[:4])
    for weight in samples:
        digest.update(f"{weight.dtype}{weight.astype(mx.float32).tolist()}".encode())
    return digest.hexdigest()
