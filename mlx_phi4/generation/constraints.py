"""What keeps a row's answer to a form: asked before each token which ones may follow, and told which one did."""

from typing import Protocol

import numpy as np


class Constraint(Protocol):
    """Belongs to one row. What it raises ends that row alone."""

    def allowed(self) -> np.ndarray | None:
        """(V,) booleans: which tokens may come next; None for all of them."""

    def advance(self, token: int) -> None:
        """This token came."""
