"""Token by token: prefill, decoding steps, rows that end, and the change of the RoPE regime.

The lowest rung of generation: from ``Inputs`` to token ids, for all rows of a batch at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlx.core as mx

from ..decoder.state import CacheOptions, DecodeState
from ..errors import Phi4Error
from ..inputs.processor import Inputs
from ..model import Phi4
from .media_cache import MediaCache
from .prompt_cache import PromptCache
from .sampling import RowSampler, Sampled, Sampling, sample


@dataclass(frozen=True)
class EngineOptions:
    """How a batch is computed; none of it changes what is computed, but for ``kv`` and ``rope``.

    ``prefill_step_size`` prompt tokens go through the decoder at once. ``rope`` "auto" begins with the short table and
    computes a sequence again once it passes the original context; "long" uses the long table from the start.
    ``progress`` is called with (prompt tokens done, of how many).
    """

    prefill_step_size: int = 2048
    kv: CacheOptions = field(default_factory=CacheOptions)
    rope: str = "auto"
    prompt_cache: PromptCache | None = None
    media_cache: MediaCache | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self):
        if self.prefill_step_size < 1:
            raise Phi4Error(f"prefill_step_size is {self.prefill_step_size}, expected at least 1")
        if self.rope not in ("auto", "long"):
            raise Phi4Error(f"rope is {self.rope!r}, expected auto or long")


@dataclass
class RowOptions:
    """What one row asks for."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256


@dataclass(frozen=True)
class RowToken:
    """One row's token of one step; ``logprob`` and ``top_logprobs`` (best first) where they were asked for."""

    row: int
    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None


class Generation:
    """One batch on its way.

    A row that grows past the original context (4096 tokens) must turn all its keys by the long table, so its cache is
    computed again, once, from the embeddings of its prompt and the tokens so far. Kept for that: at most 4096
    embeddings per row (25 MB at the published width in bfloat16), and only while a row may get there.
    """

    def __init__(
        self,
        model: Phi4,
        inputs: Inputs,
        rows: list[RowOptions],
        stop_ids: frozenset[int] = frozenset(),
        options: EngineOptions | None = None,
    ):
        self.model, self.inputs, self.options = model, inputs, options or EngineOptions()
        self.options.kv.check(model.config.decoder.head_dim, len(rows))
        if self.options.prompt_cache is not None and len(rows) > 1:
            raise Phi4Error("a prompt cache serves one sequence at a time")
        self.limits = [row.max_tokens for row in rows]
        self.active = list(range(len(rows)))  # rows that still decode, in the order of the state's rows
        vocabulary = model.config.decoder.vocab_size
        self.samplers = [
            RowSampler(row.sampling, inputs.input_ids[i, inputs.padding[i] :], stop_ids, vocabulary)
            for i, row in enumerate(rows)
        ]
        self.reused = 0  # prompt tokens whose keys were there already
        self.decoder_steps = 0
        self._original = model.config.decoder.rope.original_max_position_embeddings
        self._retired: set[int] = set()
        self._kept: dict[int, mx.array] = {}
        self._fed: list[dict[int, mx.array]] = []

    def retire(self, row: int) -> None:
        """End a row: it leaves the batch before the next step."""
        self._retired.add(row)

    def steps(self) -> Iterator[list[RowToken]]:
        """Yield the tokens of the rows that still decode, until each has ended or reached its limit.

        The next step is under way on the device while the caller looks at this one's tokens. A prompt cache gets the
        sequence back at the end or when the caller closes the generator, never after an exception, which may have left
        layers of different length.
        """
        try:
            logits = self._prefill()
            finite = mx.isfinite(logits).all()
            sampled = sample(self.samplers, logits, 0)
            mx.async_eval(sampled.tokens, finite)
            count, rows = 1, list(self.active)
            while rows:
                on = [i for i, row in enumerate(rows) if self.limits[row] > count]
                going = [rows[i] for i in on]
                following = None
                if going:
                    self._keep(going)
                    ready = sampled if len(on) == len(rows) else sampled.rows(on)
                    following = sample([self.samplers[row] for row in going], self._advance(ready.tokens), count)
                    mx.async_eval(following.tokens)
                if count == 1 and not finite.item():
                    raise Phi4Error("the model gives NaN or infinite numbers: its weights are damaged")
                yield _row_tokens(rows, sampled, self.samplers)
                live = [i for i, row in enumerate(going) if row not in self._retired]
                if len(live) < len(going):
                    following = following.rows(live) if live else None
                rows, sampled, count = [going[i] for i in live], following, count + 1
        except GeneratorExit:
            self._give_back()  # the caller has enough; what was computed is whole
            raise
        self._give_back()

    def _prefill(self) -> mx.array:
        """Logits (B, V) after the prompt."""
        inputs, options = self.inputs, self.options
        cache, long = options.prompt_cache, options.rope == "long"
        media = options.media_cache
        if media is None and cache is not None:
            media = cache.media
        fresh = self.model.new_state(inputs, options.kv.make(len(self.model.model.layers)), long=long)
        reused = cache.take(inputs, fresh.long[0], options.kv) if cache is not None else None
        self.state = reused or fresh
        self.reused = self.state.offset
        crossing = [
            row
            for row, length in enumerate(inputs.lengths)
            if not self.state.long[row] and length + self.limits[row] > self._original
        ]
        embeddings = self.model.embed(inputs, media, 0 if crossing else self.reused)
        self._kept = {row: embeddings[row : row + 1, inputs.padding[row] :] for row in crossing}
        hidden = self._run(embeddings[:, self.reused :], self.state, options.progress)
        return self.model.logits(hidden)[:, 0]

    def _run(self, embeddings: mx.array, state: DecodeState, progress=None) -> mx.array:
        """Prefill in pieces; the last hidden state (B, 1, D)."""
        total, start = embeddings.shape[1], 0
        while start < total:
            stop = min(start + self.options.prefill_step_size, total)
            quantized_at = self.options.kv.quantized_start - state.offset + start
            if start < quantized_at < stop:
                stop = quantized_at  # the change falls on the same token whatever the pieces are
            hidden = self.model.model(embeddings[:, start:stop], state, last_only=True)
            state.quantize_if_due(self.options.kv)
            mx.eval([cache.keys_and_values() for cache in state.cache])
            start = stop
            if progress is not None:
                progress(start, total)
        return hidden

    def _advance(self, tokens: mx.array) -> mx.array:
        """Logits (B, V) after ``tokens`` (B,) were appended."""
        for index, row in enumerate(self.active):
            if row in self._kept and self.state.lengths[index] + 1 > self._original:
                self._lengthen(index, row)
        if self._kept or self.options.prompt_cache is not None:
            self._fed.append({row: tokens[i : i + 1] for i, row in enumerate(self.active)})
        self.decoder_steps += 1
        h = self.model.model.embed_tokens(tokens[:, None])
        logits = self.model.logits(self.model.model(h, self.state))[:, 0]
        self.state.quantize_if_due(self.options.kv)
        return logits

    def _lengthen(self, index: int, row: int) -> None:
        """Compute a row's cache again with the long table and put it in place of the old one."""
        embeddings = self._kept.pop(row)
        fed = [step[row] for step in self._fed if row in step]
        if fed:
            tokens = self.model.model.embed_tokens(mx.concatenate(fed)[None])
            embeddings = mx.concatenate([embeddings, tokens], axis=1)
        alone = DecodeState(
            (self.state.modes[index],), (0,), (True,), self.options.kv.make(len(self.model.model.layers))
        )
        self._run(embeddings, alone)
        self.state.replace_row(index, alone)

    def _keep(self, rows: list[int]) -> None:
        """Drop rows that have ended from the state."""
        if rows == self.active:
            return
        self.state.keep([self.active.index(row) for row in rows])
        self.active = list(rows)
        self._kept = {row: kept for row, kept in self._kept.items() if row in rows}

    def _give_back(self) -> None:
        """Leave the sequence in the prompt cache, as far as it was computed."""
        cache = self.options.prompt_cache
        if cache is not None and hasattr(self, "state") and self.state.offset >= max(self.inputs.lengths):
            generated = [step[0].item() for step in self._fed]
            cache.put(self.state, self.inputs, generated, self.options.kv)


def _row_tokens(rows: list[int], sampled: Sampled, samplers: list[RowSampler]) -> list[RowToken]:
    """Read a step's tokens from the device."""
    tokens = sampled.tokens.tolist()
    if sampled.logprobs is None:
        return [RowToken(row, token) for row, token in zip(rows, tokens, strict=True)]
    logprobs = sampled.logprobs.tolist()
    ids, values = ([[]] * len(rows),) * 2 if sampled.top is None else (part.tolist() for part in sampled.top)
    found = []
    for i, row in enumerate(rows):
        asked = samplers[row].sampling.logprobs
        if asked is None:
            found.append(RowToken(row, tokens[i]))
        else:
            top = tuple(zip(ids[i][:asked], values[i][:asked], strict=True))
            found.append(RowToken(row, tokens[i], logprobs[i], top))
    return found
