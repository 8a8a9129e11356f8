"""Weights packed into few bits: the schemes of ``mx.quantize``, and the table that says which layer has which."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import CheckpointError, ConversionError
from . import names
from .shards import some

# mode -> group sizes and bits, the default first (mx.quantize; all but affine allow one pair)
GROUP_SIZES = {"affine": (64, 32, 128), "mxfp4": (32,), "nvfp4": (16,), "mxfp8": (32,)}
BITS = {"affine": (4, 2, 3, 5, 6, 8), "mxfp4": (4,), "nvfp4": (4,), "mxfp8": (8,)}
QUANTIZATION_MODES = tuple(BITS)


@dataclass(frozen=True)
class Scheme:
    """One way to quantize: ``group_size`` consecutive weights of a row share a scale.

    Raises ConversionError for what ``mx.quantize`` does not offer.
    """

    bits: int = 4
    group_size: int = 64
    mode: str = "affine"

    def __post_init__(self):
        if not isinstance(self.mode, str) or self.mode not in BITS:
            raise ConversionError(f"quantization mode is {self.mode!r}, expected {', '.join(QUANTIZATION_MODES)}")
        for what, value, known in (
            ("bits", self.bits, BITS[self.mode]),
            ("group size", self.group_size, GROUP_SIZES[self.mode]),
        ):
            if type(value) is not int or value not in known:
                known = ", ".join(map(str, sorted(known)))
                raise ConversionError(f"quantization {what} of mode {self.mode} is {value!r}, expected {known}")

    @classmethod
    def of(cls, bits: int | None = None, group_size: int | None = None, mode: str = "affine") -> "Scheme":
        """The scheme with the mode's own defaults for what is None."""
        if isinstance(mode, str) and mode in BITS:
            bits = BITS[mode][0] if bits is None else bits
            group_size = GROUP_SIZES[mode][0] if group_size is None else group_size
        return cls(bits, group_size, mode)

    def fit(self, width: int) -> "Scheme | None":
        """This scheme with the largest group, not above its own, that divides rows of ``width``."""
        sizes = [size for size in GROUP_SIZES[self.mode] if size <= self.group_size and width % size == 0]
        return Scheme(self.bits, max(sizes), self.mode) if sizes else None

    def table(self) -> dict:
        """Keyword arguments of ``mx.quantize`` and entry of ``config.json``."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def outputs(self, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Parameter -> (safetensors dtype, shape) of what quantizing (rows, width) gives."""
        rows, width = shape
        groups = (rows, width // self.group_size)
        packed = {"weight": ("U32", (rows, width * self.bits // 32))}
        if self.mode != "affine":  # their scales are floats of eight bits
            return packed | {"scales": ("U8", groups)}
        return packed | {"scales": (dtype, groups), "biases": (dtype, groups)}


def packed_modules(table: dict | None, tensors: Iterable[str]) -> dict[str, Scheme]:
    """Path in ``Phi4`` -> scheme of those layers that have ``.scales``, as the table in ``config.json`` says.

    Raises CheckpointError where tensors and table disagree, or the table asks for what MLX does not have.
    """
    packed = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    if not packed:
        if table:
            raise CheckpointError("config.json has a quantization table, but no tensor has scales")
        return {}
    if not table:
        raise CheckpointError("tensors have scales, but config.json has no quantization table")
    entries = {_module_path(name): value for name, value in table.items() if isinstance(value, (dict, bool))}
    unwanted = [path for path in packed if entries.get(path) is False]
    unmet = [path for path, value in entries.items() if isinstance(value, dict) and path not in set(packed)]
    if unwanted or unmet:
        raise CheckpointError(
            f"the quantization table disagrees with the tensors about {some(sorted(unwanted + unmet))}"
        )
    try:
        default = _scheme(table)
        own = {path: _scheme(entry) for path, entry in entries.items() if isinstance(entry, dict)}
    except ConversionError as error:
        raise CheckpointError(f"quantization in config.json is not supported: {error}") from None
    return {path: own.get(path, default) for path in packed}


def _scheme(entry: dict) -> Scheme:
    return Scheme.of(entry.get("bits"), entry.get("group_size"), entry.get("mode", "affine"))


def _module_path(name: str) -> str:
    """A module's path in ``Phi4`` from its path in the ecosystem's text models."""
    try:
        return names.rename(f"{name}.weight", names.TEXT).removesuffix(".weight")
    except KeyError:
        return name
