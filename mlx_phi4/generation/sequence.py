"""One request on its way: everything that belongs to it, from its prompt's ids to its answer's text."""

import math
import time
from dataclasses import dataclass

import mlx.core as mx

from ..decoder.state import RowState, Run
from ..errors import Phi4Error, PromptError
from ..inputs.processor import Row
from ..inputs.tokenizer import Tokenizer
from ..inputs.tools import ToolCall
from ..modalities import Medium
from ..model import Phi4
from .constraints import Constraint
from .draft_model import DraftModel
from .options import GenerationOptions
from .row_media import RowMedia
from .sampling import Sampler
from .speculation import Draft, GivenDrafts, drafts_of
from .text import AnswerText
from .tool_calls import answer_text
from .tool_choice import answer_form, without_calls


@dataclass(frozen=True)
class SequenceToken:
    """One more token of a sequence, or what ended it.

    ``text`` is the new piece that is certain, possibly empty; ``logprob`` and ``top_logprobs`` (best first) where they
    were asked for; ``finish_reason`` is None, "stop" (an end token or a stop string), "tool_calls", "length" or
    "error", and then ``error`` says why and ``token`` is None. A row that was retired has "cancelled", and no token
    says so. ``number`` counts the answer's tokens up to this one; ``tool_calls`` are those that are whole with it.
    """

    sequence: "Sequence"
    token: int | None
    text: str = ""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    finish_reason: str | None = None
    error: Exception | None = None
    number: int = 0
    tool_calls: tuple[ToolCall, ...] = ()


class Sequence:
    """A row's own state: ids, media, adapter, RoPE regime, caches, counts, sampler, constraint and text.

    Args:
        row: the request's ids and media, from ``Processor.row``.
        options: see ``GenerationOptions``.
        tokenizer: gives the end tokens and makes text; without it only ``max_tokens`` ends the answer.
        stop_ids: end tokens instead of the tokenizer's.
        constraint: which tokens may come, instead of what the options say.
        draft: proposes tokens that the next step verifies, instead of what the options say; answers are the same.
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
        self.text: AnswerText | None = None
        if tokenizer is not None:
            self.options = without_calls(self.options, tokenizer)
            self.text = answer_text(row.tools, self.options, tokenizer)
        elif constraint is None and self.options.grammar is not None:
            raise Phi4Error(f"{self.options.grammar.name} needs a tokenizer")
        if constraint is None and tokenizer is not None:
            form = answer_form(row.tools, self.options, tokenizer)
            constraint = None if form is None else form.constraint()
        self._tokenizer, self.constraint, self.shares_cache = tokenizer, constraint, shares_cache
        self.speculation = drafts_of(self.options, row, tokenizer)
        self.accepted = self.rejected = 0  # drafted tokens that were right, and that were verified in vain
        if draft is not None:
            self.draft = draft
        self.model: Phi4 | None = None  # that it was admitted to
        self.state: RowState | None = None
        self.tokens: list[int] = []  # of the answer, as far as they were read
        self.chosen = 0  # tokens of the answer that were chosen, read or not
        self.pending: tuple[mx.array, int] | None = None  # where the last chosen token lies, in an array of a step's
        self.reused = 0  # prompt tokens whose keys were there already
        self.finish_reason: str | None = None
        self.siblings: list[Sequence] = []  # other answers to the same prompt, which wait for its prefill
        prompt_cache, media_cache = self.options.prompt_cache, self.options.media_cache
        if media_cache is None and prompt_cache is not None:
            media_cache = prompt_cache.media
        self._media = RowMedia(row, media_cache)
        self._put_off = False  # it was taken out of a batch and may come back
        self.admitted_at = self.first_token_at = self.last_token_at = 0.0

    @property
    def draft(self) -> Draft | None:
        """The function that drafts, if there is one."""
        return getattr(self.speculation, "function", None)

    @draft.setter
    def draft(self, function: Draft | None) -> None:
        self.speculation = None if function is None else GivenDrafts(function, lambda: self.known)

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
        if isinstance(self.options.speculation, DraftModel):
            self.options.speculation.check(model, self._tokenizer)

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
        before = None if cache is None else cache.draft
        found = cache.take(model, self.row, state.long, kv, share=self.shares_cache) if cache is not None else None
        if found is None:
            state.caches = kv.make(len(model.model.layers))
        self.state = found or state
        if self.speculation is not None and self.speculation.model is not None and before is not None:
            self.speculation.model.adopt(before)
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
    def unread(self) -> int:
        """Tokens of the answer that were chosen and are still on the device."""
        return self.chosen - len(self.tokens)

    @property
    def crosses(self) -> bool:
        """Whether its next token no longer fits the short table, by which all its keys are rotated."""
        return not self.state.long and self.length > self._original

    @property
    def room(self) -> int:
        """Tokens that a draft may have: none beyond the table, the precision of the caches, or what they take back."""
        # one short of it: a wrong token must not be among those that are packed
        borders = [(self.options.kv.boundary(self.state.offset) or math.inf) - 1]
        borders.append(self.length - 1 + self.state.caches[0].revocable)
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
        return model.embed(row, start, start + count, self._media.features)

    @property
    def unencoded(self) -> tuple[int, Medium] | None:
        """The first medium that the next piece needs and whose embeddings are not here yet."""
        start = self.state.offset
        return self._media.unencoded(start, start + self.piece().count)

    def encode_slice(self, model: Phi4) -> None:
        """A slice of the work on the next medium."""
        self._media.encode_slice(model, self.unencoded)

    def prefilled(self) -> None:
        """The prompt is in the caches: let go of what only served to get there."""
        may_cross = not self.state.long and len(self.row.ids) + self.options.max_tokens > self._original
        if not may_cross:
            self._media.clear()

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
        sibling.state, sibling.reused = self.state.fork(), self.reused
        self._media.share(sibling._media)

    def put_off(self) -> None:
        """Let go of all that can be computed again; tokens, counts, text and constraint stay."""
        self.state, self.pending = None, None
        self._media.clear()
        self.chosen, self._put_off = len(self.tokens), True
        if self.speculation is not None:
            self.speculation.forget()

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and embeddings of media."""
        return sum(each.nbytes for each in (self._media, self.state, self.speculation) if each is not None)

    def take(self, token: int, logprob: float | None, top: tuple | None) -> SequenceToken:
        """Read a token: its text, and whether it ends the answer."""
        self.tokens.append(token)
        self.last_token_at = time.perf_counter()
        self.first_token_at = self.first_token_at or self.last_token_at
        text = self.text.add(token) if self.text else ""
        if self.constraint is not None:
            self.constraint.advance(token)
        if self.speculation is not None:
            self.speculation.read(token)
        if token in self.stop_ids or (self.text and self.text.stopped):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.options.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason and self.text:
            text += self.text.finish()
            self.finish_reason = self.text.reason(self.finish_reason)
        calls = self.text.calls() if self.text else ()
        reason = self.finish_reason
        return SequenceToken(self, token, text, logprob, top, reason, number=len(self.tokens), tool_calls=calls)

    def drafted(self, count: int, accepted: int) -> None:
        """A draft of so many tokens was verified, of which the first so many were right."""
        self.accepted, self.rejected = self.accepted + accepted, self.rejected + count - accepted
        self.speculation.judged(count, accepted)

    def fail(self, error: Exception) -> SequenceToken:
        """End with an error."""
        self.finish_reason, self.state, self.speculation = "error", None, None
        self._media.clear()
        return SequenceToken(self, None, finish_reason="error", error=error)

    def leave(self) -> None:
        """Give the state back to the prompt cache and let go of all the rest."""
        cache, state = self.options.prompt_cache, self.state
        if cache is not None and not self.shares_cache and state is not None and state.offset:
            cache.put(self.model, state, self.row, self.tokens, self.options.kv)
            cache.draft = None if self.speculation is None else self.speculation.model
        self.state, self.pending, self.model, self.speculation = None, None, None, None
        self._media.clear()
