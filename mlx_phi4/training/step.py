"""One step of learning, in parts that add up: gradient sums, loss sum and token count of batches, then an update.

Sums of several batches, or of several machines, are added before anything is divided, so each token weighs the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten

from ..device import exclusive
from ..model import Phi4
from .examples import Example
from .features import Media
from .loss import token_losses, trained_token_losses
from .packing import LAYERS, Pack, Parameters, hidden_states, make_pack
from .parts import Parts, place

# (losses of targets (A,), the pack) -> the sum that is made small, and what it is the sum of: tokens, or pairs
Objective = Callable[[mx.array, Pack], mx.array]


@dataclass
class Sums:
    """Of some batches: the loss, what it counts (tokens), input tokens, and gradients by path."""

    loss: mx.array | float = 0.0
    count: int = 0
    tokens: int = 0
    gradients: Parameters = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        gradients = self.gradients or other.gradients
        if self.gradients and other.gradients:
            gradients = {name: array + other.gradients[name] for name, array in self.gradients.items()}
        return Sums(self.loss + other.loss, self.count + other.count, self.tokens + other.tokens, gradients)

    @property
    def mean(self) -> float:
        """The loss of one token."""
        loss = self.loss.item() if isinstance(self.loss, mx.array) else self.loss
        return loss / self.count


class Learner:
    """Losses and gradients of examples for what is trained in a model.

    Args:
        checkpoint: keep less for the backward pass and compute it again.
    """

    counts_tokens = True  # of which the loss is a sum

    def __init__(self, model: Phi4, media: Media, parts: Parts, *, checkpoint: bool = False):
        self.model, self.media, self.parts, self.checkpoint = model, media, parts, checkpoint
        self._vocabulary = model.config.decoder.vocab_size
        compute, own = model.model.norm.weight.dtype, dict(tree_flatten(model.parameters()))
        self._dtypes = {name: _dtype(name, own[name].dtype, compute) for name in parts.names}

    def gradients(self, parameters: Parameters, examples: Sequence[Example]) -> Sums:
        """Sums for a batch, computed."""
        with exclusive():
            pack = make_pack(examples)
            self.model.read({None, *(each.row.adapter for each in pack.examples)})
            gathered = [self.media.gathered(each) for each in pack.examples]

            def loss(trained: Parameters) -> mx.array:
                return self._objective(self._token_losses(trained, pack, gathered, trained_token_losses), pack)

            total, gradients = mx.value_and_grad(loss)(parameters)
            place(self.model, self.cast(parameters))  # in place of what the gradient left there
            mx.eval(total, gradients)
            return Sums(total, self._count(pack), pack.tokens, gradients)

    def losses(self, parameters: Parameters, examples: Sequence[Example]) -> Sums:
        """As ``gradients``, without them."""
        with exclusive():
            pack = make_pack(examples)
            self.model.read({None, *(each.row.adapter for each in pack.examples)})
            gathered = [self.media.gathered(each) for each in pack.examples]
            total = self._objective(self._token_losses(parameters, pack, gathered, token_losses), pack)
            mx.eval(total)
            return Sums(total, self._count(pack), pack.tokens)

    def cast(self, parameters: Parameters) -> Parameters:
        """Trained parameters in the types that the model computes with."""
        return {name: array.astype(self._dtypes[name]) for name, array in parameters.items()}

    def _token_losses(self, parameters: Parameters, pack: Pack, gathered: Sequence, losses: Callable) -> mx.array:
        used = self.cast(parameters)
        layers = {name: array for name, array in used.items() if name.startswith(LAYERS)}
        place(self.model, {name: array for name, array in used.items() if name not in layers})
        media = [self.media.embedded(*each) for each in zip(pack.examples, gathered, strict=True)]
        h = hidden_states(self.model, pack, media, layers, checkpoint=self.checkpoint)
        return losses(lambda some: self.model.logits(some[None])[0], h, pack.targets, self._vocabulary)

    def _objective(self, losses: mx.array, pack: Pack) -> mx.array:
        return losses.sum()

    def _count(self, pack: Pack) -> int:
        return len(pack.targets)


def _dtype(name: str, own: mx.Dtype, compute: mx.Dtype) -> mx.Dtype:
    """A module keeps its type, an adapter gets the decoder's, DoRA's magnitude stays float32."""
    if not name.startswith(LAYERS):
        return own
    return mx.float32 if name.endswith(".magnitude") else compute


class Updater:
    """AdamW in float32, with gradients clipped by their norm.

    Args:
        rate: update, counted from 0 -> learning rate.
        max_norm: of the gradient of the mean loss; 0 for no limit.
    """

    def __init__(self, parameters: Parameters, rate: Callable[[int], float], weight_decay: float, max_norm: float):
        self.rate, self.max_norm = rate, max_norm
        self.updates = 0
        self._optimizer = optimizers.AdamW(rate(0), weight_decay=weight_decay, bias_correction=True)
        self._optimizer.init(parameters)

    def update(self, parameters: Parameters, sums: Sums) -> tuple[Parameters, float]:
        """The parameters after one step along the sums' mean gradient, and the norm that it had; both computed."""
        with exclusive():
            gradients = {name: array / sums.count for name, array in sums.gradients.items()}
            if self.max_norm:
                gradients, norm = optimizers.clip_grad_norm(gradients, self.max_norm)
            else:
                norm = mx.sqrt(sum(array.square().sum() for array in gradients.values()))
            self._optimizer.learning_rate = self.rate(self.updates)
            parameters = self._optimizer.apply_gradients(gradients, parameters)
            mx.eval(parameters, self._optimizer.state, norm)
            self.updates += 1
            return parameters, norm.item()

    def state(self) -> Parameters:
        """The optimizer's arrays by name."""
        own = self._optimizer.state
        held = {f"{name}/{part}": a for name, each in own.items() if isinstance(each, dict) for part, a in each.items()}
        return held | {"step": own["step"]}

    def restore(self, arrays: Parameters, updates: int) -> None:
        """Go on from a state."""
        for name, array in arrays.items():
            holder, _, part = name.rpartition("/")
            (self._optimizer.state[holder] if holder else self._optimizer.state)[part] = array
        self.updates = updates
