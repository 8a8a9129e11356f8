"""The adapters of a model by name: its own, those that were added at run time, and sums of them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol
from weakref import WeakSet, ref

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.packing import Scheme
from ..errors import CheckpointError, Phi4Error
from .adapter_parts import summed
from .adapters import Adapter, LinearAdapter, LoRA, RoutedLinear, decoder_linears
from .identity import check_base

BASE = "base"  # names no adapter, where a request names its own
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}", re.ASCII)


def check_adapter_name(name: str) -> None:
    """Raises Phi4Error for what cannot name an adapter: it must fit into ``model:name`` and ``name=folder``."""
    if not isinstance(name, str) or not ADAPTER_NAME.fullmatch(name) or name == BASE:
        raise Phi4Error(f"adapter name is {name!r}, expected at most 64 letters, digits, '-' and '_', and not {BASE!r}")


class _Row(Protocol):
    adapter: str | None


class User(Protocol):
    """A sequence on its way, as far as adapters go: ``finish_reason`` is None until it has ended."""

    row: _Row
    finish_reason: str | None


class AdapterSet(Mapping):
    """Name -> parts of which the adapter is the sum: itself alone, unless it was composed.

    It belongs to one model and changes only by ``add``, ``compose`` and ``remove``; whoever calls these must have the
    model to itself (``device.exclusive``).
    """

    def __init__(self, model: nn.Module):
        self._model = ref(model)  # which holds this: without a circle its weights go at once
        self._own = set(model.config.adapters)
        self._parts: dict[str, tuple[str, ...]] = {name: (name,) for name in sorted(self._own)}
        self._added: dict[str, Adapter] = {}  # without their arrays
        self._digests: dict[str, str] = {}
        self._users: WeakSet[User] = WeakSet()

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self):
        return f"AdapterSet({', '.join(self)})"

    @property
    def composed(self) -> dict[str, tuple[str, ...]]:
        """The sums and their parts."""
        return {name: parts for name, parts in self._parts.items() if parts != (name,)}

    def add(self, name: str, adapter: Adapter, *, bits: int | None = None, train: bool = False) -> None:
        """Take an adapter in under a new name.

        Args:
            bits: 8 or 4 packs its factors, as the converter does with a model's own; a factor whose rows no group
                divides stays as it is.
            train: leave dtypes, scales and DoRA's magnitudes as they are, so that they can be trained and had back by
                ``get_adapter``. Otherwise they become what is fastest to serve.

        Raises:
            CheckpointError: it does not fit this model's shapes or base.
            Phi4Error: a name that is taken or cannot be one.
        """
        self.check_free(name)
        if train and self._model().sharding is not None:
            raise Phi4Error("a model that several ranks share cannot be trained: train it on one, or data parallel")
        self._check_fit(adapter)
        dtype = self._model().model.norm.weight.dtype
        made = {}
        for path, part in adapter.linears.items():
            lora = made[path] = LoRA.of(part)
            if train:
                lora.fix_gain(self._linear(path).base, train=True)
            else:
                _prepare(lora, self._linear(path), dtype, bits)
            mx.eval(lora.parameters())
        wrong = mx.array(sum(1 - mx.isfinite(a).all() for lora in made.values() for a in _floats(lora)))
        if (wrong if self._model().sharding is None else self._model().sharding.sum(wrong)).item():
            raise CheckpointError(f"holds numbers that are not finite in {dtype}")
        for path, lora in made.items():
            self._linear(path).lora[name] = lora
        self._parts[name] = (name,)
        self._added[name] = replace(adapter, linears={})
        self._digests[name] = f"{adapter.digest} {bits}"

    def compose(self, name: str, parts: Iterable[str]) -> None:
        """Name the sum of several adapters, which shares their arrays. Raises Phi4Error."""
        self.check_free(name)
        whole = [each for part in parts for each in self._parts_of(part)]
        if len(whole) < 2 or len(set(whole)) < len(whole):
            raise Phi4Error(f"adapter {name!r} is to be the sum of {'+'.join(whole)}, expected two or more, each once")
        for part in whole:
            if any("gain" in lora or "magnitude" in lora for lora in self._modules(part).values()):
                raise Phi4Error(f"adapter {part!r} is a DoRA, which scales the base itself: it is part of no sum")
        self._parts[name] = tuple(whole)

    def remove(self, name: str) -> None:
        """Forget an adapter that was added or composed. Raises Phi4Error while it is in use."""
        self._parts_of(name)
        if name in self._own:
            raise Phi4Error(f"adapter {name!r} is the model's own; only those that were added can be removed")
        if sums := [other for other, parts in self.composed.items() if name in parts and other != name]:
            raise Phi4Error(f"adapter {name!r} is part of {', '.join(sums)}; remove {sums[0]} first")
        if count := sum(each.row.adapter == name and each.finish_reason is None for each in self._users):
            raise Phi4Error(f"adapter {name!r} is in use by {count} row{'s' * (count > 1)}; remove it when they ended")
        for linear in self._linears():
            linear.lora.pop(name, None)
        del self._parts[name]
        for known in (self._added, self._digests):
            known.pop(name, None)

    def get_adapter(self, name: str) -> Adapter:
        """An adapter as it can be written to files, of a sum the one of concatenated rank. Raises Phi4Error."""
        if self._model().sharding is not None:
            raise Phi4Error("each rank has a part of this model's adapters; load it on one rank to save one")
        found: dict[str, list[LinearAdapter]] = {}
        for part in self._parts_of(name):
            for path, lora in self._modules(part).items():
                found.setdefault(path, []).append(lora.part())
        linears = {path: parts[0] if len(parts) == 1 else summed(parts) for path, parts in sorted(found.items())}
        return replace(self._added.get(name, Adapter({})), linears=linears)

    def digest(self, name: str | None) -> str | None:
        """What tells apart two adapters of one name; None for a model's own and for none at all."""
        if name is None or name in self._own:
            return None
        return "+".join(self._digests.get(part, part) for part in self._parts_of(name))

    def nbytes(self, name: str) -> int:
        """Bytes of what an adapter brought; a sum brings nothing."""
        if name not in self._added:
            return 0
        return sum(a.nbytes for lora in self._modules(name).values() for _, a in tree_flatten(lora.parameters()))

    def hold(self, user: User) -> None:
        """A row begins: its adapter cannot be removed until it has ended or is forgotten."""
        self._users.add(user)

    def _parts_of(self, name: str) -> tuple[str, ...]:
        if name not in self._parts:
            raise Phi4Error(f"adapter name is {name!r}, this model has {', '.join(self) or 'none'}")
        return self._parts[name]

    def check_free(self, name: str) -> None:
        """Raises Phi4Error for a name that is taken or cannot be one."""
        check_adapter_name(name)
        if name in self._parts:
            raise Phi4Error(f"there is an adapter {name!r} already; choose another name or remove it first")

    def _check_fit(self, adapter: Adapter) -> None:
        shapes = decoder_linears(self._model().config.decoder)
        if not adapter.linears:
            raise CheckpointError("holds no linear of the decoder")
        for path, part in adapter.linears.items():
            if path not in shapes:
                raise CheckpointError(f"{path} is no linear of this model's decoder")
            outputs, inputs = shapes[path]
            wanted = {"down": (part.rank, inputs), "up": (outputs, part.rank), "magnitude": (outputs,)}
            for kind, array in part.arrays.items():
                if array.shape != wanted[kind]:
                    raise CheckpointError(f"{path} {kind} is {array.shape}, expected {wanted[kind]}")
        if adapter.base is not None:
            check_base(self._model(), adapter.base, exactly=adapter.is_dora)

    def _linear(self, path: str) -> RoutedLinear:
        _, layer, block, linear = path.split(".")
        return self._model().model.layers[int(layer)][block][linear]

    def _linears(self) -> list[RoutedLinear]:
        return [self._linear(path) for path in decoder_linears(self._model().config.decoder)]

    def _modules(self, name: str) -> dict[str, LoRA]:
        """Path -> module of an adapter that is no sum."""
        paths = decoder_linears(self._model().config.decoder)
        return {path: lora for path in paths if (lora := self._linear(path).lora.get(name)) is not None}


def _prepare(lora: LoRA, linear: RoutedLinear, dtype: mx.Dtype, bits: int | None) -> None:
    """What is fastest to serve: the model's dtype, packed, the scale folded, the gain made."""
    for name in ("down", "up"):
        factor = lora[name]
        factor.weight = factor.weight.astype(dtype)
        scheme = None if bits is None else Scheme.of(bits).fit(factor.weight.shape[1])
        if scheme is not None:
            lora[name] = nn.QuantizedLinear.from_linear(factor, **scheme.table())
    linear.take_lora(lora)
    lora.fix_gain(linear.base, linear.add_up)
    lora.fold_scale()


def _floats(lora: LoRA) -> list[mx.array]:
    """The arrays that must be finite; a magnitude may be NaN."""
    linears = (lora.down, lora.up)
    found = [each.scales if isinstance(each, nn.QuantizedLinear) else each.weight for each in linears]
    return [*found, lora.gain] if "gain" in lora else found
