"""Several adapters' parts in one: sums for composed adapters, stacks for projections that were trained apart."""

import math
from collections.abc import Sequence

import mlx.core as mx

from .adapters import LinearAdapter


def summed(parts: Sequence[LinearAdapter]) -> LinearAdapter:
    """One part that adds what all of these LoRAs add, of concatenated rank.

    ``s1 up1 down1 + s2 up2 down2 = s [up1, s2/s1 up2] [down1; down2]``: exact where the scales' ratio is a power of
    two, else rounded once, in float32.
    """
    scale, ups = _at_one_scale(parts)
    return LinearAdapter(mx.concatenate([part.down for part in parts]), mx.concatenate(ups, axis=1), scale)


def stacked(parts: Sequence[LinearAdapter | None], rows: Sequence[int]) -> LinearAdapter:
    """One part for a fused linear from those of its projections, None for one that has none.

    ``down`` are theirs above one another, ``up`` a block diagonal; scales as in ``summed``. Of DoRA the magnitudes
    stand one behind the other, NaN where there is none. ``rows`` are the projections' output_dims.
    """
    known = [part for part in parts if part is not None]
    scale, ups = _at_one_scale(known)
    rank, blocks, position, remaining = sum(part.rank for part in known), [], 0, iter(ups)
    for part, count in zip(parts, rows, strict=True):
        if part is None:
            blocks.append(mx.zeros((count, rank), ups[0].dtype))
            continue
        blocks.append(mx.pad(next(remaining), [(0, 0), (position, rank - position - part.rank)]))
        position += part.rank
    magnitude = None
    if any(part.magnitude is not None for part in known):
        held = [None if part is None else part.magnitude for part in parts]
        magnitude = mx.concatenate(
            [mx.full((n,), math.nan) if m is None else m for m, n in zip(held, rows, strict=True)]
        )
    return LinearAdapter(mx.concatenate([part.down for part in known]), mx.concatenate(blocks), scale, magnitude)


def _at_one_scale(parts: Sequence[LinearAdapter]) -> tuple[float, list[mx.array]]:
    """A scale for all, and their ``up`` as it is with this scale."""
    scale, ups = parts[0].scale, []
    for part in parts:
        ratio = part.scale / scale
        exact = math.frexp(ratio)[0] == 0.5
        ups.append(part.up if ratio == 1.0 else (part.up if exact else part.up.astype(mx.float32)) * ratio)
    return scale, ups
