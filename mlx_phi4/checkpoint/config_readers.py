"""``config.json`` in its three published forms: Microsoft's ``phi4mm``, Transformers' ``phi4_multimodal``, ``phi3``.

They say the same things under different names. A reader takes the dictionary (and the folder, where adapters may lie
beside the shards) and gives ``Config``'s fields. What would change the numbers and is not supported is refused by name.
"""

import math
from pathlib import Path

from ..config import (
    CONVERSION_FORMAT,
    CROP_SIZE,
    LARGEST_GROUP,
    LARGEST_HEAD,
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
    check_float,
    check_integer,
)
from ..errors import ConfigError
from ..files import read_json
from .fields import either, expect, keep, need, object_in


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
        config = Config(
            decoder=_decoder(raw),
            quantization=quantization_table(raw),
            transcription=object_in(raw, "transcription"),
            **READERS[model_type](raw, folder),
        )
        _check_own_section(raw, config.vision)
        return config
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, KeyError) as error:
        # an object where a number belongs, or the other way round
        raise ConfigError(f"a value has the wrong kind: {error}") from None


def quantization_table(raw: dict) -> dict | None:
    """The ecosystem's table under either of its names, None if there is none. Raises ConfigError."""
    return object_in(raw, "quantization") or object_in(raw, "quantization_config") or None


def _check_own_section(raw: dict, vision: VisionConfig | None) -> None:
    """What this package wrote, in the one form that it knows."""
    if OWN_SECTION not in raw:
        return
    own = raw[OWN_SECTION]
    found = own.get("format") if isinstance(own, dict) else own
    if type(found) is not int or found != CONVERSION_FORMAT:
        raise ConfigError(f"{OWN_SECTION} format is {found!r}, this version of the package reads {CONVERSION_FORMAT}")
    name = "vision_intermediate_size"  # as published, before zeros filled up the last group
    if vision and name in own:
        check_integer(f"{OWN_SECTION} {name}", own[name])
        if not 0 <= vision.intermediate_size - own[name] < LARGEST_GROUP:
            raise ConfigError(f"{OWN_SECTION} {name} is {own[name]}, but {vision.intermediate_size} without it")


def _decoder(raw: dict) -> DecoderConfig:
    """The decoder, which all three forms describe alike. Raises ConfigError."""
    (hidden, intermediate, layers, heads, vocab) = need(
        raw,
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    )
    maximum = either(raw, "max_position_embeddings", 131072)
    positive = {"hidden_size": hidden, "num_attention_heads": heads, "max_position_embeddings": maximum}
    for name, value in positive.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name} is {value!r}, expected a positive integer")
    expect(raw, "hidden_act", "silu")
    if raw.get("sliding_window") is not None and raw["sliding_window"] < maximum:
        raise ConfigError(f"sliding_window is {raw['sliding_window']}: windows within the context are not supported")
    head_dim = either(raw, "head_dim", hidden // heads)
    check_integer("head_dim", head_dim)
    if head_dim > LARGEST_HEAD:
        raise ConfigError(f"head_dim is {head_dim}, expected at most {LARGEST_HEAD}")
    return DecoderConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=either(raw, "num_key_value_heads", heads),
        head_dim=head_dim,
        rms_norm_eps=either(raw, "rms_norm_eps", 1e-5),
        max_position_embeddings=maximum,
        tie_word_embeddings=_tied(raw),
        rope=_rope(raw, head_dim, maximum),
    )


def _rope(raw: dict, head_dim: int, maximum: int) -> RopeConfig:
    """Both spellings: ``rope_scaling`` (published) and ``rope_parameters`` (Transformers 5)."""
    table = object_in(raw, "rope_parameters") or object_in(raw, "rope_scaling")
    kind = table.get("rope_type") or table.get("type") or "default"
    if kind not in ("longrope", "su", "default"):
        raise ConfigError(f"rope type is {kind!r}, expected 'longrope'")
    fraction = either(table, "partial_rotary_factor", either(raw, "partial_rotary_factor", 1.0))
    check_float("partial_rotary_factor", fraction)
    if fraction > 1:
        raise ConfigError(f"partial_rotary_factor is {fraction}, expected at most 1")
    dims = int(head_dim * fraction)
    name = "original_max_position_embeddings"
    original = either(raw, name, either(table, name, maximum if kind == "default" else 4096))
    if type(original) is not int or original < 2:
        raise ConfigError(f"{name} is {original!r}, expected at least 2")
    if kind == "default":
        short = long = (1.0,) * (dims // 2)
        scale = 1.0
    else:
        short, long = (_factors(table, name) for name in ("short_factor", "long_factor"))
        ratio = either(table, "factor", maximum / original)
        check_float("rope factor", ratio)
        scale = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
        scale = _float("attention_factor", either(table, "attention_factor", scale))
    theta = _float("rope_theta", either(table, "rope_theta", either(raw, "rope_theta", 10000.0)))
    return RopeConfig(dims, theta, short, long, original, scale)


def _factors(table: dict, name: str) -> tuple[float, ...]:
    factors = need(table, name)[0]
    if not isinstance(factors, list):
        raise ConfigError(f"rope {name} is {factors!r}, expected a list of numbers")
    return tuple(_float(f"a rope {name}", factor) for factor in factors)


def _float(what: str, value) -> float:
    check_float(what, value)
    return float(value)


def _tied(raw: dict) -> bool:
    tied = either(raw, "tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise ConfigError(f"tie_word_embeddings is {tied!r}, expected true or false")
    return tied


def _microsoft(raw: dict, folder: Path | None) -> dict:
    """``phi4mm``: vision sizes only in reduced checkpoints, under ``img_processor``."""
    vision = raw.get("img_processor") or raw.get("embd_layer", {}).get("image_embd_layer", {}).get("img_processor")
    audio = need(raw, "audio_processor")[0].get("config", {})
    hidden, width, blocks, heads = need(audio, "attention_dim", "linear_units", "num_blocks", "attention_heads")
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
        expect(audio, name, expected)
    distance = audio.get("relative_attention_bias_args", {}).get("t5_bias_max_distance", 500)
    check_integer("t5_bias_max_distance", distance)
    return {
        "layout": OWN_SECTION if OWN_SECTION in raw else "microsoft",
        "vision": VisionConfig(**keep(vision or {}, VisionConfig)),
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
            name: LoRAConfig(*need(need(raw, f"{name}_lora")[0], "r", "lora_alpha")) for name in ("vision", "speech")
        },
        "image_token_id": raw.get("image_token_id"),
        "audio_token_id": raw.get("audio_token_id"),
    }


def _transformers(raw: dict, folder: Path | None) -> dict:
    """``phi4_multimodal``: the adapters' ranks stand in their own folders."""
    vision, audio = object_in(raw, "vision_config"), object_in(raw, "audio_config")
    for name, expected in (
        ("feature_layer", -2),
        ("hidden_act", "gelu_pytorch_tanh"),
        ("crop_size", CROP_SIZE),
        ("image_size", CROP_SIZE),
        ("patch_size", PATCH_SIZE),
    ):
        expect(vision, name, expected)
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
        expect(audio, name, expected)
    distance = audio.get("bias_max_distance", 1000)
    check_integer("bias_max_distance", distance)
    return {
        "layout": "transformers",
        "vision": VisionConfig(**keep(vision, VisionConfig)),
        "audio": AudioConfig(
            **keep(audio, AudioConfig)
            | {"conv_channels": audio.get("nemo_conv_channels", 1024), "bias_rows": 2 * distance}
        ),
        "adapters": _adapter_folders(folder) if folder else {},
        "image_token_id": either(raw, "image_token_id", vision.get("image_token_id")),
        "audio_token_id": either(raw, "audio_token_id", audio.get("audio_token_id")),
    }


def _adapter_folders(folder: Path) -> dict[str, LoRAConfig]:
    adapters = {}
    for name in ("vision", "speech"):
        raw = read_json(folder / f"{name}-lora" / "adapter_config.json")
        plain = {"use_rslora": False, "use_dora": False, "bias": "none", "fan_in_fan_out": False}
        for option, expected in (plain | {"rank_pattern": {}, "alpha_pattern": {}}).items():
            expect({option: raw.get(option) or expected}, option, expected)
        adapters[name] = LoRAConfig(*need(raw, "r", "lora_alpha"))
    return adapters


def _text(raw: dict, folder: Path | None) -> dict:
    # Phi-3.5 has its own head, tokenizer and prompt format under the same model_type.
    if not _tied(raw):
        raise ConfigError(
            "a phi3 model with an untied output head (Phi-3, Phi-3.5) is not supported: "
            "its prompt format differs from Phi-4-mini's"
        )
    return {"layout": "text"}


READERS = {"phi4mm": _microsoft, "phi4_multimodal": _transformers, "phi3": _text}
