"""One request on its way: everything that belongs to it, from its prompt's ids to its answer's text."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ..decoder.state import RowState, Run
from ..errors import Phi4Error, PromptError
from ..inputs.processor import Row
from ..inputs.tokenizer import Tokenizer
from ..modalities import Medium, Slices, projector_of
from ..model import Phi4
from .constraints import Constraint
from .media_cache import MediaCache
from .options import GenerationOptions
from .sampling import Sampler
from .text import AnswerText

Draft = Callable[[list[int]], list[int]]  # tokens of prompt and answer so far -> tokens that may follow


@dataclass(frozen=True)
class SequenceToken:
    """One more token of a sequence, or what ended it.

    ``text`` is the new piece that is certain, possibly empty; ``logprob`` and ``top_logprobs`` (best first) where they
    were asked for; ``finish_reason`` is None, "stop" (an end token or a stop string), "length" or "error", and then
    ``error`` says why and ``token`` is None. A row that was retired has "cancelled", and no token says so.
    """

    sequence: "Sequence"
    token: int | None
    text: str = ""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    finish_reason: str | None = None
    error: Exception | None = None


class Sequence:
    """A row's own state: ids, media, adapter, RoPE regime, caches, counts, sampler, constraint and text.

    Args:
        row: the request's ids and media, from ``Processor.row``.
        options: see ``GenerationOptions``.
        tokenizer: gives the end tokens and makes text; without it only ``max_tokens`` ends the answer.
        stop_ids: end tokens instead of the tokenizer's.
        constraint: which tokens may come.
        draft: proposes tokens that the next step verifies; greedy and seeded answers are the same with and without it.
        shares_cache: the prompt cache serves other rows, too: this one leaves nothing in it.
    """

    def __init__(
        self,
        row: Row,
        options: GenerationOptions | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        stop_ids: frozenset[int] | None = None,
        constraint: Constraint | None = None,
        draft: Draft | None = None,
        shares_cache: bool = False,
    ):
        self.row, self.options = row, options or GenerationOptions()
        self.stop_ids = stop_ids if stop_ids is not None else tokenizer.stop_ids if tokenizer else frozenset()
        self.text = AnswerText(tokenizer, self.options.stop) if tokenizer else None
        self.constraint, self.draft, self.shares_cache = constraint, draft, shares_cache
        if constraint is not None and draft is not None:
            raise Phi4Error("a constraint and a draft cannot be combined")
        self.model: Phi4 | None = None  # that it was admitted to
        self.state: RowState | None = None
        self.tokens: list[int] = []  # of the answer, as far as they were read
        self.chosen = 0  # tokens of the answer that were chosen, read or not
        self.pending: tuple[mx.array, int] | None = None  # where the last chosen token lies, in an array of a step's
        self.reused = 0  # prompt tokens whose keys were there already
        self.finish_reason: str | None = None
        self.siblings: list[Sequence] = []  # other answers to the same prompt, which wait for its prefill
        self._features: dict[int, mx.array] = {}
        self._encoding: tuple[int, Medium, Slices] | None = None
        self._put_off = False  # it was taken out of a batch and may come back
        self.admitted_at = self.first_token_at = self.last_token_at = 0.0

    @property
    def _media_cache(self) -> MediaCache | None:
        options = self.options
        if options.media_cache is None and options.prompt_cache is not None:
            return options.prompt_cache.media
        return options.media_cache

    def check(self, model: Phi4) -> None:
        """Refuse what this model cannot compute. Raises Phi4Error."""
        decoder, length = model.config.decoder, len(self.row.ids)
        self.options.kv.check(decoder.head_dim)
        if self.row.adapter is not None and self.row.adapter not in model.adapters:
            raise PromptError(f"this model has no adapter {self.row.adapter!r}")
        if not length:
            raise PromptError("the prompt is empty")
        if length + self.options.max_tokens > decoder.max_position_embeddings:
            asked, context = self.options.max_tokens, decoder.max_position_embeddings
            raise PromptError(
                f"a prompt of {length} tokens and max_tokens {asked} exceed the context of {context}; "
                f"at most {max(context - length, 0)} tokens can follow"
            )

    def begin(self, model: Phi4, prefill: bool = True) -> None:
        """Make what belongs to a model: the sampler and, to ``prefill``, the state, begun by the prompt cache.

        Raises Phi4Error.
        """
        if self.finish_reason is not None or (self.admitted_at and not self._put_off):
            raise Phi4Error("this sequence was admitted before")
        self.check(model)
        options, decoder = self.options, model.config.decoder
        if options.kv.bits:
            import mlx_lm.models.base  # noqa: F401  for decoder._attend_packed: seconds that are not the prompt's
        self._original = decoder.rope.original_max_position_embeddings
        if self._put_off:
            self.sampler.rewind(self.known)
        else:
            self.sampler = Sampler(options, self.row.ids, self.stop_ids, decoder.vocab_size)
        self.model = model
        model.adapters.hold(self)
        if not prefill:
            self.admitted_at = time.perf_counter()
            return
        state = model.new_state(self.row, long=options.rope == "long" or len(self.known) > self._original)
        cache, kv = options.prompt_cache, options.kv
        found = cache.take(model, self.row, state.long, kv, share=self.shares_cache) if cache is not None else None
        if found is None:
            state.caches = kv.make(len(model.model.layers))
        self.state = found or state
        if not self._put_off:
            self.reused, self.admitted_at = self.state.offset, time.perf_counter()
        self._put_off = False

    @property
    def known(self) -> list[int]:
        """Prompt and answer, as far as they were read."""
        return [*self.row.ids, *self.tokens]

    @property
    def length(self) -> int:
        """Tokens of prompt and answer, those that were chosen and not read included."""
        return len(self.row.ids) + self.chosen

    @property
    def full(self) -> bool:
        """Whether as many tokens were chosen as may be."""
        return self.chosen >= self.options.max_tokens

    @property
    def crosses(self) -> bool:
        """Whether its next token no longer fits the short table, by which all its keys are rotated."""
        return not self.state.long and self.length > self._original

    @property
    def room(self) -> int:
        """Tokens that a draft may have: none beyond the table, the window or the precision of the caches."""
        if self.options.max_kv_size is not None:
            borders = [self.options.max_kv_size]
        else:
            # one short of it: a wrong token must not be among those that are packed
            borders = [(self.options.kv.boundary(self.state.offset) or math.inf) - 1]
        if not self.state.long:
            borders.append(self._original)
        return max(min(*borders, self.length + self.options.max_tokens) - self.length, 0)

    def change_regime(self, model: Phi4) -> None:
        """Drop the keys rotated by the short table; all tokens so far are to be prefilled with the long one."""
        caches = self.options.kv.make(len(model.model.layers))
        self.state, self.pending = model.new_state(self.row, caches, long=True), None

    def piece(self) -> Run:
        """The next tokens to prefill: the same ones whatever else is in the batch."""
        start, total = self.state.offset, self.length
        stop = min(start + self.options.prefill_step_size, total)
        quantized_at = self.options.kv.boundary(start)
        if quantized_at is not None and quantized_at < stop:
            stop = quantized_at  # the change falls on the same token whatever the pieces are
        return Run(self.state, stop - start, int(stop == total))

    def embed_piece(self, model: Phi4, count: int) -> mx.array:
        """Embeddings (1, count, D) of the next tokens to prefill, whose media are encoded."""
        start = self.state.offset
        row = Row((*self.row.ids, *self.tokens), self.row.media, self.row.mode, self.row.adapter)
        return model.embed(row, start, start + count, self._features)

    @property
    def unencoded(self) -> tuple[int, Medium] | None:
        """The first medium that the next piece needs and whose embeddings are not here yet."""
        start = self.state.offset
        stop = start + self.piece().count
        media = ((first, item) for first, item in self.row.media if first < stop and first + item.tokens > start)
        return next((each for each in media if each[0] not in self._features), None)

    def encode_slice(self, model: Phi4) -> None:
        """A slice of the work on the next medium; done here, so that a medium that fails is this row's own affair."""
        if self._encoding is None:
            first, item = self.unencoded
            cache = self._media_cache
            seen = None if cache is None else cache.get(model, (item.key, projector_of(item, self.row.mode)))
            if seen is not None:
                self._features[first] = seen
                return
            self._encoding = first, item, model.embed_slices(item, self.row.mode)
        first, item, slices = self._encoding
        try:
            mx.eval(next(slices))
        except StopIteration as end:
            mx.eval(end.value)
            if len(end.value) != item.tokens:
                raise Phi4Error(f"a medium of {item.tokens} tokens has {len(end.value)} embeddings") from None
            self._features[first], self._encoding = end.value, None
            if self._media_cache is not None:
                self._media_cache.put((item.key, projector_of(item, self.row.mode)), end.value)

    def prefilled(self) -> None:
        """The prompt is in the caches: let go of what only served to get there."""
        may_cross = not self.state.long and len(self.row.ids) + self.options.max_tokens > self._original
        if not may_cross:
            self._features = {}

    def quantize_if_due(self) -> bool:
        """Change plain caches to quantized ones once they are long enough."""
        kv = self.options.kv
        due = kv.bits and kv.quantized_start and self.state.offset >= kv.quantized_start
        if due and not hasattr(self.state.caches[0], "bits"):
            self.state.quantize(kv)
            return True
        return False

    def fork_into(self, sibling: "Sequence") -> None:
        """Hand the prompt's state on to another answer to it."""
        sibling.state, sibling._features, sibling.reused = self.state.fork(), dict(self._features), self.reused

    def put_off(self) -> None:
        """Let go of all that can be computed again; tokens, counts, text and constraint stay."""
        self.state, self.pending, self._features, self._encoding = None, None, {}, None
        self.chosen, self._put_off = len(self.tokens), True

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and embeddings of media."""
        features = sum(part.nbytes for part in self._features.values())
        return features + (self.state.nbytes if self.state is not None else 0)

    def take(self, token: int, logprob: float | None, top: tuple | None) -> SequenceToken:
        """Read a token: its text, and whether it ends the answer."""
        self.tokens.append(token)
        self.last_token_at = time.perf_counter()
        self.first_token_at = self.first_token_at or self.last_token_at
        text = self.text.add(token) if self.text else ""
        if self.constraint is not None:
            self.constraint.advance(token)
        if token in self.stop_ids or (self.text and self.text.stopped):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.options.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason and self.text:
            text += self.text.finish()
        return SequenceToken(self, token, text, logprob, top, self.finish_reason)

    def fail(self, error: Exception) -> SequenceToken:
        """End with an error."""
        self.finish_reason, self.state, self._features = "error", None, {}
        return SequenceToken(self, None, finish_reason="error", error=error)

    def leave(self) -> None:
        """Give the state back to the prompt cache and let go of all the rest."""
        cache, state = self.options.prompt_cache, self.state
        if cache is not None and not self.shares_cache and state is not None and state.offset:
            cache.put(self.model, state, self.row, self.tokens, self.options.kv)
        self.state, self.pending, self.model, self._features = None, None, None, {}


def damaged() -> Phi4Error:
    """What a row of NaN means."""
    return Phi4Error("the model gives NaN or infinite numbers: its weights are damaged")
