"""Rows of a batch laid end to end, without padding, through the decoder without caches.

It is the way of inference: linears see all tokens once, attention goes row by row, each row passes its own adapter and
turns by its own RoPE table. A row gets the logits that it gets alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..decoder.state import Run, Step
from ..model import Phi4
from .examples import Example

Parameters = dict[str, mx.array]  # by path in the model
LAYERS = "model.layers."


@dataclass(frozen=True)
class Pack:
    """Examples of a batch in the order in which they are computed: those of one adapter next to each other.

    Args:
        examples: the rows.
        targets: all their target tokens (A,).
        asked: where among the computed hidden states those that predict them stand (A,).
        rows: which example a target belongs to (A,).
    """

    examples: tuple[Example, ...]
    targets: mx.array
    asked: mx.array
    rows: mx.array

    @property
    def tokens(self) -> int:
        """Tokens that go in."""
        return sum(each.length for each in self.examples)


def make_pack(examples: Sequence[Example]) -> Pack:
    """Lay examples end to end."""
    ordered = tuple(sorted(examples, key=lambda each: each.row.adapter or ""))
    asked, begun = [], 0
    for each in ordered:
        first = int(each.positions[0])  # the last layer begins here
        asked.append(begun + each.positions - first)
        begun += each.length - first
    rows = np.repeat(np.arange(len(ordered)), [len(each.targets) for each in ordered])
    targets = np.concatenate([each.targets for each in ordered])
    return Pack(ordered, mx.array(targets), mx.array(np.concatenate(asked)), mx.array(rows))


def hidden_states(
    model: Phi4,
    pack: Pack,
    media: Sequence[Sequence[tuple[int, mx.array]]],
    parameters: Parameters | None = None,
    *,
    checkpoint: bool = False,
) -> mx.array:
    """The last layer's states (A, D) that predict the pack's targets, normalized.

    Args:
        media: of each example, embeddings (tokens, D) of its media by the token that they begin at.
        parameters: arrays that take the place of the model's own; those of layers are looked for here.
        checkpoint: keep only the layers' inputs for the backward pass, and compute the rest again.
    """
    h = _embedded(model, pack, media)
    runs = []
    for each in pack.examples:
        state = model.new_state(each.row)
        runs.append(Run(state, each.length, each.length - int(each.positions[0])))
    decoder = model.model
    step = Step(runs, decoder._rope, h.dtype, model.adapters.composed)
    nothing = [None] * len(runs)
    for index, layer in enumerate(decoder.layers):
        own = _of_layer(parameters or {}, index)
        h = _layer(layer, step, nothing, index == len(decoder.layers) - 1, bool(own) or checkpoint, checkpoint)(own, h)
    return decoder.norm(h)[0][pack.asked]


def _layer(layer: nn.Module, step: Step, caches: list, last: bool, update: bool, checkpoint: bool) -> Callable:
    """A layer as a function of what is trained in it and of its input."""

    def call(own: Parameters, h: mx.array) -> mx.array:
        if own:
            layer.update(tree_unflatten(list(own.items())))
        return layer(h, step, caches, last)

    return mx.checkpoint(call) if checkpoint else call


def _of_layer(parameters: Parameters, index: int) -> Parameters:
    beginning = f"{LAYERS}{index}."
    return {name.removeprefix(beginning): a for name, a in parameters.items() if name.startswith(beginning)}


def _embedded(model: Phi4, pack: Pack, media) -> mx.array:
    """Embeddings (1, T, D) of all rows, media in their places."""
    ids = np.concatenate([np.asarray(each.row.ids, np.int32) for each in pack.examples])
    text = model.model.embed_tokens(mx.array(ids))
    parts, begun, done = [], 0, 0
    for each, held in zip(pack.examples, media, strict=True):
        for first, embeddings in held:
            start = begun + first
            parts += [text[done:start], embeddings[: each.length - first].astype(text.dtype)]
            done = min(start + len(embeddings), begun + each.length)
        begun += each.length
    if not parts:
        return text[None]
    return mx.concatenate([part for part in [*parts, text[done:]] if len(part)])[None]


def flat(parameters: nn.Module) -> Parameters:
    """A module's parameters by path."""
    return dict(tree_flatten(parameters.parameters()))
