"""What is trained: new adapters, copies of a model's own, and encoders or projectors by name.

A trained adapter stands beside the model's own under a name of its own, so that all modes stay what they were.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoint.dense import make_dense, plain_weight
from ..checkpoint.names import DECODER_LINEARS
from ..decoder.adapters import Adapter, LinearAdapter, decoder_linears
from ..device import exclusive
from ..errors import Phi4Error
from ..modalities import MODALITIES
from ..model import Phi4

TRAINED = "trained-"  # before the slot, in a trained adapter's name
USUAL_SCALE, USUAL_ALPHA = 16.0, 64.0
FINE_TUNE_TYPES = ("lora", "dora")


@dataclass(frozen=True)
class LoraOptions:
    """What a new adapter is like.

    Args:
        kind: lora or dora.
        rank: of every linear.
        scale: of what it adds; None is ``alpha / rank``, of rsLoRA ``alpha / sqrt(rank)``, and without alpha 16: near
            mlx_lm.lora's 20, and a power of two costs nothing to serve. A rate of learning goes with it: of two scales
            the smaller one needs the higher rate. The published adapters have 2.
        alpha: see ``scale``; 64 where rslora is asked for and it is not given.
        rslora: see ``scale``.
        num_layers: the last so many layers; -1 for all.
        keys: linears of a layer, None for all four.
    """

    kind: str = "lora"
    rank: int = 32  # with 16, words spelled by letters were learnt half as well: benchmarks/README.md
    scale: float | None = None
    alpha: float | None = None
    rslora: bool = False
    num_layers: int = -1
    keys: tuple[str, ...] | None = None

    def __post_init__(self):
        if unknown := [key for key in self.keys or () if not self._meant(key)]:
            raise Phi4Error(f"keys hold {unknown[0]!r}, expected {', '.join(DECODER_LINEARS)}")
        if self.scale is not None and (self.alpha is not None or self.rslora):
            raise Phi4Error("scale does not go together with alpha and rslora, which say what it is")

    @property
    def factor(self) -> float:
        """What the product of the two matrices is multiplied by."""
        if self.scale is not None:
            return self.scale
        if self.alpha is None and not self.rslora:
            return USUAL_SCALE
        alpha = USUAL_ALPHA if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def paths(self, model: Phi4) -> list[str]:
        """The linears that get a part. Raises Phi4Error for more layers than there are."""
        layers = model.config.decoder.num_hidden_layers
        if self.num_layers > layers:
            raise Phi4Error(f"num_layers is {self.num_layers}, this model has {layers}")
        first = 0 if self.num_layers < 0 else layers - self.num_layers
        wanted = [path for key in self.keys or DECODER_LINEARS for path in self._meant(key)]
        paths = decoder_linears(model.config.decoder)
        return [p for p in paths if int(p.split(".")[1]) >= first and p.split(".", 2)[2] in wanted]

    def check_begun(self, adapter: Adapter) -> None:
        """Refuse what was asked for and an adapter to begin with does not have. Raises Phi4Error."""
        usual, parts = LoraOptions(), adapter.linears.values()
        ranks = sorted({part.rank for part in parts})
        if self.rank not in (usual.rank, *ranks):
            raise Phi4Error(f"rank is {self.rank}, but the adapter of resume_adapter_file has {ranks[-1]}")
        if self.kind != usual.kind and all(part.magnitude is None for part in parts):
            raise Phi4Error(f"fine_tune_type is {self.kind}, but the adapter of resume_adapter_file is none")

    @staticmethod
    def _meant(key: str) -> list[str]:
        """By their whole names or the last part of them."""
        return [name for name in DECODER_LINEARS if key in (name, name.rpartition(".")[2])]


@dataclass
class Parts:
    """What is trained in a model.

    Args:
        adapters: slot -> name of the adapter that its rows pass, which is trained.
        modules: names of the encoders and projectors.
        names: paths of the trained parameters in the model.
    """

    adapters: dict[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def parameters(self, model: Phi4) -> dict[str, mx.array]:
        """The trained parameters by path, in float32: what an optimizer changes."""
        found = dict(tree_flatten(model.parameters()))
        return {name: found[name].astype(mx.float32) for name in self.names}


def module_arrays(model: Phi4, name: str) -> dict[str, mx.array]:
    """The parameters of an encoder or a projector by their paths in the model."""
    return {path: array for path, array in tree_flatten(model.parameters()) if path.startswith(f"{name}.")}


def place(model: nn.Module, parameters: dict[str, mx.array]) -> None:
    """Give a model these parameters."""
    model.update(tree_unflatten(list(parameters.items())))


def module_names(model: Phi4) -> list[str]:
    """The encoders and projectors of a model that can be trained by name; one of several also by its own."""
    found = []
    for names in model.modules_of.values():
        for name in names:
            inner = model[name]
            found += [name] if isinstance(inner, nn.Module) else [name, *(f"{name}.{each}" for each in inner)]
    return found


def kind_of(model: Phi4, module: str) -> str:
    """The kind of medium that a module belongs to."""
    return next(kind for kind, names in model.modules_of.items() if module.split(".")[0] in names)


def make_parts(
    model: Phi4,
    slots: dict[str, Adapter | None],
    modules: Iterable[str],
    options: LoraOptions,
    seed: int,
) -> Parts:
    """Put new adapters and plain modules into a model, and name what is trained.

    Args:
        slots: slot -> what its adapter goes on from, None for a new one.
        modules: names of encoders and projectors.
        seed: of what new adapters begin with.

    Raises:
        Phi4Error: a module that the model does not have, options that do not fit it.
    """
    known = module_names(model)
    modules = tuple(modules)
    if unknown := [name for name in modules if name not in known]:
        raise Phi4Error(f"{unknown[0]!r} cannot be trained, expected an adapter's name or {', '.join(known)}")
    adapters = {slot: f"{TRAINED}{slot}" for slot in slots}
    for number, (slot, begun) in enumerate(slots.items()):
        made = new_adapter(model, options, mx.random.key(seed + number)) if begun is None else begun
        model.add_adapter(adapters[slot], made, train=True)
    for name in modules:
        make_dense(_found(model, name), bits_only=True)
    marks = tuple(f".lora.{name}." for name in adapters.values())
    starts = tuple(f"{name}." for name in modules)
    paths = [name for name, _ in tree_flatten(model.parameters())]
    names = [name for name in paths if any(mark in name for mark in marks) or name.startswith(starts or ("\0",))]
    return Parts(adapters, modules, tuple(names))


def new_adapter(model: Phi4, options: LoraOptions, key: mx.array) -> Adapter:
    """One that changes nothing yet: ``down`` uniform within 1 / sqrt(input_dims), ``up`` zero, DoRA's gain 1."""
    shapes, linears = decoder_linears(model.config.decoder), {}
    paths = options.paths(model)
    if not paths:
        raise Phi4Error("num_layers is 0: there is nothing to train")
    with exclusive():
        for path, one in zip(paths, mx.random.split(key, len(paths)), strict=True):
            outputs, inputs = shapes[path]
            bound = 1 / math.sqrt(inputs)
            down = mx.random.uniform(-bound, bound, (options.rank, inputs), key=one)
            magnitude = None
            if options.kind == "dora":
                magnitude = mx.linalg.norm(plain_weight(_found(model.model, path).base).astype(mx.float32), axis=1)
            up = mx.zeros((outputs, options.rank))
            mx.eval(down, up, [] if magnitude is None else magnitude)
            linears[path] = LinearAdapter(down, up, options.factor, magnitude)
    return Adapter(linears)


def own_adapter(model: Phi4, name: str) -> Adapter:
    """A copy of a model's own adapter, to go on from."""
    found = model.adapters.get_adapter(name)
    with exclusive():
        linears = {
            path: LinearAdapter(part.down.astype(mx.float32), part.up.astype(mx.float32), part.scale, part.magnitude)
            for path, part in found.linears.items()
        }
        mx.eval([part.arrays for part in linears.values()])
    return Adapter(linears)


def known_slots(model: Phi4) -> set[str]:
    """The slots that rows without an adapter's name have in this model, and its adapters."""
    held = [each for each in MODALITIES.values() if each.held(model.config)]
    return {"text", *model.config.adapters, *(each.adapter or each.label for each in held)}


def _found(model: nn.Module, path: str) -> nn.Module:
    for part in path.split("."):
        model = model[int(part)] if isinstance(model, list) else model[part]
    return model
