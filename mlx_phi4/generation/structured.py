"""Grammars over a tokenizer's ids: compiled once, then a constraint for each row, by llguidance.

The library's table holds every id of the model's vocabulary: those that the tokenizer has no entry for write nothing
and never come. All added tokens are special: no string, pattern or text of a grammar is ever written with them. A Lark
grammar names them itself, by their content or by their id, ``<|tool_call|>`` or ``<[200025]>``, in rules (lower case),
not in terminals. Text that goes on until such a token is a terminal in front of it, for example calls after any text::

    start: TEXT | TEXT <|tool_call|> %json {"type": "array", ...} <|/tool_call|>
    TEXT: /(.|\\n)*/
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import Phi4Error
from ..inputs.tokenizer import Tokenizer
from .grammars import WHITE_SPACE_IN_JSON, Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT_GRAMMARS = 64  # compiled, for each tokenizer
_lock = threading.Lock()
_tables: WeakKeyDictionary[Tokenizer, "TokenTable"] = WeakKeyDictionary()


def library():
    """llguidance. Raises Phi4Error where it is not installed."""
    try:
        import llguidance
        import llguidance.numpy
    except ImportError:
        raise Phi4Error('answers in a given form need llguidance: pip install "mlx_phi4[structured]"') from None
    return llguidance


class TokenTable:
    """A tokenizer as llguidance knows it: bytes of all V ids, which of them are special, and which end an answer."""

    def __init__(self, tokenizer: Tokenizer):
        llguidance = library()
        self.size = tokenizer.vocab_size
        self.stop_ids = frozenset(stop for stop in tokenizer.stop_ids if stop < self.size)
        self.stops = np.zeros(self.size, bool)
        self.stops[list(self.stop_ids)] = True
        wrapped = llguidance.TokenizerWrapper(_Encoder(tokenizer, self.stop_ids))
        self.tokenizer: LLTokenizer = llguidance.LLTokenizer(
            wrapped, n_vocab=self.size, eos_token=sorted(self.stop_ids)
        )
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def compiled(self, grammar: Grammar) -> "CompiledGrammar":
        """A grammar over this table, kept for the next time. Raises Phi4Error."""
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found
        made = CompiledGrammar(grammar, self)  # other grammars need not wait for it
        with self._lock:
            self._compiled[grammar] = made
            while len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        return made


class _Encoder:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]):
        self._encode = tokenizer.encode_plain
        self.tokens = tokenizer.all_bytes()
        self.special_token_ids = sorted(token.id for token in tokenizer.special.values())
        self.eos_token_id = min(stop_ids)

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class CompiledGrammar:
    """A grammar over a tokenizer's ids, from which every row gets a constraint of its own."""

    def __init__(self, grammar: Grammar, table: TokenTable):
        llguidance = library()
        self.grammar, self.table = grammar, table
        self._lock = threading.Lock()
        self._first = llguidance.LLMatcher(table.tokenizer, definition(grammar), log_level=0)
        if self._first.is_error():
            raise Phi4Error(f"{grammar.name} cannot be used: {self._first.get_error()}")
        begun = GrammarConstraint(self._first, table, grammar.name)  # the copies find what it computes done
        if not (begun.allowed() & ~table.stops).any():
            raise Phi4Error(f"{grammar.name} cannot be used: no text fits it")

    def constraint(self) -> "GrammarConstraint":
        """A constraint at the grammar's beginning."""
        with self._lock:
            return GrammarConstraint(self._first.deep_copy(), self.table, self.grammar.name)


def definition(grammar: Grammar) -> str:
    """A grammar as the library has it: JSON of a list of grammars, of which the first is meant."""
    if grammar.kind == "grammars":
        return grammar.text
    if grammar.kind == "lark":
        return json.dumps({"grammars": [{"lark_grammar": grammar.text}]})
    matcher = library().LLMatcher
    if grammar.kind == "regex":
        return matcher.grammar_from_regex(grammar.text)
    return matcher.grammar_from_json_schema(
        grammar.text, overrides={"whitespace_pattern": WHITE_SPACE_IN_JSON, "lenient": False}
    )


class GrammarConstraint:
    """Where a row's answer stands in its grammar; see ``Constraint``."""

    def __init__(self, matcher: "LLMatcher", table: TokenTable, name: str):
        self._matcher, self._table, self._name = matcher, table, name
        self._ends = 0  # end tokens that came, of which the library takes no account
        self._bits = np.zeros((1, (table.size + 31) // 32), np.int32)

    def allowed(self) -> np.ndarray:
        """(V,) booleans. Raises Phi4Error where the library gives up."""
        if self._ends:
            return self._table.stops
        library().numpy.fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8)[0], count=self._table.size, bitorder="little")
        return bits.view(bool)

    def advance(self, token: int) -> None:
        """See ``Constraint``."""
        if token in self._table.stop_ids and (self._ends or self._matcher.is_accepting()):
            self._ends += 1
            return
        if self._ends or not self._matcher.consume_token(token):
            raise Phi4Error(f"{self._name}: token {token} does not fit{self._reason()}")

    def accepts(self, tokens: Sequence[int]) -> int:
        """See ``Constraint``."""
        tokens = list(tokens)
        end = next((i for i, token in enumerate(tokens) if token in self._table.stop_ids), len(tokens))
        if self._ends:
            end = 0
        count = self._matcher.validate_tokens(tokens[:end]) if end else 0
        if count < end:
            return count
        if end < len(tokens):
            if end:
                self._matcher.consume_tokens(tokens[:end])
            complete = bool(self._ends) or self._matcher.is_accepting()
            if end:
                self._matcher.rollback(end)
            while complete and count < len(tokens) and tokens[count] in self._table.stop_ids:
                count += 1
        self._check()
        return count

    def rollback(self, count: int) -> None:
        """See ``Constraint``."""
        ends = min(count, self._ends)
        self._ends -= ends
        if count > ends and not self._matcher.rollback(count - ends):
            raise Phi4Error(f"{self._name}: {count} tokens cannot be taken back{self._reason()}")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise Phi4Error(f"{self._name} cannot be followed any further{self._reason()}")

    def _reason(self) -> str:
        error = self._matcher.get_error().split("\n<")[0]  # what follows is the library's state
        return f": {error}" if error else ""


def compiled(grammar: Grammar, tokenizer: Tokenizer) -> CompiledGrammar:
    """A grammar over a tokenizer's ids; both the table and the grammar are kept. From any thread.

    Raises Phi4Error: llguidance is missing, or the grammar cannot be used.
    """
    with _lock:
        table = _tables.get(tokenizer)
        if table is None:
            table = _tables[tokenizer] = TokenTable(tokenizer)
    return table.compiled(grammar)
