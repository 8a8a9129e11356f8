"""Modes, the routing table and the routed linear layer: a mixture of LoRAs, never merged.

Report section 2.2: each modality brings one LoRA on the four linears of every decoder layer, the
base stays frozen, and text alone uses the base as it is.
"""

from dataclasses import dataclass
from enum import Enum

import mlx.core as mx
import mlx.nn as nn

from ..config import LoRAConfig


class Mode(str, Enum):
    """What a request holds besides text; it decides the route."""

    TEXT = "text"
    VISION = "vision"
    SPEECH = "speech"
    VISION_SPEECH = "vision-speech"

    def __str__(self):
        return self.value

    @classmethod
    def of(cls, pictures: int, clips: int) -> "Mode":
        """The mode of a request with so many pictures and clips."""
        if pictures:
            return cls.VISION_SPEECH if clips else cls.VISION
        return cls.SPEECH if clips else cls.TEXT


# Mode -> (adapter in the decoder, audio projector). Never two adapters at once.
ROUTES: dict[Mode, tuple[str | None, str | None]] = {
    Mode.TEXT: (None, None),
    Mode.VISION: ("vision", None),
    Mode.SPEECH: ("speech", "speech"),
    Mode.VISION_SPEECH: ("vision", "vision"),
}


@dataclass(frozen=True)
class Route:
    """Which rows of a batch pass through which adapter, made once on the host.

    ``groups`` holds pairs (adapter, rows); rows None means every row. Text rows are in no group.
    """

    groups: tuple[tuple[str, mx.array | None], ...] = ()

    @classmethod
    def of(cls, modes: tuple[Mode, ...]) -> "Route":
        """The route of a batch whose row i has ``modes[i]``."""
        by_adapter: dict[str, list[int]] = {}
        for row, mode in enumerate(modes):
            adapter = ROUTES[mode][0]
            if adapter is not None:
                by_adapter.setdefault(adapter, []).append(row)
        return cls(
            tuple(
                (adapter, None if len(rows) == len(modes) else mx.array(rows)) for adapter, rows in by_adapter.items()
            )
        )


class LoRA(nn.Module):
    """``alpha / rank * up(down(x))``."""

    def __init__(self, input_dims: int, output_dims: int, config: LoRAConfig):
        super().__init__()
        self.down = nn.Linear(input_dims, config.rank, bias=False)
        self.up = nn.Linear(config.rank, output_dims, bias=False)
        self._scale = config.scale

    def __call__(self, x: mx.array) -> mx.array:
        return self._scale * self.up(self.down(x))


class RoutedLinear(nn.Module):
    """A frozen base layer (Linear or QuantizedLinear) and the adapters that rows may add to it."""

    def __init__(self, input_dims: int, output_dims: int, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.base = nn.Linear(input_dims, output_dims, bias=False)
        self.lora = {name: LoRA(input_dims, output_dims, lora) for name, lora in adapters.items()}

    def __call__(self, x: mx.array, route: Route) -> mx.array:
        """x (B, L, input_dims) -> (B, L, output_dims)."""
        y = self.base(x)
        for name, rows in route.groups:
            lora = self.lora[name]
            y = y + lora(x) if rows is None else y.at[rows].add(lora(x[rows]))
        return y
