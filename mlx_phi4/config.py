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
        for name in ("short_factor", "long_factor"):
            count = len(getattr(self, name))
            if count != self.dims // 2:
                raise ConfigError(
                    f"rope {name} has {count} entries, expected {self.dims // 2} "
                    f"(half of the {self.dims} rotated dimensions of a head)"
                )


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

    @property
    def multimodal(self) -> bool:
        return self.vision is not None

    def check_multimodal(self) -> None:
        """Raises PromptError for a model that takes neither pictures nor recordings."""
        if not self.multimodal:
            raise PromptError("this model is text-only; pictures and recordings need Phi-4-multimodal")


def _check_numbers(what: str, config) -> None:
    """Every integer and every float of a configuration must be one, and positive."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        kinds = {int: (int,), float: (int, float)}.get(entry.type)
        if kinds and (type(value) not in kinds or not 0 < value < math.inf):
            raise ConfigError(f"{what} {entry.name} is {value!r}, expected a positive {entry.type.__name__}")


def _check_heads(what: str, hidden: int, heads: int) -> None:
    if hidden % heads:
        raise ConfigError(f"{what} hidden_size {hidden} is not a multiple of its {heads} heads")
