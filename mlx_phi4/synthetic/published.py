"""Names and shapes of every tensor in the three published checkpoint layouts, as data.

Canonical names are those of Microsoft's multimodal repository (layout "microsoft"); the other two layouts hold the
same tensors under other names (`RENAMES`). With `SIZES["full"]` the lists equal the published ones exactly.
"""

import re
from dataclasses import dataclass

LAYOUTS = ("microsoft", "transformers", "text")
ADAPTERS = ("vision", "speech")
PATCH, CROP_PATCHES, MELS = 14, 1024, 80  # pixels a side, patches of a 448 x 448 crop, mel bands
REDUCED_MELS = 10  # mel bands left after three stride-2 convolutions

IMAGE = "model.embed_tokens_extend.image_embed"
AUDIO = "model.embed_tokens_extend.audio_embed"


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of a checkpoint. Defaults are the published Phi-4-multimodal."""

    hidden: int = 3072
    layers: int = 32
    heads: int = 24
    kv_heads: int = 8
    mlp: int = 8192
    vocab: int = 200_064
    vision_hidden: int = 1152
    vision_mlp: int = 4304
    vision_layers: int = 27  # the last one is in the checkpoint but never computed
    vision_heads: int = 16
    audio_hidden: int = 1024
    audio_mlp: int = 1536
    audio_blocks: int = 24
    audio_heads: int = 16
    audio_channels: int = 1024  # of the subsampling convolutions
    bias_rows: int = 1000  # relative distances, half of them each way
    vision_rank: int = 256
    speech_rank: int = 320

    def __post_init__(self):
        splits = (
            ("hidden", "heads"),
            ("heads", "kv_heads"),
            ("vision_hidden", "vision_heads"),
            ("audio_hidden", "audio_heads"),
        )
        wrong = [
            f"{a}={getattr(self, a)} is not a multiple of {b}={getattr(self, b)}"
            for a, b in splits
            if getattr(self, a) % getattr(self, b)
        ]
        if self.bias_rows % 2:
            wrong.append(f"bias_rows={self.bias_rows} is odd, but half of the table belongs to each direction")
        if self.head_dim % 8:
            wrong.append(f"heads of {self.head_dim} dimensions: 0.75 of them must be an even number")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def rank(self) -> dict[str, int]:
        return {"vision": self.vision_rank, "speech": self.speech_rank}


SIZES = {
    "reduced": Sizes(
        hidden=128, layers=2, heads=4, kv_heads=2, mlp=256, vocab=320,
        vision_hidden=64, vision_mlp=160, vision_layers=3, vision_heads=4,
        audio_hidden=64, audio_mlp=96, audio_blocks=2, audio_heads=4, audio_channels=32,
        bias_rows=1000, vision_rank=16, speech_rank=24,
    ),
    # An odd vision MLP on purpose: SigLIP's 4304 is no multiple of 64 either, which quantization has to survive.
    "wide": Sizes(
        hidden=384, layers=3, heads=3, kv_heads=1, mlp=512, vocab=320,
        vision_hidden=144, vision_mlp=269, vision_layers=3, vision_heads=2,
        audio_hidden=96, audio_mlp=128, audio_blocks=3, audio_heads=3, audio_channels=48,
        bias_rows=200, vision_rank=32, speech_rank=40,
    ),
    "full": Sizes(),
}  # fmt: skip


def tensors(sizes: Sizes, layout: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the main safetensors files of `layout` ("transformers": without adapters)."""
    return {name: shape for name, (_, shape) in sources(sizes, layout).items()}


def sources(sizes: Sizes, layout: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name in `layout` -> (canonical name, shape)."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    found = {}
    for name, shape in _canonical(sizes, multimodal=layout != "text").items():
        if layout == "microsoft":
            found[name] = (name, shape)
        elif ".lora_" not in name:
            found[rename(name)] = (name, shape)
    return found


def adapter_sources(sizes: Sizes, adapter: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name in the PEFT file of `adapter` ("vision" or "speech") -> (canonical name, shape)."""
    return {
        "base_model.model." + name.replace(f".{adapter}.weight", ".weight"): (name, shape)
        for name, shape in _canonical(sizes).items()
        if name.endswith((f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight"))
    }


# Canonical name -> name in Transformers' layout; every other name is the same in both.
RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\.base_layer\.", r"."),
        (r"\.glb_GN$", r".global_img_feature_extensor"),
        (r"\.sub_GN$", r".sub_img_feature_extensor"),
        (r"\.img_projection\.0\.", r".img_projection_up."),
        (r"\.img_projection\.2\.", r".img_projection_down."),
        (r"\.(feed_forward_\w+)\.net\.0\.linear\.", r".\1.gate_up_proj."),
        (r"\.(feed_forward_\w+)\.net\.2\.", r".\1.down_proj."),
        (r"\.self_attn\.linear_([qkv])\.", r".self_attn.\1_proj."),
        (r"\.self_attn\.linear_out\.", r".self_attn.o_proj."),
        (r"\.audio_projection\.speech\.0\.", r".up_proj_for_speech."),
        (r"\.audio_projection\.speech\.2\.", r".down_proj_for_speech."),
        (r"\.audio_projection\.vision\.0\.", r".up_proj_for_vision_speech."),
        (r"\.audio_projection\.vision\.2\.", r".down_proj_for_vision_speech."),
    )
)


def rename(canonical: str) -> str:
    """The name of a base tensor in the layouts "transformers" and "text"."""
    for pattern, replacement in RENAMES:
        canonical = pattern.sub(replacement, canonical)
    return canonical


def _canonical(sizes: Sizes, multimodal: bool = True) -> dict[str, tuple[int, ...]]:
    shapes = {"model.embed_tokens.weight": (sizes.vocab, sizes.hidden)}
    for i in range(sizes.layers):
        shapes |= _decoder_layer(sizes, f"model.layers.{i}", multimodal)
    shapes["model.norm.weight"] = (sizes.hidden,)
    if multimodal:
        shapes |= _vision(sizes) | _audio(sizes)
    return shapes


def _decoder_layer(s: Sizes, at: str, multimodal: bool) -> dict[str, tuple[int, ...]]:
    linears = {
        "self_attn.o_proj": (s.hidden, s.hidden),
        "self_attn.qkv_proj": (s.hidden + 2 * s.kv_heads * s.head_dim, s.hidden),
        "mlp.gate_up_proj": (2 * s.mlp, s.hidden),
        "mlp.down_proj": (s.hidden, s.mlp),
    }
    shapes = {}
    for name, (out, into) in linears.items():
        shapes[f"{at}.{name}.base_layer.weight"] = (out, into)
        for adapter in ADAPTERS if multimodal else ():
            shapes[f"{at}.{name}.lora_A.{adapter}.weight"] = (s.rank[adapter], into)
            shapes[f"{at}.{name}.lora_B.{adapter}.weight"] = (out, s.rank[adapter])
    shapes[f"{at}.input_layernorm.weight"] = (s.hidden,)
    shapes[f"{at}.post_attention_layernorm.weight"] = (s.hidden,)
    return shapes


def _biased(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """A layer with a bias: linear (out, in), convolution (out, in, ...) or LayerNorm (width)."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _vision(s: Sizes) -> dict[str, tuple[int, ...]]:
    width, mlp, at = s.vision_hidden, s.vision_mlp, f"{IMAGE}.img_processor"
    shapes = {f"{IMAGE}.glb_GN": (1, 1, width), f"{IMAGE}.sub_GN": (1, 1, 1, width)}
    shapes |= _biased(f"{at}.embeddings.patch_embedding", width, 3, PATCH, PATCH)
    shapes[f"{at}.embeddings.position_embedding.weight"] = (CROP_PATCHES, width)
    for i in range(s.vision_layers):
        layer = f"{at}.encoder.layers.{i}"
        shapes |= _biased(f"{layer}.layer_norm1", width)
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= _biased(f"{layer}.self_attn.{name}", width, width)
        shapes |= _biased(f"{layer}.layer_norm2", width)
        shapes |= _biased(f"{layer}.mlp.fc1", mlp, width)
        shapes |= _biased(f"{layer}.mlp.fc2", width, mlp)
    shapes |= _biased(f"{at}.post_layernorm", width)
    shapes[f"{at}.head.probe"] = (1, 1, width)
    shapes[f"{at}.head.attention.in_proj_weight"] = (3 * width, width)
    shapes[f"{at}.head.attention.in_proj_bias"] = (3 * width,)
    shapes |= _biased(f"{at}.head.attention.out_proj", width, width)
    shapes |= _biased(f"{at}.head.layernorm", width)
    shapes |= _biased(f"{at}.head.mlp.fc1", mlp, width)
    shapes |= _biased(f"{at}.head.mlp.fc2", width, mlp)
    shapes |= _biased(f"{IMAGE}.img_projection.0", s.hidden, width)
    shapes |= _biased(f"{IMAGE}.img_projection.2", s.hidden, s.hidden)
    return shapes


def _audio(s: Sizes) -> dict[str, tuple[int, ...]]:
    width, channels, at = s.audio_hidden, s.audio_channels, f"{AUDIO}.encoder"
    shapes = {
        f"{at}.encoder_embedding.global_mean": (MELS,),
        f"{at}.encoder_embedding.global_invstd": (MELS,),
    }
    # Sequential indices: 1 and 4 are ReLUs; 2 and 5 depthwise; 3 and 6 pointwise.
    kernels = {0: (1, 3, 3), 2: (1, 3, 3), 3: (channels, 1, 1), 5: (1, 3, 3), 6: (channels, 1, 1)}
    for i, kernel in kernels.items():
        shapes |= _biased(f"{at}.embed.conv.{i}", channels, *kernel)
    shapes |= _biased(f"{at}.embed.out", width, channels * REDUCED_MELS)
    shapes[f"{at}.relative_attention_bias_layer.bias_values.weight"] = (s.bias_rows, s.audio_heads)
    for i in range(s.audio_blocks):
        shapes |= _conformer_block(s, f"{at}.encoders.{i}")
    for mode in ("speech", "vision"):
        shapes |= _biased(f"{AUDIO}.audio_projection.{mode}.0", s.hidden, width)
        shapes |= _biased(f"{AUDIO}.audio_projection.{mode}.2", s.hidden, s.hidden)
    return shapes


def _conformer_block(s: Sizes, at: str) -> dict[str, tuple[int, ...]]:
    width, shapes = s.audio_hidden, {}
    for name in ("feed_forward_in", "feed_forward_out"):
        shapes |= _biased(f"{at}.{name}.layer_norm", width)
        shapes |= _biased(f"{at}.{name}.net.0.linear", 2 * s.audio_mlp, width)
        shapes |= _biased(f"{at}.{name}.net.2", width, s.audio_mlp)
    for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
        shapes |= _biased(f"{at}.self_attn.{name}", width, width)
    shapes |= _biased(f"{at}.conv.layer_norm", width)
    shapes |= {f"{at}.conv.glu.b1": (1, width, 1), f"{at}.conv.glu.b2": (1, width, 1)}
    shapes |= _biased(f"{at}.conv.glu.ext_pw_conv_1d", 2 * width, width, 1)
    shapes |= _biased(f"{at}.conv.dw_sep_conv_1d.dw_conv", width, 1, 3)
    shapes |= _biased(f"{at}.conv.dw_sep_conv_1d.pw_conv", width, width, 1)
    shapes |= _biased(f"{at}.conv.ext_pw_conv_1d", width, width, 1)
    shapes |= _biased(f"{at}.layer_norm_att", width)
    shapes |= _biased(f"{at}.layer_norm", width)
    return shapes
