"""Which tensor is quantized how: rules by component, checked here and written out as a table.

The decoder's linears and the
embedding follow one scheme (or a mixed recipe), the adapters a second, the encoders and projectors
a third. Norms, convolutions larger than 1x1, positions and separators stay as they are.
"""

import re
from dataclasses import dataclass

from ..checkpoint.packing import BITS, GROUP_SIZES, Scheme
from ..errors import ConversionError

UNQUANTIZED = 16  # as --adapter-bits and --encoder-bits: leave them in the checkpoint's dtype
ADAPTER_BITS = 8  # defaults, chosen from the table in benchmarks/README.md
ENCODER_BITS = 8

# mlx-lm's recipes: bits of most layers, bits of the sensitive ones
RECIPES = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
# Of these, three eighths of the layers get more bits. mlx-lm names v_proj and compares by substring,
# so the fused qkv_proj is included there; here it is so on purpose, since it holds the values.
SENSITIVE = ("self_attn.qkv_proj", "mlp.down_proj")

# beginning of a name in ``Phi4`` (or, marked by a dot, a part of it) -> component, first match wins
COMPONENTS = (
    (".lora.vision.", "vision adapter"),
    (".lora.speech.", "speech adapter"),
    (".lora.", "other adapters"),
    ("vision_", "vision encoder and projector"),
    ("audio_", "audio encoder and projectors"),
    ("", "decoder"),
)
ORDER = ("decoder", *(name for _, name in COMPONENTS[:-1]))


def component(name: str) -> str:
    """The part of the model that a parameter belongs to, in words for people."""
    for mark, found in COMPONENTS:
        if (mark in name) if mark.startswith(".") else name.startswith(mark):
            return found
    raise AssertionError("the last mark is empty")


@dataclass(frozen=True)
class Rules:
    """The scheme of each component; None leaves it in the checkpoint's dtype."""

    decoder: Scheme | None = None
    adapters: Scheme | None = None
    encoders: Scheme | None = None
    recipe: str | None = None
    layers: int = 0

    @classmethod
    def of(
        cls,
        layers: int,
        q_bits: int | None = None,
        q_group_size: int | None = None,
        q_mode: str = "affine",
        quant_predicate: str | None = None,
        adapter_bits: int | None = None,
        encoder_bits: int | None = None,
    ) -> "Rules":
        """Rules from the options of ``convert``. Raises ConversionError for a bad one."""
        if quant_predicate is not None:
            if quant_predicate not in RECIPES:
                raise ConversionError(f"quant predicate is {quant_predicate!r}, expected {', '.join(RECIPES)}")
            if q_mode != "affine" or q_bits is not None:
                raise ConversionError(f"{quant_predicate} brings its own bits in mode affine; leave bits and mode out")
            q_bits = RECIPES[quant_predicate][0]
        decoder = Scheme.of(q_bits, q_group_size, q_mode)
        group_size = q_group_size if q_mode == "affine" else None
        return cls(
            decoder=decoder,
            adapters=_side_scheme("adapter", ADAPTER_BITS if adapter_bits is None else adapter_bits, group_size),
            encoders=_side_scheme("encoder", ENCODER_BITS if encoder_bits is None else encoder_bits, group_size),
            recipe=quant_predicate,
            layers=layers,
        )

    def scheme(self, path: str, shape: tuple[int, ...]) -> Scheme | None:
        """How to quantize the linear or embedding at ``path``, (rows, width); None: not at all.

        Raises ConversionError, with the tensor's name, if no group divides a decoder tensor's
        width: left as it is, it would make the model much larger than was asked for.
        """
        part = component(path)
        if part != "decoder":
            wanted = self.adapters if "adapter" in part else self.encoders
            return wanted and wanted.fit(shape[1])
        wanted = self._decoder_scheme(path)
        found = wanted and wanted.fit(shape[1])
        if wanted and not found:
            smallest = min(GROUP_SIZES[wanted.mode])
            raise ConversionError(
                f"{path}.weight {shape} cannot be quantized in mode {wanted.mode}: its width {shape[1]} is not a "
                f"multiple of {smallest}, the smallest group"
            )
        return found

    def padded(self, width: int) -> int:
        """The width that SigLIP's MLP gets, so that rows of ``fc2`` divide into groups.

        Zero rows of ``fc1`` give gelu(0) = 0, which meets zero columns of ``fc2``: the result
        stays the same. Published: 4304 = 67.25 * 64 becomes 4352.
        """
        if self.encoders is None or self.encoders.fit(width):
            return width
        return -(-width // self.encoders.group_size) * self.encoders.group_size

    def _decoder_scheme(self, path: str) -> Scheme | None:
        if self.recipe is None:
            return self.decoder
        found = re.match(r"model\.layers\.(\d+)\.(.+?)(\.base)?$", path)
        many = found and found[2] in SENSITIVE and _gets_more_bits(int(found[1]), self.layers)
        return Scheme(RECIPES[self.recipe][bool(many or path == "lm_head")], self.decoder.group_size)


def _gets_more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth and every third layer between them, as in mlx-lm and llama.cpp."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _side_scheme(what: str, bits: int, group_size: int | None) -> Scheme | None:
    if bits == UNQUANTIZED:
        return None
    if bits not in BITS["affine"]:
        known = ", ".join(map(str, sorted(BITS["affine"])))
        raise ConversionError(f"{what} bits are {bits}, expected {known}, or {UNQUANTIZED} to leave them as they are")
    return Scheme.of(bits, group_size)
