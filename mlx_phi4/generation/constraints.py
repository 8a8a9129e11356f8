"""What keeps a row's answer to a form: asked before each token which ones may follow, and told which one did."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


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
        """How many of these tokens, from the first on, could come now, one after another; changes nothing."""

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens that came."""
