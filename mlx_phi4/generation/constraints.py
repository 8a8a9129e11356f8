"""What keeps a row's answer to a form: asked before each token which ones may follow, and told which one did."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import Phi4Error


class Constraint(Protocol):
    """Belongs to one row. What it raises ends that row alone.

    End tokens are tokens like any other here: they may come only where the answer is complete, and once nothing else
    can follow, they alone may come. ``accepts`` and ``rollback`` are asked of rows with a draft only.
    """

    def allowed(self) -> np.ndarray | None:
        """(V,) booleans: which tokens may come next; None for all of them."""

    def advance(self, token: int) -> None:
        """This token came. Raises Phi4Error for one that was not allowed."""

    def accepts(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, could come now, one after another; changes nothing.

        0 where they could not be taken back.
        """

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens that came."""


SECONDS_A_MASK = 0.02  # on average: other rows wait for it; what people write takes a hundredth of that
SPARE_SECONDS = 2.0  # that a row may take beyond


class GrammarConstraint:
    """Where a row's answer stands in its grammar.

    Args:
        matcher: llguidance's ``LLMatcher`` at the answer's beginning; this constraint's own.
        size: V, token ids of the model.
        stop_ids: the end tokens.
        name: what messages call the grammar.
        tokenizer: whom the library asks how a text is written, as long as this constraint lives.
    """

    takes_back = True  # a few lexemes of Lark grammars cannot be left again: no draft is accepted there

    def __init__(self, matcher: Any, size: int, stop_ids: frozenset[int], name: str = "grammar", tokenizer: Any = None):
        self._matcher, self._size, self._stop_ids = matcher, size, stop_ids
        self._name, self._tokenizer = name, tokenizer
        self._seconds = 0.0  # of one processor for masks, beyond what they may take
        self._ends = 0  # end tokens that came: once a grammar cannot go on the library takes no account of them
        self._bits = np.zeros((1, (size + 31) // 32), np.int32)

    def copy(self, name: str, tokenizer: Any) -> "GrammarConstraint":
        """Another one at the same place of the same grammar."""
        made = GrammarConstraint(self._matcher.deep_copy(), self._size, self._stop_ids, name, tokenizer)
        made.takes_back, made._ends = self.takes_back, self._ends
        return made

    def allowed(self) -> np.ndarray:
        """(V,) booleans. Raises Phi4Error where the library gives up."""
        if self._ends:
            found = np.zeros(self._size, bool)
            found[list(self._stop_ids)] = True
            return found
        from llguidance.numpy import fill_next_token_bitmask

        began = time.thread_time()
        fill_next_token_bitmask(self._matcher, self._bits)
        self._seconds += time.thread_time() - began - SECONDS_A_MASK
        self._check()
        if self._seconds > SPARE_SECONDS:
            raise Phi4Error(f"{self._name} takes more than {SECONDS_A_MASK * 1000:g} ms a token")
        return np.unpackbits(self._bits.view(np.uint8)[0], count=self._size, bitorder="little").view(bool)

    def advance(self, token: int) -> None:
        """See ``Constraint``."""
        if token in self._stop_ids and (self._ends or self._matcher.is_accepting()):
            self._ends += 1
        elif self._ends or not self._matcher.consume_token(token):
            raise Phi4Error(f"token {token} does not fit {self._name}{self._reason()}")

    def accepts(self, tokens: Sequence[int]) -> int:
        """See ``Constraint``."""
        if not self.takes_back:
            return 0
        end = next((i for i, token in enumerate(tokens) if token in self._stop_ids), len(tokens))
        text = list(tokens[:end])
        if text and (self._ends or (count := self._matcher.validate_tokens(text)) < end):
            self._check()
            return 0 if self._ends else count
        if end == len(tokens):
            return end
        # whether it may end there is only known there
        self._matcher.consume_tokens(text)
        complete = self._ends or self._matcher.is_accepting()
        self._matcher.rollback(end)
        self._check()
        ends = next((i for i, token in enumerate(tokens[end:]) if token not in self._stop_ids), len(tokens) - end)
        return end + ends if complete else end

    def rollback(self, count: int) -> None:
        """See ``Constraint``."""
        ends = min(count, self._ends)
        self._ends -= ends
        if count > ends and not self._matcher.rollback(count - ends):
            raise Phi4Error(f"{count} tokens cannot be taken back from {self._name}{self._reason()}")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise Phi4Error(f"{self._name} cannot be followed any further{self._reason()}")

    def _reason(self) -> str:
        error = self._matcher.get_error().split("\n<")[0]  # what follows is the library's state
        return f": {error}" if error else ""
