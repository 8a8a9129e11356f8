"""Typed configuration, read from any published ``config.json`` and checked on the way in.

The three published forms (Microsoft's ``phi4mm``, Transformers' ``phi4_multimodal`` and the text
models' ``phi3``) say the same things under different names; everything behind this module sees
one form. Formulas: technical report arXiv 2503.01743, section 2, and the published files.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigError

CROP_SIZE = 448  # pixels, side of a view
PATCH_SIZE = 14  # pixels, side of a patch
MEL_BINS = 80
TIME_REDUCTION = 8  # mel frames per encoder frame: three convolutions of stride 2
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
        _check_heads("audio", self.hidden_size, self.num_attention_heads)


@dataclass(frozen=True)
class LoRAConfig:
    """One adapter: its output is multiplied by ``alpha / rank``."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Config:
    """All that is known of a checkpoint before its tensors are looked at.

    ``layout`` is ``microsoft``, ``transformers``, ``text`` or ``mlx_phi4`` (written by this
    package). ``quantization`` is the ecosystem's table from ``config.json``, or None.
    """

    layout: str
    decoder: DecoderConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    adapters: dict[str, LoRAConfig] = field(default_factory=dict)
    quantization: dict | None = None
    image_token_id: int | None = None
    audio_token_id: int | None = None

    @property
    def multimodal(self) -> bool:
        return self.vision is not None

    @classmethod
    def from_folder(cls, folder: Path) -> "Config":
        """Read ``config.json`` of a checkpoint folder. Raises ConfigError."""
        raw = read_json(folder / "config.json")
        try:
            return cls.from_dict(raw, folder)
        except ConfigError as error:
            raise ConfigError(f"{folder / 'config.json'}: {error}") from None

    @classmethod
    def from_dict(cls, raw: dict, folder: Path | None = None) -> "Config":
        """Build from a published dictionary; ``folder`` holds the adapters of layout 2."""
        readers = {"phi4mm": _microsoft, "phi4_multimodal": _transformers, "phi3": _text}
        model_type = raw.get("model_type")
        if model_type not in readers:
            raise ConfigError(f"model_type is {model_type!r}, expected one of {', '.join(map(repr, readers))}")
        return cls(
            decoder=_decoder(raw),
            quantization=raw.get("quantization") or raw.get("quantization_config"),
            **readers[model_type](raw, folder),
        )


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises ConfigError with the file's name."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, expected an object")
    return raw


def _decoder(raw: dict) -> DecoderConfig:
    (hidden, intermediate, layers, heads, vocab) = _need(
        raw,
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    )
    head_dim = raw.get("head_dim") or hidden // heads
    return DecoderConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        max_position_embeddings=int(raw.get("max_position_embeddings", 131072)),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        rope=_rope(raw, head_dim),
    )


def _rope(raw: dict, head_dim: int) -> RopeConfig:
    """Both spellings: ``rope_scaling`` (published) and ``rope_parameters`` (Transformers 5)."""
    table = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = table.get("rope_type") or table.get("type") or "default"
    if kind not in ("longrope", "su", "default"):
        raise ConfigError(f"rope type is {kind!r}, expected 'longrope'")
    fraction = table.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    dims = int(head_dim * fraction)
    maximum = int(raw.get("max_position_embeddings", 131072))
    original = int(
        raw.get("original_max_position_embeddings")
        or table.get("original_max_position_embeddings")
        or (4096 if kind != "default" else maximum)
    )
    if kind == "default":
        short = long = (1.0,) * (dims // 2)
        scale = 1.0
    else:
        short, long = (tuple(map(float, f)) for f in _need(table, "short_factor", "long_factor"))
        ratio = table.get("factor") or maximum / original
        scale = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
        scale = float(table.get("attention_factor") or scale)
    theta = float(table.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    return RopeConfig(dims, theta, short, long, original, scale)


def _microsoft(raw: dict, folder: Path | None) -> dict:
    """``phi4mm``: vision sizes only in reduced checkpoints, under ``img_processor``."""
    vision = raw.get("img_processor") or raw.get("embd_layer", {}).get("image_embd_layer", {}).get("img_processor")
    audio = _need(raw, "audio_processor")[0].get("config", {})
    hidden, width, blocks, heads = _need(audio, "attention_dim", "linear_units", "num_blocks", "attention_heads")
    for name, expected in (
        ("input_size", MEL_BINS),
        ("time_reduction", TIME_REDUCTION),
        ("depthwise_multiplier", 1),
        ("causal", True),
        ("ext_pw_out_channel", hidden),
        ("depthwise_seperable_out_channel", hidden),
    ):
        _expect(audio, name, expected)
    distance = audio.get("relative_attention_bias_args", {}).get("t5_bias_max_distance", 500)
    return {
        "layout": OWN_SECTION if OWN_SECTION in raw else "microsoft",
        "vision": VisionConfig(**_keep(vision or {}, VisionConfig)),
        "audio": AudioConfig(
            hidden_size=hidden,
            intermediate_size=width,
            num_blocks=blocks,
            num_attention_heads=heads,
            conv_channels=audio.get("nemo_conv_settings", {}).get("conv_channels", hidden),
            kernel_size=audio.get("kernel_size", 3),
            bias_rows=2 * distance,
        ),
        "adapters": {
            name: LoRAConfig(*_need(_need(raw, f"{name}_lora")[0], "r", "lora_alpha")) for name in ("vision", "speech")
        },
    }


def _transformers(raw: dict, folder: Path | None) -> dict:
    """``phi4_multimodal``: the adapters' ranks stand in their own folders."""
    vision, audio = raw.get("vision_config") or {}, raw.get("audio_config") or {}
    for name, expected in (
        ("feature_layer", -2),
        ("crop_size", CROP_SIZE),
        ("image_size", CROP_SIZE),
        ("patch_size", PATCH_SIZE),
    ):
        _expect(vision, name, expected)
    hidden = audio.get("hidden_size", AudioConfig.hidden_size)
    for name, expected in (
        ("input_size", MEL_BINS),
        ("time_reduction", TIME_REDUCTION),
        ("depthwise_multiplier", 1),
        ("downsample_rate", 1),
        ("bias_symmetric", False),
        ("ext_pw_out_channel", hidden),
        ("depthwise_separable_out_channel", hidden),
    ):
        _expect(audio, name, expected)
    distance = audio.get("bias_max_distance", 1000)
    return {
        "layout": "transformers",
        "vision": VisionConfig(**_keep(vision, VisionConfig)),
        "audio": AudioConfig(
            **_keep(audio, AudioConfig)
            | {"conv_channels": audio.get("nemo_conv_channels", 1024), "bias_rows": 2 * distance}
        ),
        "adapters": _adapter_folders(folder) if folder else {},
        "image_token_id": raw.get("image_token_id") or vision.get("image_token_id"),
        "audio_token_id": raw.get("audio_token_id") or audio.get("audio_token_id"),
    }


def _adapter_folders(folder: Path) -> dict[str, LoRAConfig]:
    adapters = {}
    for name in ("vision", "speech"):
        raw = read_json(folder / f"{name}-lora" / "adapter_config.json")
        if raw.get("use_rslora") or raw.get("use_dora") or raw.get("bias", "none") != "none":
            raise ConfigError(f"{name}-lora uses a LoRA variant (rslora, dora or bias) unsupported")
        adapters[name] = LoRAConfig(*_need(raw, "r", "lora_alpha"))
    return adapters


def _text(raw: dict, folder: Path | None) -> dict:
    # Phi-3.5 has its own head, tokenizer and prompt format under the same model_type.
    if not raw.get("tie_word_embeddings", False):
        raise ConfigError(
            "a phi3 model with an untied output head (Phi-3, Phi-3.5) is not supported: "
            "its prompt format differs from Phi-4-mini's"
        )
    return {"layout": "text"}


def _check_heads(what: str, hidden: int, heads: int) -> None:
    if hidden % heads:
        raise ConfigError(f"{what} hidden_size {hidden} is not a multiple of its {heads} heads")


def _need(raw: dict, *names: str) -> list:
    missing = [name for name in names if raw.get(name) is None]
    if missing:
        raise ConfigError(f"lacks {', '.join(missing)}")
    return [raw[name] for name in names]


def _expect(raw: dict, name: str, expected) -> None:
    if raw.get(name, expected) != expected:
        raise ConfigError(f"{name} is {raw[name]!r}, only {expected!r} is supported")


def _keep(raw: dict, kind: type) -> dict:
    return {k: v for k, v in raw.items() if k in kind.__dataclass_fields__ and v is not None}
