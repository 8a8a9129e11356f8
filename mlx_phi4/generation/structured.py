"""Grammars over a tokenizer's ids: compiled once, then a constraint for each row, by llguidance.

The library's table holds every id of the model's vocabulary: those that the tokenizer has no entry for write nothing
and never come. All added tokens are special: no string, pattern or text of a grammar is ever written with them. A Lark
grammar names them itself, by content or by id, ``<|tool_call|>`` or ``<[200025]>``, in rules (lower case) and not in
terminals. A grammar that begins at such a token, after any text, has a terminal in front of it::

    start: TEXT | TEXT <|tool_call|> call
    call: %json {"type": "array", "x-guidance": {...}}
    TEXT: /(.|\\n)*/

``IN_JSON`` is what belongs at "x-guidance", beside the other keywords of the schema.
"""

import json
import re
import threading
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from ..errors import Phi4Error
from ..inputs.tokenizer import Tokenizer
from .constraints import GrammarConstraint
from .grammars import Grammar
from .thoughts import CLOSE, OPEN
from .trial import TrialProcess

# between two parts of JSON: up to two spaces, or a line break and its indentation; a model that has nothing to say
# would write white space without end
IN_JSON = {"whitespace_pattern": r" {1,2}|\r?\n[ \t]{0,32}", "lenient": False, "coerce_one_of": False}
# llguidance's, where they differ from its own: less work for one mask, more properties that may be left out
LIMITS = {"step_lexer_fuel": 50_000, "max_items_in_row": 20_000, "verbose_errors": False}
KEPT_GRAMMARS = 64  # compiled, for each tokenizer
SPACE_AFTER_THOUGHTS = r"/[ \t\r\n]{1,8}/"


def library() -> Any:
    """llguidance. Raises Phi4Error where it is not installed."""
    try:
        import llguidance
        import llguidance.numpy
    except ImportError:
        raise Phi4Error('answers in a given form need llguidance: pip install "mlx_phi4[structured]"') from None
    return llguidance


class TokenTable:
    """A tokenizer as llguidance knows it: bytes of all V ids, which of them are special, and which end an answer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        llguidance = library()
        self.size = tokenizer.vocab_size
        self.stop_ids = frozenset(stop for stop in tokenizer.stop_ids if stop < self.size)
        self._tokenizer = ref(tokenizer)  # which lives longer than its table; whoever has a form of it sees to that
        self.tokens = tokenizer.all_bytes()
        self.special_token_ids = sorted(token.id for token in tokenizer.special.values())
        self.eos_token_id = min(self.stop_ids)
        self.library = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(self), n_vocab=self.size, eos_token=sorted(self.stop_ids), slices=[]
        )
        self.tokens = []  # the library has its own; without its "slices" a third of the memory, half of the time
        self._task = {
            "size": self.size,
            "specials": {token.id: token.content for token in tokenizer.special.values()},
            "stops": sorted(self.stop_ids),
            "limits": LIMITS,
        }
        self._known: OrderedDict[Grammar, GrammarConstraint | str] = OrderedDict()  # or why it cannot be used
        self._lock = threading.Lock()

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer().encode_plain(text)

    def compile(self, grammar: Grammar) -> "CompiledGrammar":
        """A grammar over this table, kept for the next time, as is what is wrong with it. Raises Phi4Error."""
        with self._lock:
            found = self._known.pop(grammar, None)
        if found is None:
            found = self._compiled(grammar)  # other grammars need not wait for it
        with self._lock:
            self._known[grammar] = found
            while len(self._known) > KEPT_GRAMMARS:
                self._known.popitem(last=False)
        if isinstance(found, str):
            raise Phi4Error(f"{grammar.name} cannot be used: {found}")
        return CompiledGrammar(grammar, self, found, self._tokenizer())

    def _compiled(self, grammar: Grammar) -> GrammarConstraint | str:
        try:
            definition = define(grammar)
        except ValueError as error:
            return _plain(str(error))
        error = _trial.error(self._task | {"definition": definition})
        if error is not None:
            return _plain(error)
        limits = library().LLParserLimits(**LIMITS)
        matcher = library().LLMatcher(self.library, definition, log_level=0, limits=limits)
        first = GrammarConstraint(matcher, self.size, self.stop_ids)
        try:
            allowed = set(np.flatnonzero(first.allowed()).tolist())  # copies find done what this computes
        except Phi4Error:
            return _plain(matcher.get_error())
        if allowed <= self.stop_ids:
            return "no text fits it"
        probe = matcher.deep_copy()
        probe.consume_token(min(allowed - self.stop_ids))
        first.takes_back = probe.rollback(1)
        return first

    def copy(self, first: GrammarConstraint, name: str, tokenizer: Tokenizer) -> GrammarConstraint:
        """A constraint where this one is."""
        with self._lock:
            return first.copy(name, tokenizer)


_tables: WeakKeyDictionary[Tokenizer, TokenTable] = WeakKeyDictionary()
_making = threading.Lock()
_trial = TrialProcess()


def token_table(tokenizer: Tokenizer) -> TokenTable:
    """The table of a tokenizer, made once. Raises Phi4Error where llguidance is missing."""
    with _making:
        if tokenizer not in _tables:
            _tables[tokenizer] = TokenTable(tokenizer)
        return _tables[tokenizer]


def compiled(grammar: Grammar, tokenizer: Tokenizer) -> "CompiledGrammar":
    """A grammar over a tokenizer's ids; both the table and the grammar are kept. From any thread.

    Raises Phi4Error: llguidance is missing, or the grammar cannot be used.
    """
    return token_table(tokenizer).compile(grammar)


def check(grammar: Grammar) -> None:
    """Refuse a grammar that cannot be used, before there is a tokenizer. Raises Phi4Error."""
    library()
    task = {"size": 512, "specials": {0: "<|end|>"}, "stops": [0], "limits": LIMITS}
    try:
        error = _trial.error(task | {"definition": define(grammar)})
    except ValueError as raised:
        error = str(raised)
    if error is not None:
        raise Phi4Error(f"{grammar.name} cannot be used: {_plain(error)}")


class CompiledGrammar:
    """A grammar over a tokenizer's ids, from which every row gets a constraint of its own. From any thread."""

    def __init__(self, grammar: Grammar, table: TokenTable, first: GrammarConstraint, tokenizer: Tokenizer):
        self.grammar, self.table = grammar, table
        self._first, self._tokenizer = first, tokenizer

    def constraint(self) -> GrammarConstraint:
        """A constraint at the grammar's beginning."""
        return self.table.copy(self._first, self.grammar.name, self._tokenizer)


def define(grammar: Grammar) -> str:
    """A grammar as llguidance takes it. Raises ValueError."""
    if grammar.kind == "json_schema":
        forms = [{"json_schema": json.loads(grammar.text) | {"x-guidance": IN_JSON}}]
    elif grammar.kind == "regex":
        forms = json.loads(library().LLMatcher.grammar_from_regex(grammar.text))["grammars"][:1]
    elif grammar.kind == "grammars":
        forms = json.loads(grammar.text)["grammars"]
    else:
        forms = [{"lark_grammar": grammar.text}]
    if not grammar.thoughts:
        return json.dumps({"grammars": forms})
    lines = (
        "start: (thought SPACE?)? answer",
        f"thought[lazy]: THOUGHT {json.dumps(CLOSE)}",
        f"THOUGHT: {json.dumps(OPEN)} /(.|\\n)*/",
        f"SPACE: {SPACE_AFTER_THOUGHTS}",
        "answer: @answer",
    )
    first, *rest = forms
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(lines)}, first | {"name": "answer"}, *rest]})


TOLD = (
    (r"Unimplemented keys: \[(.*)\]", r"the keyword \1 is not supported"),
    (r"oneOf constraints are not.*", "oneOf is supported only where its parts exclude each other; anyOf may be meant"),
    (r"Resource '(.*?)' is not present.*", r'"$ref": "\1" leads out of the schema'),
    (r"Pointer '(.*?)' does not exist", r'"$ref": "#\1" leads nowhere'),
    (r"(?s).*regex parse error:\n\s*(.*?)\n[ ^]+\nerror: ([^\n]*).*", r"the pattern \1: \2"),
    (r"(?s)NoExtension.*|Unsatisfiable schema: Regex is empty.*", "no text fits it"),
    (r"(?s)panic.*|.* too (big|large).*", "it is too large"),
)  # what the library says: what is told instead


def _plain(reason: str) -> str:
    """What the library says, without its state and in words that mean something to who wrote a schema."""
    for pattern, told in TOLD:
        if found := re.fullmatch(pattern, reason.split("\n<")[0].strip()):
            return found.expand(told)
    return reason.strip().split("\n")[0]
