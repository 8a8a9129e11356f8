"""``config.json`` in its three published forms: Microsoft's ``phi4mm``, Transformers' ``phi4_multimodal``, ``phi3``.

They say the same things under different names. A reader takes the dictionary (and the folder, where adapters may lie
beside the shards) and gives ``Config``'s fields. What would change the numbers and is not supported is refused by name.
"""

import math
from pathlib import Path

from ..config import (
    CROP_SIZE,
    MEL_BINS,
    OWN_SECTION,
    PATCH_SIZE,
    TIME_REDUCTION,
    AudioConfig,
    Config,
    DecoderConfig,
    LoRAConfig,
    RopeConfig,
    VisionConfig,
)
from ..errors import ConfigError
from ..files import read_json


def read_config(folder: Path) -> Config:
    """The configuration of a checkpoint folder. Raises ConfigError."""
    return config_from_dict(read_json(folder / "config.json"), folder)


def config_from_dict(raw: dict, folder: Path | None = None) -> Config:
    """Build from a published dictionary.

    Args:
        raw: the contents of ``config.json``.
        folder: where it comes from, named in errors; it holds the adapters of Transformers' layout. None: they are
            left out.

    Raises:
        ConfigError: something is missing, of the wrong kind or not supported.
    """
    try:
        return _config(raw, folder)
    except ConfigError as error:
        if folder is None:
            raise
        raise ConfigError(f"{folder / 'config.json'}: {error}") from None


def _config(raw: dict, folder: Path | None) -> Config:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in READERS:
        raise ConfigError(f"model_type is {model_type!r}, expected one of {', '.join(map(repr, READERS))}")
    try:
        return Config(
            decoder=_decoder(raw),
            quantization=raw.get("quantization") or raw.get("quantization_config"),
            transcription={name: float(value) for name, value in (raw.get("transcription") or {}).items()},
            **READERS[model_type](raw, folder),
        )
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, KeyError) as error:
        # an object where a number belongs, or the other way round
        raise ConfigError(f"a value has the wrong kind: {error}") from None


def _decoder(raw: dict) -> DecoderConfig:
    """The decoder, which all three forms describe alike. Raises ConfigError."""
    (hidden, intermediate, layers, heads, vocab) = _need(
        raw,
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    )
    maximum = raw.get("max_position_embeddings", 131072)
    positive = {"hidden_size": hidden, "num_attention_heads": heads, "max_position_embeddings": maximum}
    for name, value in positive.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name} is {value!r}, expected a positive integer")
    _expect(raw, "hidden_act", "silu")
    if raw.get("sliding_window") is not None and raw["sliding_window"] < maximum:
        raise ConfigError(f"sliding_window is {raw['sliding_window']}: windows within the context are not supported")
    head_dim = raw.get("head_dim") or hidden // heads
    return DecoderConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
        max_position_embeddings=maximum,
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
    usual = maximum if kind == "default" else 4096
    name = "original_max_position_embeddings"
    original = int(raw.get(name) if raw.get(name) is not None else table.get(name, usual))
    if original < 2:
        raise ConfigError(f"original_max_position_embeddings is {original}, expected at least 2")
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
        ("activation", "swish"),
        ("conv_activation", "swish"),
        ("conv_glu_type", "swish"),
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
        "image_token_id": raw.get("image_token_id"),
        "audio_token_id": raw.get("audio_token_id"),
    }


def _transformers(raw: dict, folder: Path | None) -> dict:
    """``phi4_multimodal``: the adapters' ranks stand in their own folders."""
    vision, audio = raw.get("vision_config") or {}, raw.get("audio_config") or {}
    for name, expected in (
        ("feature_layer", -2),
        ("hidden_act", "gelu_pytorch_tanh"),
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
        ("activation", "swish"),
        ("conv_activation", "swish"),
        ("conv_glu_type", "swish"),
        ("nemo_activation", "relu"),
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
        plain = {"use_rslora": False, "use_dora": False, "bias": "none", "fan_in_fan_out": False}
        for option, expected in (plain | {"rank_pattern": {}, "alpha_pattern": {}}).items():
            _expect({option: raw.get(option) or expected}, option, expected)
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


READERS = {"phi4mm": _microsoft, "phi4_multimodal": _transformers, "phi3": _text}
