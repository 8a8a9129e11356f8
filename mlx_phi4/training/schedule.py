"""Learning rates: a rise from zero, then constant, or down to zero in half a wave or in a line."""

import math
from collections.abc import Callable
from typing import Any

from ..errors import Phi4Error

SCHEDULES = ("constant", "cosine", "linear")


def make_schedule(kind: str | dict, peak: float, updates: int, warmup: int) -> Callable[[int], float]:
    """Update, counted from 0 -> learning rate.

    Args:
        kind: one of ``SCHEDULES``, or a table as mlx_lm.lora's configurations have it: name and arguments of one of
            MLX's schedules, and perhaps warmup and warmup_init.
        peak: the highest rate; a table has its own.
        updates: of the whole run.
        warmup: updates in which it rises.

    Raises:
        Phi4Error: a table that names no schedule.
    """
    if isinstance(kind, dict):
        return _from_table(kind)

    def rate(update: int) -> float:
        if update < warmup:
            return peak * (update + 1) / (warmup + 1)
        share = (update - warmup) / max(updates - warmup, 1)
        fall = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share}[kind]
        return peak * fall

    return rate


def _from_table(table: dict[str, Any]) -> Callable[[int], float]:
    import mlx.core as mx
    from mlx_lm.tuner.utils import build_schedule

    try:
        schedule = build_schedule(table)
        schedule(mx.array(0))
    except Exception as error:  # whatever a table of another shape leads to
        raise Phi4Error(f"lr_schedule is {table!r:.120}, which is no schedule of mlx_lm's: {error}") from None

    def rate(update: int) -> float:
        value = schedule(mx.array(update))
        return value.item() if isinstance(value, mx.array) else float(value)

    return rate
