"""A decoder whose linears are shared out to several ranks: tensor parallelism (arXiv 1909.08053, section 3).

Each rank has whole heads and its share of the MLP: ``qkv_proj`` and ``gate_up_proj`` by rows, in each of their fused
segments, ``o_proj`` and ``down_proj`` by columns. What the latter give is a part of a sum, and one ``all_sum`` makes it
whole. Adapters are cut with them, so that base and adapters are added up before that sum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import DecoderConfig
from ..errors import Phi4Error
from ..ranks.sharding import Sharding
from .adapters import LoRA, Route, RoutedLinear

Ranges = tuple[tuple[int, int], ...]
Read = Callable[[str, mx.array, int, Ranges], "mx.array | None"]  # (name, array, axis, ranges) -> that part, if known


@dataclass(frozen=True)
class Cut:
    """Which part of a linear and of its adapters is a rank's: rows of each of the ``segments``, or columns (None)."""

    sharding: Sharding
    segments: tuple[int, ...] | None

    def ranges(self, name: str, shape: tuple[int, ...]) -> tuple[int, Ranges] | None:
        """Axis and ranges of an array of this shape, named from ``RoutedLinear`` on; None: each rank has all of it.

        Of packed weights, scales and biases the last axis is shorter than the linear's, and cut in proportion.
        """
        of_down = name.startswith("lora.") and ".down." in name
        if self.segments is None:
            if not (of_down or name.startswith("base.")):
                return None
            return 1, (self.sharding.share(0, shape[1]),)
        if of_down:
            return None
        ranges, start = [], 0
        for rows in self.segments:
            ranges.append(self.sharding.share(start, start + rows))
            start += rows
        return 0, tuple(ranges)

    def take(self, name: str, array: mx.array) -> mx.array:
        """This rank's part of an array, computed now, or the array itself."""
        found = self.ranges(name, array.shape)
        return array if found is None else part_of(array, *found)

    def take_lora(self, lora: LoRA) -> None:
        """Leave this rank's part of an adapter's module."""
        for name, array in tree_flatten(lora.parameters()):
            _put(lora, name, self.take(f"lora.any.{name}", array))

    def whole(self, name: str, part: mx.array) -> mx.array:
        """What all ranks' parts of an array are together. All ranks are to ask for it."""
        size = self.sharding.size
        full = tuple(n * (size if axis == (self.segments is None) else 1) for axis, n in enumerate(part.shape))
        if self.ranges(name, full) is None:
            return part
        parts = mx.unflatten(self.sharding.gather(mx.contiguous(part)), 0, (size, -1))
        if self.segments is None:
            return mx.concatenate(list(parts), axis=1)
        ends = [sum(self.segments[: i + 1]) // size for i in range(len(self.segments) - 1)]
        return mx.concatenate([s.flatten(0, 1) for s in mx.split(parts, ends, axis=1)], axis=0)


def part_of(array: mx.array, axis: int, ranges: Ranges) -> mx.array:
    """Ranges of an array along an axis, one behind the other, in memory of their own."""
    pieces = [array[start:stop] if axis == 0 else array[:, start:stop] for start, stop in ranges]
    part = mx.contiguous(pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=axis))
    mx.eval(part)
    return part


class SharedLinear(RoutedLinear):
    """A rank's part of a ``RoutedLinear``, by rows: its part of the outputs."""

    def __init__(self, linear: RoutedLinear, cut: Cut):
        nn.Module.__init__(self)
        self.base, self.lora = linear.base, linear.lora
        self._cut = cut

    def take_lora(self, lora: LoRA) -> None:
        """Leave this rank's part of a whole adapter."""
        if self._cut.segments is None:
            check_columns(lora.down, self._cut.sharding.size, "an adapter")
        self._cut.take_lora(lora)

    def whole(self, name: str, part: mx.array) -> mx.array:
        """As ``Cut.whole``."""
        return self._cut.whole(name, part)


class SummedLinear(SharedLinear):
    """A rank's part of a ``RoutedLinear``, by columns: sums over its part of the inputs, made whole by one sum."""

    def __call__(self, x: mx.array, route: Route) -> mx.array:
        """x (1, T, input_dims / ranks) -> (1, T, output_dims), the same on all ranks."""
        return self._cut.sharding.sum(super().__call__(x, route))

    def add_up(self, squares: mx.array) -> mx.array:
        """Squared norms of parts of rows -> those of the rows."""
        return self._cut.sharding.sum(squares)


def check_sharing(config: DecoderConfig, model: nn.Module, size: int) -> None:
    """Raises Phi4Error where so many ranks cannot share a decoder."""
    heads = config.num_key_value_heads
    if heads % size:
        fits = [str(n) for n in range(2, heads + 1) if heads % n == 0]
        advice = f"{', '.join(fits)} can" if fits else "no number of ranks can"
        raise Phi4Error(f"{size} ranks cannot share a model of {heads} key/value head{'s' * (heads > 1)}: {advice}")
    if config.intermediate_size % size:
        raise Phi4Error(f"{size} ranks cannot share an MLP of {config.intermediate_size} in equal parts")
    for layer, block in enumerate(model.layers):
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            for module in (linear.base, *(lora.down for lora in linear.lora.values())):
                check_columns(module, size, f"layer {layer}")


def check_columns(module: nn.Module, size: int, where: str) -> None:
    """Raises Phi4Error where a linear's columns cannot be cut between its groups."""
    if not isinstance(module, nn.QuantizedLinear):
        return
    groups = module.scales.shape[1]
    if groups % size:
        raise Phi4Error(
            f"{where}: {size} ranks cannot share {groups * module.group_size} columns in groups of {module.group_size}"
        )


def share_decoder(config: DecoderConfig, model: nn.Module, sharding: Sharding, read: Read) -> None:
    """Leave a rank its part of a ``Decoder``, linear by linear.

    Args:
        read: where an array's part can be had without the rest; it gives None for others, which are cut in memory.
    """
    check_sharing(config, model, sharding.size)
    heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    fused, halves = (heads, kv_heads, kv_heads), (config.intermediate_size,) * 2
    for index, block in enumerate(model.layers):
        attention, mlp = block.self_attn, block.mlp
        attention.heads, attention.kv_heads = attention.heads // sharding.size, attention.kv_heads // sharding.size
        attention.qkv_proj = SharedLinear(attention.qkv_proj, Cut(sharding, fused))
        attention.o_proj = SummedLinear(attention.o_proj, Cut(sharding, None))
        mlp.gate_up_proj = SharedLinear(mlp.gate_up_proj, Cut(sharding, halves))
        mlp.down_proj = SummedLinear(mlp.down_proj, Cut(sharding, None))
        for path in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            branch, name = path.split(".")
            _share_linear(block[branch][name], f"layers.{index}.{path}", read)


def _share_linear(linear: SharedLinear, path: str, read: Read) -> None:
    for name in [name for name, _ in tree_flatten(linear.parameters())]:
        array = _get(linear, name)
        found = linear._cut.ranges(name, array.shape)
        if found is None:
            continue
        part = read(f"{path}.{name}", array, *found)
        _put(linear, name, part_of(array, *found) if part is None else part)


def _get(module: nn.Module, name: str) -> mx.array:
    for part in name.split("."):
        module = module[part]
    return module


def _put(module: nn.Module, name: str, array: mx.array) -> None:
    *path, last = name.split(".")
    for part in path:
        module = module[part]
    module[last] = array


class SharedHead:
    """A rank's part of the head, by rows of the vocabulary; the logits are gathered.

    It shares the memory of the whole table, which embeds tokens: what it saves is reading.
    """

    def __init__(self, head: nn.Module, vocabulary: int, sharding: Sharding):
        self._sharding, self._vocabulary = sharding, vocabulary
        rows = -(-vocabulary // sharding.size)
        start = min(sharding.rank * rows, vocabulary)
        self._missing = rows - (min(start + rows, vocabulary) - start)
        self._head = head
        self._parts = {name: array[start : start + rows] for name, array in head.parameters().items()}

    @property
    def nbytes(self) -> int:
        """Bytes read for each token."""
        return sum(part.nbytes for part in self._parts.values())

    def __call__(self, h: mx.array) -> mx.array:
        """Hidden states (1, A, D) -> logits (1, A, V), the same on all ranks."""
        head, parts = self._head, self._parts
        if "scales" in parts:
            logits = mx.quantized_matmul(
                h,
                parts["weight"],
                scales=parts["scales"],
                biases=parts.get("biases"),
                transpose=True,
                group_size=head.group_size,
                bits=head.bits,
                mode=head.mode,
            )
        else:
            logits = h @ parts["weight"].T
        if self._missing:
            logits = mx.pad(logits, [(0, 0), (0, 0), (0, self._missing)])
        whole = self._sharding.gather(mx.contiguous(logits))  # (ranks, A, rows)
        return mx.flatten(whole.transpose(1, 0, 2), 1)[None, :, : self._vocabulary]
