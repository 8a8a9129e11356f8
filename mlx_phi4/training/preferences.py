"""Direct preference optimization (arXiv 2305.18290) over an adapter.

The reference policy is the same row without the adapter: the base is in memory anyway, so there is no second model.
"""

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from ..device import exclusive
from .examples import Example
from .loss import token_losses
from .packing import Pack, Parameters, make_pack
from .step import Learner, Sums


class PreferenceLearner(Learner):
    """Losses and gradients of pairs: ``-log sigmoid(beta * (chosen - rejected))``, each the log-probability that an
    answer gained over the reference.

    What the reference says of a row is computed once.
    """

    counts_tokens = False
    beta = 0.1

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self._reference: dict[tuple[str, tuple[int, ...]], float] = {}

    def gradients(self, parameters: Parameters, examples: Sequence[Example]) -> Sums:
        """As of ``Learner``; ``count`` counts pairs."""
        self._refer(examples)
        return super().gradients(parameters, examples)

    def losses(self, parameters: Parameters, examples: Sequence[Example]) -> Sums:
        """As of ``Learner``; ``count`` counts pairs."""
        self._refer(examples)
        return super().losses(parameters, examples)

    def _refer(self, examples: Sequence[Example]) -> None:
        """Have the reference's log-probabilities of these rows."""
        new = [each for each in examples if _key(each) not in self._reference]
        if not new:
            return
        bare = [replace(each, row=replace(each.row, adapter=None)) for each in new]
        with exclusive():
            pack = make_pack(bare)
            self.model.read({None})
            gathered = [self.media.gathered(each) for each in pack.examples]
            sums = _row_sums(self._token_losses({}, pack, gathered, token_losses), pack)
            for each, total in zip(pack.examples, sums.tolist(), strict=True):
                self._reference[_key(each)] = -total

    def _objective(self, losses: mx.array, pack: Pack) -> mx.array:
        gains = -_row_sums(losses, pack) - mx.array([self._reference[_key(each)] for each in pack.examples])
        chosen: dict[tuple[str, int], int] = {}
        rejected: dict[tuple[str, int], int] = {}
        for place, each in enumerate(pack.examples):
            pair = each.line.where, each.pair
            (rejected if pair in chosen else chosen)[pair] = place
        margins = gains[mx.array(list(chosen.values()))] - gains[mx.array([rejected[pair] for pair in chosen])]
        return -nn.log_sigmoid(self.beta * margins).sum()

    def _count(self, pack: Pack) -> int:
        return len(pack.examples) // 2


def _row_sums(losses: mx.array, pack: Pack) -> mx.array:
    """The losses (A,) of each row's tokens together (N,)."""
    return mx.zeros((len(pack.examples),), losses.dtype).at[pack.rows].add(losses)


def _key(example: Example) -> tuple[str, tuple[int, ...]]:
    return example.line.where, example.row.ids
