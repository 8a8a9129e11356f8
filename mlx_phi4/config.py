"""Typed configuration, checked on the way in: one form, whatever the published ``config.json`` looks like.

``checkpoint/config_readers.py`` fills it. Formulas: technical report arXiv 2503.01743, section 2, and the published
files.
"""

import math
from dataclasses import dataclass, field, fields

from .errors import ConfigError, PromptError

CROP_SIZE = 448  # pixels, side of a view
PATCH_SIZE = 14  # pixels, side of a patch
MEL_BINS = 80
TIME_REDUCTION = 8  # mel frames (of 10 ms) per encoder frame: three convolutions of stride 2
WINDOW_SECONDS = 40.0  # that the audio encoder sees at once: longer clips are cut into windows
OWN_SECTION = "mlx_phi4"  # marks a multimodal folder that this package wrote
CONVERSION_FORMAT = 1  # of what is written there; another number keeps old and new conversions apart

# No number of a configuration is beyond these, which are far from any model and from what arithmetic can hold
LARGEST = 1 << 24  # of sizes and counts: a product of two is no overflow
LARGEST_GROUP = 128  # weights that share a scale
LARGEST_HEAD = 1 << 16  # dimensions of a head, for which tables are made before tensors are looked at
SMALLEST_FLOAT, LARGEST_FLOAT = 1e-30, 1e30  # within float32


@dataclass(frozen=True)
class RopeConfig:
    """LongRoPE: two tables of ``dims / 2`` factors and one factor on cosine and sine."""

    dims: int
    theta: float
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    scale: float

    def __post_init__(self):
        _check_numbers("rope", self)
        if self.dims % 2:
            raise ConfigError(f"rope dims are {self.dims}, expected an even number: they turn in pairs")
        for name in ("short_factor", "long_factor"):
            count = len(getattr(self, name))
            if count != self.dims // 2:
                raise ConfigError(
                    f"rope {name} has {count} entries, expected {self.dims // 2} "
                    f"(half of the {self.dims} rotated dimensions of a head)"
                )
        factors = self.short_factor + self.long_factor
        if not (
            min(factors) * min(self.theta, 1) > SMALLEST_FLOAT and max(factors) * max(self.theta, 1) < LARGEST_FLOAT
        ):
            raise ConfigError(f"rope theta {self.theta} times its factors is beyond float32")


@dataclass(frozen=True)
class DecoderConfig:
    """The language model shared by all modes."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeConfig

    def __post_init__(self):
        _check_numbers("decoder", self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.rope.dims > self.head_dim:
            raise ConfigError(f"rope turns {self.rope.dims} dimensions, but a head has {self.head_dim}")
        if (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim > LARGEST:
            raise ConfigError(f"{self.num_attention_heads} heads of {self.head_dim} dimensions are beyond any tensor")


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP; the defaults are SigLIP-400M. The last layer is in checkpoints, but unused."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    layer_norm_eps: float = 1e-6

    def __post_init__(self):
        _check_numbers("vision", self)
        _check_heads("vision", self.hidden_size, self.num_attention_heads)
        if self.num_hidden_layers < 2:
            raise ConfigError(
                f"vision num_hidden_layers is {self.num_hidden_layers}, expected at least 2: "
                "features come from the last layer but one"
            )

    @property
    def used_layers(self) -> int:
        """Layers that are computed: features are the input of the last layer."""
        return self.num_hidden_layers - 1


@dataclass(frozen=True)
class AudioConfig:
    """The conformer; ``bias_rows`` is the height of its relative-position bias table."""

    hidden_size: int = 1024
    intermediate_size: int = 1536
    num_blocks: int = 24
    num_attention_heads: int = 16
    conv_channels: int = 1024
    kernel_size: int = 3
    bias_rows: int = 1000

    def __post_init__(self):
        _check_numbers("audio", self)
        _check_heads("audio", self.hidden_size, self.num_attention_heads)


@dataclass(frozen=True)
class LoRAConfig:
    """One adapter: its output is multiplied by ``alpha / rank``."""

    rank: int
    alpha: float

    def __post_init__(self):
        _check_numbers("LoRA", self)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Config:
    """All that is known of a checkpoint before its tensors are looked at.

    ``layout`` is ``microsoft``, ``transformers``, ``text`` or ``mlx_phi4`` (written by this
    package). ``quantization`` is the ecosystem's table from ``config.json``, or None. ``transcription`` says how
    recordings are best cut for this model: ``segment_seconds`` and ``pause``, where they are not the usual ones.
    ``added`` has the settings of modalities that came at run time, by kind.
    """

    layout: str
    decoder: DecoderConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    adapters: dict[str, LoRAConfig] = field(default_factory=dict)
    quantization: dict | None = None
    image_token_id: int | None = None
    audio_token_id: int | None = None
    transcription: dict[str, float] = field(default_factory=dict)
    added: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("image_token_id", "audio_token_id"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value <= LARGEST):
                raise ConfigError(f"{name} is {value!r}, expected a token id")
        for name, value in self.transcription.items():
            if name not in ("segment_seconds", "pause"):
                raise ConfigError(f"transcription has {name!r}, expected segment_seconds and pause")
            check_float(f"transcription {name}", value)

    @property
    def multimodal(self) -> bool:
        return self.vision is not None or self.audio is not None

    def check_multimodal(self) -> None:
        """Raises PromptError for a model that takes neither pictures nor recordings."""
        if not self.multimodal:
            raise PromptError("this model is text-only; pictures and recordings need Phi-4-multimodal")

    def check_hears(self) -> None:
        """Raises PromptError for a model that takes no recordings."""
        self.check_multimodal()
        if self.audio is None:
            raise PromptError("this model has no encoder for a recording")

    def check_sees(self) -> None:
        """Raises PromptError for a model that takes no pictures."""
        self.check_multimodal()
        if self.vision is None:
            raise PromptError("this model has no encoder for a picture")


def check_integer(what: str, value) -> None:
    """Raises ConfigError unless it is an integer from 1 to LARGEST; true is none."""
    if type(value) is not int or value < 1:
        raise ConfigError(f"{what} is {value!r}, expected a positive int")
    if value > LARGEST:
        raise ConfigError(f"{what} is {value!r}, expected at most {LARGEST}")


def check_float(what: str, value) -> None:
    """Raises ConfigError unless it is a positive number that float32 holds; true is none."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ConfigError(f"{what} is {value!r}, expected a positive float")
    if not SMALLEST_FLOAT <= value <= LARGEST_FLOAT:
        raise ConfigError(f"{what} is {value!r}, expected {SMALLEST_FLOAT:g} to {LARGEST_FLOAT:g}")


def _check_numbers(what: str, config) -> None:
    """Every integer and every float of a configuration must be one, positive and of a sane size."""
    checks = {int: check_integer, float: check_float}
    for entry in fields(config):
        if entry.type in checks:
            checks[entry.type](f"{what} {entry.name}", getattr(config, entry.name))


def _check_heads(what: str, hidden: int, heads: int) -> None:
    if hidden % heads:
        raise ConfigError(f"{what} hidden_size {hidden} is not a multiple of its {heads} heads")
