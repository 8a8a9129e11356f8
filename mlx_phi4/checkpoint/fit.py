"""A strict fit of a folder's headers to its configuration, proven before a module is made.

A configuration may describe a model of any size, headers only what is in their files. So one layer of each kind is
made to learn the parameters' names and shapes, and the others are counted.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mlx.utils import tree_flatten

from ..config import Config
from ..errors import CheckpointError
from ..model import Phi4
from . import names
from .packing import Scheme
from .shards import Shard, some
from .tensorfile import FLOATS, StoredTensor, read_header

SHOWN = 5  # names in a message

# beginning of the names of modules that repeat -> how often they do
REPEATED = {
    "model.layers.": lambda config: config.decoder.num_hidden_layers,
    "vision_encoder.layers.": lambda config: config.vision.used_layers if config.vision else 0,
    "audio_encoder.encoders.": lambda config: config.audio.num_blocks if config.audio else 0,
}
_LAYER = re.compile(rf"({'|'.join(map(re.escape, REPEATED))})(0|[1-9][0-9]{{0,8}})(?=\.)")


@dataclass(frozen=True)
class Located:
    """A folder's tensors under their names in ``Phi4``.

    ``unexpected`` are published names that no table knows, ``repeated`` those that bring a tensor once more.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


def locate(config: Config, folder: Path, shards: list[Shard]) -> Located:
    """Where everything lies that is not dropped on purpose. Raises CheckpointError for an adapter's file."""
    found = Located()
    sources = [(shard, names.TABLES.get(config.layout), "") for shard in shards]
    if config.layout == "transformers":
        for adapter in config.adapters:
            path = folder / f"{adapter}-lora" / "adapter_model.safetensors"
            table = {old: new.format(name=adapter) for old, new in names.PEFT.items()}
            sources.append((Shard(path, read_header(path)), table, adapter))
    for shard, table, adapter in sources:
        for name, tensor in shard.tensors.items():
            said = f"{shard.path.parent.name}/{name}" if adapter else name
            try:
                new = name if table is None else names.rename(_plain(name, adapter), table)
            except KeyError:
                found.unexpected.append(said)
                continue
            if new in found.tensors:
                found.repeated.append(said)
            elif new is not None and not _unused(new, config):
                found.tensors[new] = tensor
    return found


def _plain(name: str, adapter: str) -> str:
    """PEFT writes keys with or without a prefix, and sometimes the adapter's name inside."""
    if not adapter:
        return name
    name = name.removeprefix("base_model.model.")
    for inner in (adapter, "default"):
        name = name.replace(f".{inner}.weight", ".weight")
    return name


def _unused(name: str, config: Config) -> bool:
    """The last SigLIP layer, and the copy of a tied head, are dropped on purpose."""
    if config.vision and name.startswith(f"vision_encoder.layers.{config.vision.used_layers}."):
        return True
    return name == "lm_head.weight" and config.decoder.tie_word_embeddings


def check_fit(config: Config, folder: Path, located: Located, packed: dict[str, Scheme]) -> None:
    """Raises CheckpointError unless every parameter has its tensor, of its shape and kind, and every tensor its place.

    All that is wrong is listed together.
    """
    expected = Expected(config, packed)
    found, unexpected, misshapen = 0, list(located.unexpected), []
    for name, tensor in sorted(located.tensors.items()):
        wanted = expected.tensor(name)
        if wanted is None:
            unexpected.append(name)
            continue
        found += 1
        dtypes, shape = wanted
        have = names.mlx_shape(name, tensor.shape) if config.layout in names.TABLES else tensor.shape
        if have != shape:
            misshapen.append(f"{name} {have or tensor.shape}, expected {shape}")
        if tensor.dtype not in dtypes:
            misshapen.append(f"{name} is {tensor.dtype}, expected {' or '.join(dtypes)}")
    missing = (name for name in expected.names() if name not in located.tensors)
    parts = []
    if count := expected.count - found:
        parts.append(f"{count} missing: {some(list(islice(missing, SHOWN)), count)}")
    for kind, names_of in {"unexpected": unexpected, "repeated": located.repeated, "misshapen": misshapen}.items():
        if names_of:
            parts.append(f"{len(names_of)} {kind}: {some(names_of)}")
    if parts:
        raise CheckpointError(f"{folder}: tensors do not fit the configuration: {'; '.join(parts)}")


class Expected:
    """The parameters of a model of this configuration, whatever its size.

    ``packed`` are the modules that are quantized; those that no such model has are passed over.
    """

    def __init__(self, config: Config, packed: dict[str, Scheme]):
        model = Phi4(_one_layer(config))
        self._times = {beginning: times(config) for beginning, times in REPEATED.items()}
        self._shapes = {_pattern(name)[0]: tuple(array.shape) for name, array in tree_flatten(model.parameters())}
        packable = {
            _pattern(f"{path}.")[0] for path, module in model.named_modules() if hasattr(module, "to_quantized")
        }
        self._packed: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
        for path, scheme in packed.items():
            pattern, there = self._place(f"{path}.")
            if there and pattern in packable:
                self._packed[path] = scheme.outputs(self._shapes[f"{pattern}weight"], "F32")

    @property
    def count(self) -> int:
        """How many parameters there are."""
        plain = sum(self._repeats(pattern) for pattern in self._shapes)
        return plain + sum(len(parts) - 1 for parts in self._packed.values())  # the weight is in both

    def tensor(self, name: str) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
        """The dtypes that a parameter may be stored in, and its shape; None if there is no such parameter."""
        path, _, part = name.rpartition(".")
        if part in self._packed.get(path, {}):
            dtype, shape = self._packed[path][part]
            return (FLOATS if dtype in FLOATS else (dtype,)), shape
        pattern, there = self._place(name)
        return (FLOATS, self._shapes[pattern]) if there and pattern in self._shapes else None

    def names(self) -> Iterator[str]:
        """All names, one by one: there may be very many."""
        for pattern in sorted(self._shapes):
            for number in range(self._repeats(pattern)):
                yield pattern.replace("#", str(number))
        for path, parts in self._packed.items():
            yield from (f"{path}.{part}" for part in parts if part != "weight")

    def _repeats(self, pattern: str) -> int:
        return self._times[pattern.partition("#")[0]] if "#" in pattern else 1

    def _place(self, name: str) -> tuple[str, bool]:
        """The pattern that a name follows, and whether its layer is one of the model's."""
        pattern, number = _pattern(name)
        return pattern, "#" not in name and (number is None or number < self._repeats(pattern))


def _one_layer(config: Config) -> Config:
    """The same model with a single layer of each kind."""
    replace = dataclasses.replace
    return replace(
        config,
        decoder=replace(config.decoder, num_hidden_layers=1),
        vision=config.vision and replace(config.vision, num_hidden_layers=2),  # the last one is not computed
        audio=config.audio and replace(config.audio, num_blocks=1),
    )


def _pattern(name: str) -> tuple[str, int | None]:
    """A name with # for the number of its layer, and that number; None for what does not repeat."""
    found = _LAYER.match(name)
    if not found:
        return name, None
    return f"{found[1]}#{name[found.end() :]}", int(found[2])
