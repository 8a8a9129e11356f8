"""The routed linear layer: a frozen base and the adapters that rows may add to it, never merged.

Report section 2.2: each modality brings one LoRA on the four linears of every decoder layer, the base stays frozen,
and text alone uses the base as it is. Adapters of one's own join at run time, see ``adapter_set``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import DecoderConfig, LoRAConfig
from .identity import BaseIdentity, raw_bytes


@dataclass(frozen=True)
class Route:
    """Which contiguous slice of a step's T tokens passes which adapter, made once on the host.

    ``slices`` holds triples (adapter, first token, token after the last). Tokens in no slice pass the base alone, those
    in several the sum of their adapters; ``length`` is T.
    """

    length: int
    slices: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, runs: list[tuple[str | None, int]], composed: Mapping[str, tuple[str, ...]] | None = None) -> "Route":
        """The route of runs of tokens, (adapter, tokens) each; neighbours of one adapter join.

        ``composed`` names the adapters that are sums of others, and their parts.
        """
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
        if composed:
            slices = [(part, *span) for name, *span in slices for part in composed.get(name, (name,))]
        return cls(position, tuple(slices))


def decoder_linears(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """The linears that adapters are for: path in ``Phi4.model`` -> shape (output_dims, input_dims) of the weight."""
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    shapes = {
        "self_attn.qkv_proj": (heads + 2 * config.num_key_value_heads * config.head_dim, width),
        "self_attn.o_proj": (width, heads),
        "mlp.gate_up_proj": (2 * inner, width),
        "mlp.down_proj": (width, inner),
    }
    layers = range(config.num_hidden_layers)
    return {f"layers.{layer}.{linear}": shape for layer in layers for linear, shape in shapes.items()}


@dataclass(frozen=True)
class LinearAdapter:
    """An adapter's part for one linear with a weight W (output_dims, input_dims), as it is stored and trained.

    LoRA: ``W x + scale * up(down(x))``. With a magnitude, DoRA (arXiv 2402.09353): ``g * (W x + scale * up(down(x)))``
    with the gain ``g = magnitude / row norms of (W + scale * up @ down)``.

    Args:
        down: (rank, input_dims), peft's ``lora_A.weight``.
        up: (output_dims, rank), peft's ``lora_B.weight``.
        scale: alpha / rank; not in ``up``.
        magnitude: (output_dims,), or None. NaN stands in rows that have none, whose gain is 1: of a q, k, v trained
            apart those that DoRA left out.
    """

    down: mx.array
    up: mx.array
    scale: float
    magnitude: mx.array | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def arrays(self) -> dict[str, mx.array]:
        """The arrays by their names."""
        found = {"down": self.down, "up": self.up}
        return found if self.magnitude is None else found | {"magnitude": self.magnitude}


@dataclass(frozen=True)
class Adapter:
    """A whole adapter, as it is stored and trained.

    Args:
        linears: path of a linear in ``Phi4.model`` (see ``decoder_linears``) -> its part; the others stay base.
        base: what it was trained on, None where that is not known.
        about: what a model card may say of it, as JSON holds it: where it comes from, how it was trained.
    """

    linears: dict[str, LinearAdapter]
    base: BaseIdentity | None = None
    about: dict = field(default_factory=dict)

    @property
    def is_dora(self) -> bool:
        """Whether any of its linears has a magnitude."""
        return any(part.magnitude is not None for part in self.linears.values())

    @cached_property
    def digest(self) -> str:
        """Of all that changes what it computes. Computes the arrays."""
        found = blake2b(digest_size=16)
        for path, part in sorted(self.linears.items()):
            found.update(f"{path} {np.float32(part.scale)}".encode())
            for name, array in part.arrays.items():
                found.update(f" {name} {array.dtype} {array.shape}".encode())
                found.update(raw_bytes(array))
        return found.hexdigest()


class LoRA(nn.Module):
    """``alpha / rank * up(down(x))``; a factor that is a power of two is part of ``up``, see ``fold_scale``.

    DoRA has one of two further arrays: ``gain`` (output_dims,), ready to be multiplied, or where it is trained
    ``magnitude`` (output_dims,), from which the linear makes the gain at each call.
    """

    def __init__(self, input_dims: int, output_dims: int, config: LoRAConfig):
        super().__init__()
        self.down = nn.Linear(input_dims, config.rank, bias=False)
        self.up = nn.Linear(config.rank, output_dims, bias=False)
        self._scale = config.scale  # that is left to multiply by
        self._folded = 1.0  # that ``up`` was multiplied by

    @classmethod
    def of(cls, part: LinearAdapter) -> "LoRA":
        """The module of one linear's part, arrays shared, nothing folded; DoRA by its ``magnitude``."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)  # not its own, which draws random numbers
        made.down, made.up = _linear(part.down), _linear(part.up)
        made._scale, made._folded = part.scale, 1.0
        if part.magnitude is not None:
            made.magnitude = part.magnitude  # NaN in rows that have none, until there is a base
        return made

    def part(self) -> LinearAdapter:
        """What ``of`` was given, or training made of it: nothing folded, packed weights as float32."""
        up = _plain(self.up)
        up = up if self._folded == 1.0 else up / self._folded
        magnitude = self.get("magnitude", self.get("_magnitude"))
        return LinearAdapter(_plain(self.down), up, self._scale * self._folded, magnitude)

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
        self._scale, self._folded = 1.0, self._folded * self._scale

    def fix_gain(
        self, base: nn.Module, add_up: Callable[[mx.array], mx.array] | None = None, *, train: bool = False
    ) -> None:
        """Replace DoRA's magnitude by the gain over this base, float32, computed now and for all.

        Rows without a magnitude have the base's own norm from now on; to ``train`` that is all that is done.
        ``add_up`` makes squared norms (output_dims,) whole where this is a part of a row.
        """
        if "magnitude" in self:
            magnitude, norms = self.pop("magnitude").astype(mx.float32), self._norms(base, add_up)
            magnitude = mx.where(mx.isnan(magnitude), norms, magnitude)
            if train:
                self.magnitude = magnitude
            else:
                self._magnitude, self.gain = magnitude, magnitude / norms
            mx.eval(magnitude, self.parameters())  # before the next linear's weight is unpacked

    def add_to(self, y: mx.array, x: mx.array, base: nn.Module) -> mx.array:
        """y (1, T, output_dims) of the base with the adapter's part for x (1, T, input_dims) added."""
        total = self._sum(y, x)
        if "gain" not in self and "magnitude" not in self:
            return total
        if "gain" in self:
            return (total * self.gain).astype(y.dtype)
        # no gradient flows through the norms, as the paper has it (section 4.3)
        return (total * (self.magnitude / mx.stop_gradient(self._norms(base)))).astype(y.dtype)

    def _sum(self, y: mx.array, x: mx.array) -> mx.array:
        quantized = isinstance(self.up, nn.QuantizedLinear)
        dtype = self.up.scales.dtype if quantized else self.up.weight.dtype
        inner = self.down(x if x.dtype == dtype or quantized else x.astype(dtype))
        if self._scale == 1.0 and not quantized and dtype == y.dtype:
            return mx.addmm(y, inner, self.up.weight.T)
        added = self.up(inner)
        return y + (added if self._scale == 1.0 else self._scale * added).astype(y.dtype)

    def _norms(self, base: nn.Module, add_up: Callable[[mx.array], mx.array] | None = None) -> mx.array:
        """Norms (output_dims,) float32 of the rows of the base's weight with this adapter in it."""
        delta = self._scale * (_plain(self.up).astype(mx.float32) @ _plain(self.down).astype(mx.float32))
        weight = _plain(base).astype(mx.float32) + delta
        return mx.linalg.norm(weight, axis=1) if add_up is None else mx.sqrt(add_up(mx.square(weight).sum(axis=1)))


class RoutedLinear(nn.Module):
    """A frozen base layer (Linear or QuantizedLinear) and the adapters that rows may add to it.

    ``lora`` may lack adapters that other linears have: their tokens pass the base alone. ``add_up`` is None: a row of
    the weight is here as a whole, which it is not in every part of a linear, see ``parallel``.
    """

    add_up: Callable[[mx.array], mx.array] | None = None

    def __init__(self, input_dims: int, output_dims: int, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.base = nn.Linear(input_dims, output_dims, bias=False)
        self.lora = {name: LoRA(input_dims, output_dims, lora) for name, lora in adapters.items()}

    def __call__(self, x: mx.array, route: Route) -> mx.array:
        """x (1, T, input_dims) -> (1, T, output_dims)."""
        y = self.base(x)
        for name, start, stop in route.slices:
            lora = self.lora.get(name)
            if lora is None:
                continue
            if stop - start == route.length:
                y = lora.add_to(y, x, self.base)
            else:
                y[:, start:stop] = lora.add_to(y[:, start:stop], x[:, start:stop], self.base)
        return y

    def take_lora(self, lora: LoRA) -> None:
        """Leave of a whole adapter what this linear has a part for: all of it."""


def _linear(weight: mx.array) -> nn.Linear:
    made = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(made)
    made.weight = weight
    return made


def _plain(linear: nn.Module) -> mx.array:
    """A linear's weight (output_dims, input_dims); unpacked in float32 if it is quantized."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return mx.dequantize(
        linear.weight,
        linear.scales,
        linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
        dtype=mx.float32,
    )
