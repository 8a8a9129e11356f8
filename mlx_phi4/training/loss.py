"""Cross entropy over a large vocabulary, whose logits are never held for all tokens at once.

The output layer is frozen, and a token's loss depends on its own hidden state alone. So its derivative is made
together with it, while the logits of a few tokens are there, and both passes cost what one product each costs.
"""

from collections.abc import Callable

import mlx.core as mx

LOGITS = 1 << 25  # of a piece: 128 MB in float32

Head = Callable[[mx.array], mx.array]  # hidden states (n, D) -> logits (n, V)


def token_losses(head: Head, h: mx.array, targets: mx.array, vocabulary: int) -> mx.array:
    """Cross entropy (A,) float32 of targets (A,) at hidden states h (A, D)."""
    parts = [_losses(head(piece), wanted)[0] for piece, wanted in _pieces(h, targets, vocabulary)]
    return mx.concatenate(parts)


def trained_token_losses(head: Head, h: mx.array, targets: mx.array, vocabulary: int) -> mx.array:
    """As ``token_losses``, with a gradient for h and none for the head."""

    @mx.custom_function
    def losses_and_slopes(h, targets):
        losses, slopes, before = [], [], None
        for piece, wanted in _pieces(h, targets, vocabulary):
            if before is not None:  # one after the other: no two pieces' logits at once
                piece = mx.depends(piece, before)
            logits = head(piece)
            loss, slope = _losses(logits, wanted, slope=True)
            _, (slope,) = mx.vjp(head, (piece,), (slope.astype(logits.dtype),))
            losses.append(loss)
            slopes.append(slope)
            before = [loss, slope]
        return mx.concatenate(losses), mx.concatenate(slopes)

    @losses_and_slopes.vjp
    def chain(primals, cotangents, outputs):
        slopes = outputs[1]
        return (cotangents[0][:, None] * slopes).astype(primals[0].dtype), mx.zeros_like(primals[1])

    return losses_and_slopes(h, targets)[0]


def _pieces(h: mx.array, targets: mx.array, vocabulary: int):
    size = max(LOGITS // vocabulary, 1)
    for start in range(0, len(targets), size):
        yield h[start : start + size], targets[start : start + size]


def _losses(logits: mx.array, targets: mx.array, slope: bool = False) -> tuple[mx.array, mx.array | None]:
    """Cross entropy (n,) of logits (n, V), float32, and its derivative (n, V): probabilities less one at the target."""
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    losses = (total - mx.take_along_axis(logits, targets[:, None], axis=-1))[:, 0]
    if not slope:
        return losses, None
    probabilities = mx.exp(logits - total)
    one = mx.take_along_axis(probabilities, targets[:, None], axis=-1) - 1
    return losses, mx.put_along_axis(probabilities, targets[:, None], one, axis=-1)
