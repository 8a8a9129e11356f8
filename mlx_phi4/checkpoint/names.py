"""Tensor names and axes of the published layouts, as data: published name -> name in ``Phi4``.

``#`` stands for a layer number; None names what is dropped on purpose. Sources: the tensor lists
of microsoft/Phi-4-multimodal-instruct (Microsoft's and Transformers' revisions) and
microsoft/Phi-4-mini-instruct.
"""

import re

import mlx.core as mx

ADAPTERS = ("vision", "speech")
DECODER_LINEARS = (
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "mlp.gate_up_proj",
    "mlp.down_proj",
)
_LAYER = "model.layers.#."
_IMAGE = "model.embed_tokens_extend.image_embed."
_SIGLIP = _IMAGE + "img_processor."
_AUDIO = "model.embed_tokens_extend.audio_embed."


def _weight_and_bias(pairs: dict[str, str | None]) -> dict[str, str | None]:
    return {f"{old}.{kind}": new and f"{new}.{kind}" for old, new in pairs.items() for kind in ("weight", "bias")}


def _moved(old: str, new: str, names: list[str]) -> dict[str, str]:
    return {old + name: new + name for name in names}


_DECODER = {
    "model.embed_tokens.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    _LAYER + "input_layernorm.weight": _LAYER + "input_layernorm.weight",
    _LAYER + "post_attention_layernorm.weight": _LAYER + "post_attention_layernorm.weight",
}

TEXT = _DECODER | {
    f"{_LAYER}{linear}.{part}": f"{_LAYER}{linear}.base.{part}"
    for linear in DECODER_LINEARS
    for part in ("weight", "scales", "biases")  # the last two in quantized folders
}
TEXT |= {f"model.embed_tokens.{part}": f"model.embed_tokens.{part}" for part in ("scales", "biases")}

# One adapter of layout 2, from PEFT; {name} is the adapter
PEFT = {
    f"{_LAYER}{linear}.{old}.weight": f"{_LAYER}{linear}.lora.{{name}}.{new}.weight"
    for linear in DECODER_LINEARS
    for old, new in (("lora_A", "down"), ("lora_B", "up"))
}

# Parts that both multimodal layouts name alike
_ENCODERS = (
    _weight_and_bias(
        _moved(_SIGLIP, "vision_encoder.", ["embeddings.patch_embedding"])
        | _moved(
            _SIGLIP + "encoder.layers.#.",
            "vision_encoder.layers.#.",
            ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
            + [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")],
        )
        | dict.fromkeys(
            # the pooling head serves SigLIP's own training, not the features
            _SIGLIP + name
            for name in (
                "post_layernorm",
                "head.attention.out_proj",
                "head.layernorm",
                "head.mlp.fc1",
                "head.mlp.fc2",
            )
        )
        | _moved(
            _AUDIO + "encoder.",
            "audio_encoder.",
            [f"embed.conv.{i}" for i in (0, 2, 3, 5, 6)] + ["embed.out"],
        )
        | _moved(
            _AUDIO + "encoder.encoders.#.",
            "audio_encoder.encoders.#.",
            [
                "feed_forward_in.layer_norm",
                "feed_forward_out.layer_norm",
                "layer_norm_att",
                "layer_norm",
                "conv.layer_norm",
                "conv.glu.ext_pw_conv_1d",
                "conv.dw_sep_conv_1d.dw_conv",
                "conv.dw_sep_conv_1d.pw_conv",
                "conv.ext_pw_conv_1d",
            ],
        )
    )
    | _moved(_SIGLIP, "vision_encoder.", ["embeddings.position_embedding.weight"])
    | dict.fromkeys(f"{_SIGLIP}head.{name}" for name in ("probe", "attention.in_proj_weight", "attention.in_proj_bias"))
    | _moved(
        _AUDIO + "encoder.",
        "audio_encoder.",
        [
            "encoder_embedding.global_mean",
            "encoder_embedding.global_invstd",
            "relative_attention_bias_layer.bias_values.weight",
            "encoders.#.conv.glu.b1",
            "encoders.#.conv.glu.b2",
        ],
    )
)

MICROSOFT = (
    _DECODER
    | _ENCODERS
    | {f"{_LAYER}{linear}.base_layer.weight": f"{_LAYER}{linear}.base.weight" for linear in DECODER_LINEARS}
    | {
        old.replace(".weight", f".{name}.weight"): new.format(name=name)
        for name in ADAPTERS
        for old, new in PEFT.items()
    }
    | _moved(_IMAGE, "vision_projector.", ["sub_GN", "glb_GN"])
    | _weight_and_bias(
        {
            _IMAGE + "img_projection.0": "vision_projector.up",
            _IMAGE + "img_projection.2": "vision_projector.down",
        }
        | {
            f"{_AUDIO}audio_projection.{name}.{old}": f"audio_projectors.{name}.{new}"
            for name in ("speech", "vision")
            for old, new in (("0", "up"), ("2", "down"))
        }
        | {
            f"{_AUDIO}encoder.encoders.#.{side}.net.{old}": f"audio_encoder.encoders.#.{side}.{new}"
            for side in ("feed_forward_in", "feed_forward_out")
            for old, new in (("0.linear", "gate_up_proj"), ("2", "down_proj"))
        }
        | {
            f"{_AUDIO}encoder.encoders.#.self_attn.linear_{old}": (f"audio_encoder.encoders.#.self_attn.{new}")
            for old, new in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj"))
        }
    )
)

TRANSFORMERS = (
    _DECODER
    | _ENCODERS
    | {f"{_LAYER}{linear}.weight": f"{_LAYER}{linear}.base.weight" for linear in DECODER_LINEARS}
    | {
        _IMAGE + "sub_img_feature_extensor": "vision_projector.sub_GN",
        _IMAGE + "global_img_feature_extensor": "vision_projector.glb_GN",
    }
    | _weight_and_bias(
        {f"{_IMAGE}img_projection_{new}": f"vision_projector.{new}" for new in ("up", "down")}
        | {
            f"{_AUDIO}{part}_proj_for_{old}": f"audio_projectors.{name}.{part}"
            for part in ("up", "down")
            for old, name in (("speech", "speech"), ("vision_speech", "vision"))
        }
        | _moved(
            _AUDIO + "encoder.encoders.#.",
            "audio_encoder.encoders.#.",
            [f"feed_forward_{side}.{part}_proj" for side in ("in", "out") for part in ("gate_up", "down")]
            + [f"self_attn.{part}_proj" for part in ("q", "k", "v", "o")],
        )
    )
)

TABLES = {"microsoft": MICROSOFT, "transformers": TRANSFORMERS, "text": TEXT}

_NUMBER = re.compile(r"\b(layers|encoders)\.(\d+)\.")


def rename(name: str, table: dict[str, str | None]) -> str | None:
    """Look a published name up; None if it is dropped. Raises KeyError for an unknown name."""
    found = _NUMBER.search(name)
    if not found:
        return table[name]
    new = table[_NUMBER.sub(r"\1.#.", name)]
    return new and new.replace("#", found.group(2))


# ending of the new name -> how many axes the published tensor has, and which of them make MLX's (channels last, 1x1
# convolutions as linears); the others have one element
_AXES = {
    "patch_embedding.weight": (4, (0, 2, 3, 1)),  # (D, 3, 14, 14)
    "embed.conv.0.weight": (4, (0, 2, 3, 1)),  # (C, 1, 3, 3)
    "embed.conv.2.weight": (4, (0, 2, 3, 1)),
    "embed.conv.5.weight": (4, (0, 2, 3, 1)),
    "embed.conv.3.weight": (4, (0, 1)),  # (C, C, 1, 1)
    "embed.conv.6.weight": (4, (0, 1)),
    "dw_conv.weight": (3, (0, 2, 1)),  # (D, 1, 3)
    "pw_conv.weight": (3, (0, 1)),  # (D, D, 1)
    "ext_pw_conv_1d.weight": (3, (0, 1)),
    "glu.b1": (3, (1,)),  # (1, D, 1)
    "glu.b2": (3, (1,)),
    "sub_GN": (4, (3,)),  # (1, 1, 1, D)
    "glb_GN": (3, (2,)),  # (1, 1, D)
}


def mlx_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of ``Phi4``'s parameter ``name`` from that of the published tensor; None if it cannot be had."""
    count, kept = _axes(name, len(shape))
    if len(shape) != count or any(size != 1 for axis, size in enumerate(shape) if axis not in kept):
        return None
    return tuple(shape[axis] for axis in kept)


def to_mlx_axes(name: str, weight: mx.array) -> mx.array:
    """Change a published tensor's axes to those of ``Phi4``'s parameter ``name``, lazily."""
    count, kept = _axes(name, weight.ndim)
    if kept == tuple(range(weight.ndim)):
        return weight
    dropped = (axis for axis in range(count) if axis not in kept)
    return weight.transpose(*kept, *dropped).reshape(mlx_shape(name, weight.shape))


def _axes(name: str, count: int) -> tuple[int, tuple[int, ...]]:
    return next((axes for ending, axes in _AXES.items() if name.endswith(ending)), (count, tuple(range(count))))
