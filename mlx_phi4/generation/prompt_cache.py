"""Keys and values of a conversation, reused as far as a new prompt begins alike, in memory or from a file."""

import json
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..arguments import kinds
from ..arguments.names import checked_fields, takes
from ..decoder.kv_cache import CacheOptions, KVCache, QuantizedKVCache, WindowKVCache
from ..decoder.state import RowState
from ..device import cpu_stream, exclusive
from ..errors import Phi4Error, PromptError
from ..files import write_whole
from ..inputs.processor import Row
from ..modalities import projector_of
from ..model import Phi4
from .draft_model import DraftRow
from .media_cache import MediaCache

FILE_FORMAT = "mlx_phi4 prompt cache 2"
KINDS = {"plain": KVCache, "quantized": QuantizedKVCache, "window": WindowKVCache}

MediaSpan = tuple[int, str, str]  # where a medium starts, its content's digest, its projector


@checked_fields(
    media=kinds.of_class("MediaCache", "a MediaCache"),
    state=kinds.of_class("RowState", "a RowState") | None,
    options=kinds.of_class("CacheOptions", "CacheOptions"),
    draft=kinds.of_class("DraftRow", "a draft model's part of a sequence") | None,
    source=kinds.path | None,
)
@dataclass
class PromptCache:
    """One sequence's state, and what it was computed from.

    Reuse is keyed by tokens *and* the content of media *and* the adapter *and* the RoPE regime: nothing is reused
    across another picture, adapter or table. ``media`` keeps embeddings of pictures and clips beside it.
    """

    media: MediaCache = field(default_factory=MediaCache)
    state: RowState | None = None
    tokens: list[int] = field(default_factory=list)
    spans: frozenset[MediaSpan] = frozenset()
    options: CacheOptions = field(default_factory=CacheOptions)
    source: Path | None = None  # the file that it was loaded from, until it is used
    model: Callable[[], Phi4 | None] = field(default=lambda: None, repr=False)  # whose keys and values these are
    draft: DraftRow | None = field(default=None, repr=False)  # the same text as a draft model saw it

    def __post_init__(self):
        span = kinds.of_class("tuple", "a triple (start, digest, projector)")
        kinds.settle(self, {"tokens": kinds.several(kinds.integer(0)), "spans": kinds.several(span)})
        self.tokens, self.spans = list(self.tokens), frozenset(self.spans)

    def __repr__(self):
        adapter = None if self.state is None else self.state.adapter
        return f"PromptCache({len(self.tokens)} tokens, adapter={adapter!r}, media={self.media})"

    def clear(self) -> None:
        """Forget the sequence; embeddings of media stay."""
        self.state, self.tokens, self.spans, self.source, self.draft = None, [], frozenset(), None, None

    def common(self, row: Row, long: bool) -> int:
        """How many tokens of a row are in the cache already; at least one is left to compute."""
        if self.state is None or self.state.long != long or self.state.adapter != row.adapter:
            return 0
        limit = min(len(row.ids) - 1, len(self.tokens))
        count = next((i for i in range(limit) if row.ids[i] != self.tokens[i]), limit)
        # runs of placeholders look alike whatever they stand for
        return min([count, *(start for start, _, _ in self.spans ^ spans_of(row))])

    def take(self, model: Phi4, row: Row, long: bool, options: CacheOptions, *, share: bool = False) -> RowState | None:
        """The state cut to what it shares with a row, or None. The caller gives it back with ``put``.

        With ``share`` the cache keeps it, too, for other rows. Raises PromptError if it came from a file of another
        adapter or other cache options: that is a mistake, where in a conversation it is a change of subject.
        """
        if self.source is not None:
            self._check_source(row.adapter, options)
        mine = options == self.options and self.model() is model
        mine = mine and self.state is not None and self.state.digest == model.adapters.digest(row.adapter)
        count = self.common(row, long) if mine else 0
        state, spare = self.state, len(self.tokens) - count
        usable = count and reusable(state, count, spare, options)
        if share:
            state = state.fork() if usable else None
        else:
            self.clear()
        if not usable:
            return None
        state.trim(spare)
        return state

    def put(self, model: Phi4, state: RowState, row: Row, generated: list[int], options: CacheOptions) -> None:
        """Keep a finished sequence: its prompt and the generated tokens that went through the model."""
        self.state, self.options, self.source, self.model = state, options, None, weakref.ref(model)
        self.tokens = [*row.ids, *generated][: state.offset]
        self.spans = frozenset(span for span in spans_of(row) if span[0] < state.offset)

    @takes(path=kinds.path, model=kinds.model)
    def save(self, path: str | Path, model: Phi4) -> None:
        """Write to a safetensors file, beside its place and then renamed. Raises Phi4Error."""
        path = _checked(path)
        _check_alone(model)
        with exclusive():
            if self.state is None:
                raise Phi4Error("there is nothing in the prompt cache to save")
            arrays = {
                f"{layer}.{part}": mx.contiguous(array[:, :, : self.state.offset])
                for layer, cache in enumerate(self.state.caches)
                for part, array in enumerate(cache.parts)
            }
            mx.eval(arrays)
            known = {
                "format": FILE_FORMAT,
                "model": fingerprint(model, self.state.adapter),
                "adapter": self.state.adapter,
                "long": self.state.long,
                "kind": next(kind for kind, each in KINDS.items() if type(self.state.caches[0]) is each),
                "offset": self.state.offset,
                "tokens": self.tokens,
                "spans": sorted(self.spans),
                "options": asdict(self.options),
            }
        described = json.dumps(known)
        try:
            # an open file: of a full disk MLX says nothing where it is given a name
            with write_whole(path) as partial, partial.open("wb") as file:
                mx.save_safetensors(file, arrays, {"state": described, "checksum": _checksum(described, arrays)})
        except (OSError, RuntimeError) as error:
            raise Phi4Error(f"{path}: the prompt cache cannot be written: {error}") from None

    @classmethod
    @takes(path=kinds.path, model=kinds.model)
    def load(cls, path: str | Path, model: Phi4) -> "PromptCache":
        """Read a file that ``save`` wrote for this very model. Raises Phi4Error."""
        path = _checked(path)
        _check_alone(model)
        if not path.is_file():
            raise Phi4Error(f"{path}: no such prompt-cache file")
        try:
            with exclusive():
                arrays, described = mx.load(str(path), return_metadata=True, stream=cpu_stream())
                mx.eval(arrays)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise Phi4Error(f"{path}: is not a prompt-cache file: {error}") from None
        if not isinstance(described, dict) or not {"state", "checksum"} <= described.keys():
            raise Phi4Error(f"{path}: is not a prompt cache of this version")
        if described["checksum"] != _checksum(described["state"], arrays):
            raise Phi4Error(f"{path}: is damaged: its checksum does not fit")
        try:
            known = json.loads(described["state"])
            if known["format"] != FILE_FORMAT:
                raise Phi4Error(f"{path}: is not a prompt cache of this version")
            if known["model"] != fingerprint(model, known["adapter"]):
                raise Phi4Error(f"{path}: was made with another model{_or_adapter(known['adapter'], model)}")
            return _restored(cls, known, arrays, model, path)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise Phi4Error(f"{path}: is not a whole prompt cache: {error}") from None

    def _check_source(self, adapter: str | None, options: CacheOptions) -> None:
        mine = self.state.adapter
        if mine != adapter:
            raise PromptError(
                f"{self.source}: was made with {_named(mine)} and cannot serve a request with {_named(adapter)}"
            )
        if options != self.options:
            raise PromptError(f"{self.source}: was made with other --kv options ({_spelled(self.options)})")


def reusable(state: RowState, count: int, spare: int, options: CacheOptions) -> bool:
    """Whether the first ``count`` tokens of a state are what a row computes alone, and the ``spare`` ones can go.

    Keys that were packed later than ``quantized_start`` are no use to a row that is not that long yet.
    """
    packed_early = isinstance(state.caches[0], QuantizedKVCache) and options.boundary(count) is not None
    return state.trimmable(spare) and not packed_early


def _named(adapter: str | None) -> str:
    return "no adapter" if adapter is None else f"the {adapter} adapter"


def _or_adapter(name: str | None, model: Phi4) -> str:
    if name is not None and name not in model.adapters:
        return f", which has an adapter {name!r}"
    return "" if name is None or name in model.config.adapters else f" or another adapter {name!r}"


def _spelled(options: CacheOptions) -> str:
    return ", ".join(f"{name} {value}" for name, value in vars(options).items() if value is not None)


def spans_of(row: Row) -> frozenset[MediaSpan]:
    """Where a row's media stand, and what they are."""
    return frozenset((start, item.key, projector_of(item, row.mode)) for start, item in row.media)


def fingerprint(model: Phi4, adapter: str | None) -> str:
    """A digest of a model's configuration and of some of the weights that an adapter's keys depend on."""
    config = model.config
    digest = blake2b(repr((config.decoder, config.quantization)).encode(), digest_size=16)
    layer = model.model.layers[0]
    samples = [model.model.norm.weight, layer.input_layernorm.weight, model.model.embed_tokens.weight[:4]]
    if adapter is not None and adapter not in model.adapters:
        return f"no adapter {adapter}"
    digest.update((model.adapters.digest(adapter) or "").encode())
    own = [part for part in model.adapters.get(adapter, ()) if part in config.adapters]
    samples += [layer.self_attn.qkv_proj.lora[part].down.weight[:4] for part in own]
    with exclusive():
        for weight in samples:
            digest.update(f"{weight.dtype}{weight.astype(mx.float32).tolist()}".encode())
    return digest.hexdigest()


def _restored(kind: type, known: dict, arrays: dict[str, mx.array], model: Phi4, path: Path) -> PromptCache:
    """The cache that a file describes, every field and shape checked. Raises ValueError, KeyError or TypeError."""
    decoder, options, offset, tokens = model.config.decoder, CacheOptions(**known["options"]), known["offset"], []
    options.check(decoder.head_dim)
    for token in known["tokens"]:
        if type(token) is not int or not 0 <= token < decoder.vocab_size:
            raise ValueError(f"token {token!r}")
        tokens.append(token)
    kind_of = (
        "window" if options.max_size else "quantized" if options.bits and options.boundary(offset) is None else "plain"
    )
    if known["kind"] != kind_of:
        raise ValueError(f"keys and values of kind {known['kind']!r}")
    if offset != len(tokens) or not 0 < offset <= decoder.max_position_embeddings or type(known["long"]) is not bool:
        raise ValueError(f"{len(tokens)} tokens, offset {offset!r}")
    caches = []
    for layer in range(decoder.num_hidden_layers):
        cache = _empty(known["kind"], options)
        held = min(offset, options.max_size or offset)
        cache.parts = [arrays[f"{layer}.{part}"] for part in range(3 if known["kind"] == "quantized" else 1)]
        widths = _widths(known["kind"], options, decoder.head_dim)
        for part, width in zip(cache.parts, widths, strict=True):
            if part.shape != (1, 2 * decoder.num_key_value_heads, held, width):
                raise ValueError(f"an array of shape {part.shape}")
        floats = cache.parts[1:] if known["kind"] == "quantized" else cache.parts
        if any(part.dtype not in (mx.float32, mx.float16, mx.bfloat16) for part in floats):
            raise ValueError(f"an array of dtype {floats[0].dtype}")
        if floats is not cache.parts and cache.parts[0].dtype != mx.uint32:
            raise ValueError(f"an array of dtype {cache.parts[0].dtype}")
        cache.offset = offset
        caches.append(cache)
    spans = frozenset((int(start), str(key), str(projector)) for start, key, projector in known["spans"])
    state = RowState(known["adapter"], known["long"], caches, offset, model.adapters.digest(known["adapter"]))
    return kind(MediaCache(), state, tokens, spans, options, path, weakref.ref(model))


def _empty(kind: str, options: CacheOptions) -> KVCache:
    if kind == "window":
        return WindowKVCache(options.max_size)
    return QuantizedKVCache(options.bits, options.group_size) if kind == "quantized" else KVCache()


def _widths(kind: str, options: CacheOptions, head_dim: int) -> tuple[int, ...]:
    """The last axis of each part of a cache."""
    if kind != "quantized":
        return (head_dim,)
    groups = head_dim // options.group_size
    return head_dim * options.bits // 32, groups, groups


def _checksum(described: str, arrays: dict[str, mx.array]) -> str:
    digest = blake2b(described.encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.array(array.reshape(-1).view(mx.uint8)))
    return digest.hexdigest()


def _check_alone(model: Phi4) -> None:
    """Raises Phi4Error where this rank has the keys and values of some heads only."""
    if model.sharding is not None:
        raise Phi4Error("prompt-cache files hold all heads; they cannot be used where several ranks share a model")


def _checked(path: str | Path) -> Path:
    """mlx tells the format by the ending."""
    if Path(path).suffix != ".safetensors":
        raise Phi4Error(f"{path}: a prompt-cache file's name must end in .safetensors")
    return Path(path)
