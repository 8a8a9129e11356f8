"""Phi-4: encoders, merge and decoder. A text-only model is the same class without encoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from .arguments import kinds
from .arguments.kinds import of_class
from .arguments.names import takes
from .checkpoint.adapter_files import is_sum, read_adapter
from .config import Config
from .decoder.adapter_set import AdapterSet
from .decoder.adapters import Adapter
from .decoder.decoder import Decoder
from .decoder.parallel import Sharding, SharedHead, share_decoder
from .decoder.state import RowState, Run
from .device import enter_thread, exclusive, finished
from .errors import CheckpointError, Phi4Error
from .inputs.processor import Inputs, Row
from .modalities import MODALITIES, Medium, Slices, modality_of

if TYPE_CHECKING:
    from .checkpoint.weights import Origin
    from .ranks.leading import Leader


def _adapter(value):
    """A folder, or what was read from one."""
    if isinstance(value, Adapter):
        return value
    try:
        return kinds.path.read(value)
    except kinds.Unfit:
        raise kinds.Unfit("a folder, a sum as 'vision+mine', or an Adapter") from None


class Phi4(nn.Module):
    """The whole model. It is never changed by a request: see ``decoder.state.RowState``."""

    @takes(config=of_class("Config", "a Config, as in the model that load gives"))
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        decoder = config.decoder
        self.model = Decoder(decoder, config.adapters)
        if not decoder.tie_word_embeddings:
            self.lm_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
        self._modules_of: dict[str, list[str]] = {}  # names of modules by kind of medium
        for kind, modality in MODALITIES.items():
            made = modality.modules(config) if modality.held(config) else {}
            self._modules_of[kind] = list(made)
            for name, module in made.items():
                setattr(self, name, module)
        self._ready: set[str | None] = set()  # parts whose weights are read and computed
        self.sharding: Sharding | None = None  # where several ranks share the decoder
        self.origin: Origin | None = None  # the files that weights which were not read yet come from
        self.leader: Leader | None = None  # where other ranks follow what is computed here
        self._shared_head: SharedHead | None = None
        self.adapters = AdapterSet(self)

    def __repr__(self):
        held = [kind for kind, each in MODALITIES.items() if each.held(self.config)]
        count = sum(array.size for _, array in tree_flatten(self.parameters()))
        layers, width = self.config.decoder.num_hidden_layers, self.config.decoder.hidden_size
        return f"Phi4({', '.join(['text', *held])}; {layers} layers of {width}, arrays of {count / 1e6:.1f} M numbers)"

    @property
    def modules_of(self) -> dict[str, list[str]]:
        """Names of the encoders' and projectors' modules by kind of medium."""
        return self._modules_of

    @takes(inputs=of_class("Inputs", "the Inputs that a processor makes"))
    def __call__(self, inputs: Inputs) -> mx.array:
        """Logits (B, L, V) of a full forward pass without a cache, rows aligned at the right as their ids are.

        Left-padding columns of a batch are zeros. The logits are computed when they are needed, in the thread that made
        them.
        """
        rows = inputs.rows
        order = sorted(range(len(rows)), key=lambda row: rows[row].adapter or "")
        runs = [Run(self.new_state(rows[i]), len(rows[i].ids), len(rows[i].ids)) for i in order]
        h = mx.concatenate([self.embed(rows[i]) for i in order], axis=1)
        logits, position = self.forward(h, runs)[0], 0
        found: list[mx.array] = [None] * len(rows)
        width = inputs.input_ids.shape[1]
        for i, run in zip(order, runs, strict=True):
            found[i] = mx.pad(logits[position : position + run.count], [(width - run.count, 0), (0, 0)])
            position += run.count
        return mx.stack(found)

    @takes(name=kinds.text, adapter=kinds.Kind(_adapter), bits=kinds.integer(among=(4, 8)) | None, train=kinds.flag)
    def add_adapter(
        self, name: str, adapter: Adapter | str | Path, *, bits: int | None = None, train: bool = False
    ) -> None:
        """Add an adapter at run time: requests name it, all others get the bits that they got before.

        Args:
            name: what requests call it; not one that is there already.
            adapter: a folder of peft's or mlx-lm's, names joined by ``+`` for the sum of adapters that are there (as
                "vision+mine"), or an ``Adapter``.
            bits: 8 or 4 packs it, as the converter does with a model's own.
            train: keep it as it is, to be trained and had back by ``adapters.get_adapter``.

        Raises:
            Phi4Error: the name is taken, the folder is missing or damaged, or it does not fit this model; in one line.
        """
        if self.leader is not None and not isinstance(adapter, Adapter) and not train:
            with exclusive():
                self.leader.add_adapter(name, str(adapter), bits)
            return
        with exclusive():
            if not isinstance(adapter, Adapter) and is_sum(adapter):
                self.adapters.compose(name, str(adapter).split("+"))
                return
            where = "" if isinstance(adapter, Adapter) else f"{adapter}: "
            self.adapters.check_free(name)
            read = adapter if isinstance(adapter, Adapter) else read_adapter(adapter, self.config.decoder)
            try:
                self.adapters.add(name, read, bits=bits, train=train)
            except CheckpointError as error:
                raise CheckpointError(f"{where}{error}") from None

    @takes(name=kinds.text)
    def remove_adapter(self, name: str) -> None:
        """Remove one that was added. Raises Phi4Error for any other, and while a row uses it."""
        with exclusive():
            self.adapters.remove(name)
            if self.leader is not None:
                self.leader.remove_adapter(name)

    @takes(head=kinds.choice("replicated", "shared"))
    def shard(self, group: Any = None, *, head: str = "replicated") -> None:
        """Share the decoder with the other ranks of a group, which all are to call this: tensor parallelism.

        This rank keeps its heads and its part of the MLP, of the adapters, too, and reads nothing else of what it had
        not read yet. Embeddings, head, norms and encoders stay whole. From then on all ranks are to do the same calls;
        the tokens that are chosen are rank 0's.

        Args:
            group: of ``mx.distributed``; None is all processes.
            head: "shared" has each rank compute its part of the vocabulary and gathers the logits: less to read, more
                to send.

        Raises:
            Phi4Error: so many ranks cannot share this model, or it is shared already. Nothing is changed then.
        """
        sharding = Sharding.of(group)
        if self.sharding is not None:
            raise Phi4Error("this model is shared already")
        if sharding.size == 1:
            return
        with exclusive():
            read = {None, *self.adapters}.isdisjoint(self._ready) and self.origin is not None
            share_decoder(self.config.decoder, self.model, sharding, self.origin.part if read else lambda *array: None)
            for kind in self._modules_of:
                for name in self._modules_of[kind]:
                    if hasattr(self[name], "sharding"):
                        self[name].sharding = sharding
            if head == "shared":
                table = self.lm_head if "lm_head" in self else self.model.embed_tokens
                self._shared_head = SharedHead(table, self.config.decoder.vocab_size, sharding)
        self.sharding = sharding

    def forward(self, h: mx.array, runs: list[Run]) -> mx.array | None:
        """Embeddings (1, T, D) of the runs' tokens -> logits (1, A, V) of the asked ones, or None; states move on."""
        hidden = self.hidden(h, runs)
        return None if hidden is None else self.logits(hidden)

    def hidden(self, h: mx.array, runs: list[Run]) -> mx.array | None:
        """As ``forward``, but the last hidden states (1, A, D)."""
        if self.leader is not None:
            return self.leader.hidden(h, runs)
        self.read({run.state.adapter for run in runs})
        return self.model(h, runs, self.adapters.composed)

    def agreed(self, tokens: mx.array) -> mx.array:
        """Tokens (R,) that each rank chose -> those of rank 0: by their own bits they might part."""
        alone = self.sharding is None or self.leader is not None
        return tokens if alone else self.sharding.from_first(tokens)

    def logits(self, h: mx.array) -> mx.array:
        """Hidden states (1, A, D) -> (1, A, V)."""
        if self._shared_head is not None:
            return self._shared_head(h)
        if "lm_head" in self:
            return self.lm_head(h)
        return self.model.embed_tokens.as_linear(h)

    def embed(self, row: Row, start: int = 0, stop: int | None = None, features: dict | None = None) -> mx.array:
        """Embeddings (1, n, D) of a row's tokens [start, stop), with its media in their places.

        ``features`` holds embeddings of media by the token that they begin at, see ``embed_medium``; those that are
        needed and not there are computed, and not kept.
        """
        stop = len(row.ids) if stop is None else stop
        self.read({None})
        h = self.model.embed_tokens(mx.array(np.asarray(row.ids[start:stop], np.int32))[None])
        for first, item in row.media:
            end = first + item.tokens
            if end <= start or first >= stop:
                continue
            part = (features or {}).get(first)
            part = self.embed_medium(item, row.mode) if part is None else part
            here = slice(max(first - start, 0), min(end, stop) - start)
            h[:, here] = part[max(start - first, 0) : stop - first].astype(h.dtype)
        return h

    def embed_medium(self, item: Medium, mode: str) -> mx.array:
        """One medium as (tokens, D); some are projected as their request's mode asks."""
        return finished(self.embed_slices(item, mode))

    def embed_slices(self, item: Medium, mode: str) -> Slices:
        """As ``embed_medium``, with pauses between slices of the work."""
        modality = modality_of(item)
        self.read({f"media {modality.kind}"})
        slices = modality.encode(self, item, modality.projector(mode))
        return slices if self.leader is None else self.leader.slices(item, mode, slices)

    def new_state(self, row: Row, caches: list | None = None, *, long: bool = False) -> RowState:
        """A fresh state for a row. Its RoPE regime follows from its length; ``long`` makes it the long one anyway."""
        original = self.config.decoder.rope.original_max_position_embeddings
        return RowState(row.adapter, long or len(row.ids) > original, caches, digest=self.adapters.digest(row.adapter))

    def reread(self, part: str) -> None:
        """The weights of a part were replaced."""
        self._ready.discard(part)

    def read(self, parts: Sequence[str | None]) -> None:
        """Have the weights of parts in memory: the decoder (None), its adapters by name, "media" and a kind's modules.

        They are computed once, by whichever thread comes first: a lazy array must not be computed by two at once.
        """
        enter_thread()
        for part in {part for name in parts for part in self.adapters.get(name, (name,))} - self._ready:
            with exclusive():
                for module in self._modules(part):
                    weights = tree_flatten(module.parameters())
                    if part in self.adapters:
                        weights = [(name, w) for name, w in weights if f".lora.{part}." in name]
                    elif part is None:
                        weights = [(name, w) for name, w in weights if ".lora." not in name]
                    mx.eval([weight for _, weight in weights])
                self._ready.add(part)

    def _modules(self, part: str | None) -> list[nn.Module]:
        """Where the weights of a part lie, in pieces that are read one by one."""
        if part is not None and part.startswith("media "):
            found = [self[name] for name in self._modules_of[part.removeprefix("media ")]]
            return [m for each in found for m in ([each] if isinstance(each, nn.Module) else each.values())]
        head = [self.lm_head] if "lm_head" in self else []
        return [*self.model.layers, *([self.model.embed_tokens, self.model.norm, *head] if part is None else [])]
