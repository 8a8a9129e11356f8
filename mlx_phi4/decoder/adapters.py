"""The routed linear layer: a frozen base and the adapters that rows may add to it, never merged.

Report section 2.2: each modality brings one LoRA on the four linears of every decoder layer, the base stays frozen,
and text alone uses the base as it is.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..config import LoRAConfig


@dataclass(frozen=True)
class Route:
    """Which contiguous slice of a step's T tokens passes which adapter, made once on the host.

    ``slices`` holds triples (adapter, first token, token after the last). Tokens in no slice pass the base alone;
    ``length`` is T.
    """

    length: int
    slices: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, runs: list[tuple[str | None, int]]) -> "Route":
        """The route of runs of tokens, (adapter, tokens) each; neighbours of one adapter join."""
        slices: list[tuple[str, int, int]] = []
        position = 0
        for adapter, count in runs:
            stop = position + count
            if adapter is not None and count:
                if slices and slices[-1][0] == adapter and slices[-1][2] == position:
                    slices[-1] = (adapter, slices[-1][1], stop)
                else:
                    slices.append((adapter, position, stop))
            position = stop
        return cls(position, tuple(slices))


class LoRA(nn.Module):
    """``alpha / rank * up(down(x))``; a factor that is a power of two is part of ``up``, see ``fold_scale``."""

    def __init__(self, input_dims: int, output_dims: int, config: LoRAConfig):
        super().__init__()
        self.down = nn.Linear(input_dims, config.rank, bias=False)
        self.up = nn.Linear(config.rank, output_dims, bias=False)
        self._scale = config.scale

    def fold_scale(self) -> None:
        """Multiply ``up`` by the factor, where that changes no bit of the product: one kernel less a linear."""
        if math.frexp(self._scale)[0] != 0.5:
            return
        if isinstance(self.up, nn.QuantizedLinear):
            if self.up.mode != "affine":  # scales of the other modes are packed exponents
                return
            self.up.scales, self.up.biases = self.up.scales * self._scale, self.up.biases * self._scale
        else:
            self.up.weight = self.up.weight * self._scale
        self._scale = 1.0

    def add_to(self, y: mx.array, x: mx.array) -> mx.array:
        """y (1, T, output_dims) with the adapter's part for x (1, T, input_dims) added."""
        inner = self.down(x)
        if self._scale == 1.0 and not isinstance(self.up, nn.QuantizedLinear):
            return mx.addmm(y, inner, self.up.weight.T)
        added = self.up(inner)
        return y + (added if self._scale == 1.0 else self._scale * added)


class RoutedLinear(nn.Module):
    """A frozen base layer (Linear or QuantizedLinear) and the adapters that rows may add to it."""

    def __init__(self, input_dims: int, output_dims: int, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.base = nn.Linear(input_dims, output_dims, bias=False)
        self.lora = {name: LoRA(input_dims, output_dims, lora) for name, lora in adapters.items()}

    def __call__(self, x: mx.array, route: Route) -> mx.array:
        """x (1, T, input_dims) -> (1, T, output_dims)."""
        y = self.base(x)
        for name, start, stop in route.slices:
            lora = self.lora[name]
            if stop - start == route.length:
                return lora.add_to(y, x)
            y[:, start:stop] = lora.add_to(y[:, start:stop], x[:, start:stop])
        return y
