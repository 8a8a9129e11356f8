"""The ``config.json`` of a converted folder.

Text models keep the published ``phi3`` form, which the ecosystem reads. Multimodal ones take
Microsoft's ``phi4mm`` form, whichever layout they come from, with one section more.
"""

from ..checkpoint.config_readers import config_from_dict
from ..checkpoint.weights import FLOAT_DTYPES
from ..config import CONVERSION_FORMAT, MEL_BINS, OWN_SECTION, TIME_REDUCTION, AudioConfig, Config

# code is never fetched nor run; the tables are written anew; a path on someone's machine is of no use
DROPPED = ("auto_map", "quantization", "quantization_config", "_name_or_path", "audio_config", "vision_config")


def dtype_name(raw: dict) -> str | None:
    """The dtype that a published configuration names, as Transformers 4 or 5 spell it."""
    found = str(raw.get("torch_dtype") or raw.get("dtype")).removeprefix("torch.")
    return found if found in FLOAT_DTYPES else None


def output_config(raw: dict, config: Config, table: dict | None, dtype: str | None) -> dict:
    """The converted ``config.json`` from the published one.

    Args:
        raw: the published dictionary.
        config: what was read from it, with the widths of the output.
        table: the quantization table, or None.
        dtype: of what is not quantized; None leaves what the published one says.
    """
    made = {key: value for key, value in raw.items() if key not in DROPPED and key != "dtype"}
    if dtype:
        made["torch_dtype"] = dtype
    if config.layout == "text":
        made |= _text_rope(made)
    else:
        made |= _multimodal(raw, config)
    if table:
        made["quantization"] = table
        if config.layout == "text":
            made["quantization_config"] = table  # under both names, as mlx-lm writes it
    return made


def _text_rope(raw: dict) -> dict:
    """``rope_scaling`` as mlx-lm's phi3 wants it, where Transformers 5 wrote ``rope_parameters``."""
    table = raw.get("rope_parameters")
    if not table or raw.get("rope_scaling") or "long_factor" not in table:
        return {}
    scaling = {"type": "longrope"} | {key: table[key] for key in ("short_factor", "long_factor")}
    moved = {key: table[key] for key in ("rope_theta", "partial_rotary_factor") if key in table and key not in raw}
    return {"rope_scaling": scaling} | moved


def _multimodal(raw: dict, config: Config) -> dict:
    own = {"format": CONVERSION_FORMAT}
    if config.vision is None:  # as it was published: the reader finds that its tensors are not there
        return {OWN_SECTION: own}
    before = (raw.get(OWN_SECTION) or {}).get("vision_intermediate_size")
    published = before or _published_vision_width(raw, config)
    if published != config.vision.intermediate_size:
        own["vision_intermediate_size"] = published  # before zeros were added to divide into groups
    made = {"img_processor": dict(vars(config.vision))}
    if config.layout == "transformers":
        made |= _microsoft_form(config)
    return made | {OWN_SECTION: own}


def _published_vision_width(raw: dict, config: Config) -> int:
    """As the reader of ``config.json`` finds it."""
    return config_from_dict(raw).vision.intermediate_size


def _microsoft_form(config: Config) -> dict:
    """What Transformers' layout says elsewhere or in other words."""
    made = {
        "architectures": ["Phi4MMForCausalLM"],
        "model_type": "phi4mm",
        "audio_processor": {"name": "cascades", "config": _audio(config.audio)},
        "image_token_id": config.image_token_id,
        "audio_token_id": config.audio_token_id,
    }
    for name, lora in config.adapters.items():
        made[f"{name}_lora"] = {"r": lora.rank, "lora_alpha": lora.alpha}
    return {key: value for key, value in made.items() if value is not None}


def _audio(audio: AudioConfig) -> dict:
    return {
        "attention_dim": audio.hidden_size,
        "attention_heads": audio.num_attention_heads,
        "linear_units": audio.intermediate_size,
        "num_blocks": audio.num_blocks,
        "kernel_size": audio.kernel_size,
        "causal": True,
        "depthwise_multiplier": 1,
        "depthwise_seperable_out_channel": audio.hidden_size,  # the published spelling
        "ext_pw_out_channel": audio.hidden_size,
        "input_size": MEL_BINS,
        "time_reduction": TIME_REDUCTION,
        "nemo_conv_settings": {"conv_channels": audio.conv_channels},
        "relative_attention_bias_args": {"t5_bias_max_distance": audio.bias_rows // 2, "type": "t5"},
    }
