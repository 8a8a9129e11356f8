"""A small model that drafts for a large one of the same vocabulary; what it proposes is verified, never believed.

It reads text only: where a request holds pictures or recordings, it goes on without them. Its proposals are its
likeliest tokens, see ``speculation`` for why that is right for sampled answers, too.
"""

from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_flatten

from ..arguments.kinds import Unfit
from ..decoder.kv_cache import CacheOptions
from ..decoder.state import RowState, Run
from ..errors import Phi4Error
from ..inputs.processor import Processor, Row
from ..inputs.tokenizer import Tokenizer
from ..model import Phi4

TAKEN_IN = 512  # tokens that a row's draft model takes in during one step of the large one


@dataclass(frozen=True, eq=False)
class DraftModel:
    """A loaded model that drafts, and, to compare vocabularies by more than their size, its tokenizer."""

    model: Phi4
    tokenizer: Tokenizer | None = None

    @classmethod
    def of(cls, value) -> "DraftModel":
        """From a model, or the pair (model, processor) that ``load`` gives. Raises Unfit."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Phi4):
            return cls(value)
        if isinstance(value, tuple) and [type(each) for each in value] == [Phi4, Processor]:
            return cls(value[0], value[1].tokenizer)
        raise Unfit("'lookup', 'none' or a draft model: a model, or the pair (model, processor) that load gives")

    def check(self, model: Phi4, tokenizer: Tokenizer | None) -> None:
        """Refuse to draft for a model of another vocabulary. Raises Phi4Error."""
        mine, theirs = self.model.config.decoder.vocab_size, model.config.decoder.vocab_size
        if mine != theirs:
            raise Phi4Error(f"the draft model has a vocabulary of {mine} tokens, the model one of {theirs}")
        if None not in (self.tokenizer, tokenizer) and self.tokenizer.digest != tokenizer.digest:
            raise Phi4Error("the draft model has another vocabulary than the model: ids mean other tokens")

    def row(self, row: Row) -> "DraftRow":
        """What belongs to one request."""
        return DraftRow(self, row)

    @property
    def nbytes(self) -> int:
        """Of weights."""
        return sum(array.nbytes for _, array in tree_flatten(self.model.parameters()))

    @property
    def nbytes_per_token(self) -> int:
        """Of keys and values."""
        decoder, width = self.model.config.decoder, self.model.model.norm.weight.dtype.size
        return decoder.num_hidden_layers * 2 * decoder.num_key_value_heads * decoder.head_dim * width


class DraftRow:
    """One request as the draft model sees it: the tokens of its text, and how many of them went through the model."""

    def __init__(self, owner: DraftModel, row: Row):
        self.owner = owner
        self._known: list[int] = []  # of prompt and answer
        place = 0
        for start, item in sorted(row.media, key=lambda each: each[0]):
            self._known += row.ids[place:start]
            place = start + item.tokens
        self._known += row.ids[place:]
        self._context = owner.model.config.decoder.max_position_embeddings
        self._state: RowState | None = None
        self._sure = 0  # known tokens that went through
        self._guessed: list[int] = []  # tokens that went through after them

    @property
    def behind(self) -> bool:
        """Whether more is to be taken in than one step's part, and can be."""
        return self._context >= len(self._known) > self._sure + TAKEN_IN

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return 0 if self._state is None else self._state.nbytes

    def read(self, token: int) -> None:
        """The answer has one token more."""
        self._known.append(token)

    def room(self, count: int) -> int:
        """How many of so many tokens can be drafted now."""
        if self._state is not None and not self._state.long and not self._short(count):
            self.forget()  # its keys are rotated by the short table
        return 0 if self.behind else max(min(count, self._context - len(self._known)), 0)

    def _short(self, drafted: int) -> bool:
        """Whether all that is known and so many tokens more fit the short table."""
        original = self.owner.model.config.decoder.rope.original_max_position_embeddings
        return len(self._known) + drafted <= original

    def adopt(self, other: "DraftRow") -> None:
        """Take over another row's keys and values, as far as the texts begin alike."""
        if other._state is None or other.owner.model is not self.owner.model or other._state.long == self._short(0):
            return
        most = min(other._sure, len(self._known) - 1)
        pairs = zip(self._known[:most], other._known, strict=False)
        self._sure = next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), most)
        self._state = other._state
        other.forget()

    def forget(self) -> None:
        """Let go of keys and values; they are computed again when they are needed."""
        self._state, self._sure, self._guessed = None, 0, []

    def catch_up(self) -> None:
        """Have the device begin to take in a part of what is to be taken in."""
        run, ids = self.advance(0)
        _forward(self.owner.model, mx.array(ids), [run])
        mx.async_eval(run.state.arrays())

    def advance(self, drafted: int) -> tuple[Run, list[int]]:
        """The run of tokens to take in next, and their ids; the last asks for its successor if any are ``drafted``."""
        known = self._known
        if self._state is None:
            caches = CacheOptions().make(len(self.owner.model.model.layers))
            self._state = RowState(None, not self._short(drafted), caches)
        for guess in self._guessed[: len(known) - 1 - self._sure]:  # of the last token the successor is asked for
            if guess != known[self._sure]:
                break
            self._sure += 1
        self._state.trim(self._state.offset - self._sure)
        ids = known[self._sure : self._sure + TAKEN_IN]
        self._sure, self._guessed = self._sure + len(ids), []
        return Run(self._state, len(ids), int(drafted > 0)), ids

    def guess(self, tokens: list[int]) -> None:
        """These went through after what is known."""
        self._guessed = tokens


def propose(asked: list[tuple[DraftRow, int]]) -> list[list[int]]:
    """So many tokens for each row, its model's likeliest; rows of one model go side by side."""
    found: dict[DraftRow, list[int]] = {}
    for owner in {row.owner: None for row, _ in asked}:
        group = [(row, count) for row, count in asked if row.owner is owner]
        found |= _propose(owner.model, sorted(group, key=lambda each: -each[1]))
    return [found[row] for row, _ in asked]


def _propose(model: Phi4, asked: list[tuple[DraftRow, int]]) -> dict[DraftRow, list[int]]:
    """Of rows of one model, the longest draft first: token by token without a look at them in between."""
    begun = [row.advance(count) for row, count in asked]
    runs, ids = [run for run, _ in begun], [token for _, some in begun for token in some]
    chosen = [_likeliest(model, mx.array(ids), runs)]
    for place in range(1, asked[0][1]):
        going = [run for run, (_, count) in zip(runs, asked, strict=True) if count > place]
        chosen.append(_likeliest(model, chosen[-1][: len(going)], [Run(run.state, 1, 1) for run in going]))
    mx.eval(chosen)
    columns = [tokens.tolist() for tokens in chosen]
    found = {}
    for number, (row, count) in enumerate(asked):
        found[row] = [column[number] for column in columns[:count]]
        row.guess(found[row][:-1])
    return found


def _likeliest(model: Phi4, tokens: mx.array, runs: list[Run]) -> mx.array:
    """(R,) what follows each run of the tokens (T,)."""
    return mx.argmax(_forward(model, tokens, runs)[0], axis=-1)


def _forward(model: Phi4, tokens: mx.array, runs: list[Run]) -> mx.array | None:
    """Logits (1, A, V) of what is asked for after the tokens (T,) of the runs."""
    model.read({None})
    return model.forward(model.model.embed_tokens(tokens)[None], runs)
