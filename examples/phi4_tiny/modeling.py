"""phi4-tiny in the reference implementation: sizes, adapters, and Microsoft's published layout.

The model is Transformers' ``Phi4MultimodalForCausalLM`` at reduced widths. Two things are added:
the adapters, in PEFT's formula ``W x + (alpha / r) B A x``, and the renaming between Transformers'
tensor names and those of the published checkpoint ("layout 1", ``model_type: phi4mm``).
"""

import json
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

# torchvision names its compiled operators on import; an install without them lacks the names
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
_NAMES = """nms qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool
_roi_pool_backward ps_roi_pool _ps_roi_pool_backward qroi_align deform_conv2d
_deform_conv2d_backward"""
for _name in _NAMES.split():
    with suppress(RuntimeError):  # already there
        _OPERATORS.define(f"{_name}(Tensor x) -> Tensor")

from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM  # noqa: E402

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 128, 4, 4, 2, 32, 384
VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 5,  # the last one is never used: features are hidden_states[-2]
    "num_attention_heads": 4,
}
AUDIO = {"width": 128, "heads": 4, "units": 256, "blocks": 4, "channels": 64, "distance": 500}
LORA = {"vision": (64, 128), "speech": (64, 128)}  # name -> (rank, alpha): scale 2, as published
TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
# every fourth of the 48 published factors: 32 * 0.75 / 2 = 12 frequencies
LONG_FACTOR = [
    1, 1.564103225, 2.446418898, 3.826451687, 5.984965424, 9.36110372,
    14.64173252, 22.90118105, 32.1, 32.61, 32.71, 33.49,
]  # fmt: skip
SHORT_FACTOR = [1.0] * len(LONG_FACTOR)

_EXTEND = "model.embed_tokens_extend."
# layout 1 -> Transformers, applied in this order to a whole name
RENAMES = (
    (_EXTEND + "image_embed.glb_GN", _EXTEND + "image_embed.global_img_feature_extensor"),
    (_EXTEND + "image_embed.sub_GN", _EXTEND + "image_embed.sub_img_feature_extensor"),
    ("img_projection.0.", "img_projection_up."),
    ("img_projection.2.", "img_projection_down."),
    ("audio_projection.speech.0.", "up_proj_for_speech."),
    ("audio_projection.speech.2.", "down_proj_for_speech."),
    ("audio_projection.vision.0.", "up_proj_for_vision_speech."),
    ("audio_projection.vision.2.", "down_proj_for_vision_speech."),
    (".net.0.linear.", ".gate_up_proj."),
    (".net.2.", ".down_proj."),
    (".self_attn.linear_q.", ".self_attn.q_proj."),
    (".self_attn.linear_k.", ".self_attn.k_proj."),
    (".self_attn.linear_v.", ".self_attn.v_proj."),
    (".self_attn.linear_out.", ".self_attn.o_proj."),
)
# not stored: the tied head, and what comes after SigLIP's last layer but one
_UNUSED = ("lm_head.", "img_processor.post_layernorm.", "img_processor.head.",
           f"img_processor.encoder.layers.{VISION['num_hidden_layers'] - 1}.")  # fmt: skip


class LoraLinear(nn.Module):
    """``W x + (alpha / r) B A x`` with the adapter that ``active`` names, or ``W x`` for None."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        rows, columns = base_layer.weight.shape
        self.lora_A = nn.ModuleDict({name: nn.Linear(columns, rank, bias=False) for name, (rank, _) in LORA.items()})
        self.lora_B = nn.ModuleDict({name: nn.Linear(rank, rows, bias=False) for name, (rank, _) in LORA.items()})
        for up in self.lora_B.values():
            nn.init.zeros_(up.weight)
        self.active = None

    def forward(self, x):
        y = self.base_layer(x)
        if self.active is None:
            return y
        rank, alpha = LORA[self.active]
        return y + (alpha / rank) * self.lora_B[self.active](self.lora_A[self.active](x))


def reference_config(vocab):
    """Transformers' configuration; ``vocab`` maps the special tokens' names to ids."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
        "short_factor": SHORT_FACTOR, "long_factor": LONG_FACTOR,
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    audio = {
        "hidden_size": AUDIO["width"], "intermediate_size": AUDIO["units"],
        "num_blocks": AUDIO["blocks"], "num_attention_heads": AUDIO["heads"],
        "ext_pw_out_channel": AUDIO["width"], "depthwise_separable_out_channel": AUDIO["width"],
        "nemo_conv_channels": AUDIO["channels"], "bias_max_distance": AUDIO["distance"],
        "audio_token_id": vocab["<|endoftext11|>"],
    }  # fmt: skip
    end_of_text = vocab["<|endoftext|>"]
    return Phi4MultimodalConfig(
        vocab_size=max(vocab.values()) + 1, hidden_size=WIDTH, intermediate_size=MLP,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        rope_parameters=rope, tie_word_embeddings=True, bos_token_id=end_of_text,
        pad_token_id=end_of_text, eos_token_id=[end_of_text, vocab["<|end|>"]],
        vision_config={**VISION, "image_token_id": vocab["<|endoftext10|>"]},
        audio_config=audio,
    )  # fmt: skip


def build(vocab):
    """A fresh float32 model with adapters in place (all inactive) and a plain vision start."""
    model = Phi4MultimodalForCausalLM(reference_config(vocab))
    for name, module in list(model.model.layers.named_modules()):
        for target in TARGETS:
            if hasattr(module, target) and ".base_layer" not in name:
                setattr(module, target, LoraLinear(getattr(module, target)))
    # Transformers draws the vision tower with deviation 1.0, from which nothing can be learned,
    # and the conformer with 0.02, at which three small convolutions let no signal through
    for name, parameter in model.model.embed_tokens_extend.named_parameters():
        if parameter.ndim >= 2 and not any(x in name for x in ("embedding", "bias", "_extensor", ".glu.b")):
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.eval()


def route(model, adapter):
    """Switch every adapted linear to ``"vision"``, ``"speech"`` or None."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.active = adapter


def to_layout1(name):
    """A Transformers tensor name (adapters in place) as published."""
    audio = "audio_embed.encoder." in name
    for published, native in RENAMES:
        if "net." in published or "linear_" in published:
            name = name.replace(native, published) if audio else name
        else:
            name = name.replace(native, published)
    return name


def stored(name):
    """Whether a tensor belongs in the checkpoint: the tied head and unused layers do not."""
    return not any(unused in name for unused in _UNUSED)


def published_config(vocab):
    """``config.json`` in the published form, with the reduced vision sizes spelled out."""
    end_of_text, end = vocab["<|endoftext|>"], vocab["<|end|>"]
    conformer = {
        "activation": "swish", "attention_dim": AUDIO["width"], "attention_heads": AUDIO["heads"],
        "batch_norm": False, "bias_in_glu": True, "causal": True, "chunk_size": -1,
        "cnn_layer_norm": True, "conv_activation": "swish", "conv_glu_type": "swish",
        "depthwise_multiplier": 1, "depthwise_seperable_out_channel": AUDIO["width"],
        "dropout_rate": 0.0, "encoder_embedding_config": {"input_size": 80},
        "ext_pw_kernel_size": 1, "ext_pw_out_channel": AUDIO["width"],
        "input_layer": "nemo_conv", "input_size": 80, "kernel_size": 3, "left_chunk": 18,
        "linear_units": AUDIO["units"],
        "nemo_conv_settings": {"conv_channels": AUDIO["channels"]},
        "num_blocks": AUDIO["blocks"],
        "relative_attention_bias_args": {"t5_bias_max_distance": AUDIO["distance"], "type": "t5"},
        "time_reduction": 8,
    }  # fmt: skip
    layer = "layers.*((self_attn\\.(qkv_proj|o_proj))|(mlp\\.(gate_up|down)_proj))"
    return {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": end_of_text,
        "embd_pdrop": 0.0, "eos_token_id": [end, end_of_text], "full_attn_mod": 1,
        "hidden_act": "silu", "hidden_size": WIDTH, "initializer_range": 0.02,
        "intermediate_size": MLP, "interpolate_factor": 1, "lm_head_bias": False,
        "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS,
        "original_max_position_embeddings": 4096, "pad_token_id": end_of_text,
        "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": LONG_FACTOR, "short_factor": SHORT_FACTOR,
                         "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": max(vocab.values()) + 1,
        "architectures": ["Phi4MMForCausalLM"], "model_type": "phi4mm",
        "audio_processor": {"name": "cascades", "config": conformer},
        "img_processor": VISION,
        "embd_layer": {
            "audio_embd_layer": {
                "compression_rate": 8, "downsample_rate": 1, "embedding_cls": "audio",
                "enable_gradient_checkpointing": True, "projection_cls": "mlp",
                "use_conv_downsample": False, "use_qformer": False,
            },
            "embedding_cls": "image_audio",
            "image_embd_layer": {
                "crop_size": 448, "embedding_cls": "tune_image",
                "enable_gradient_checkpointing": True, "hd_transform_order": "sub_glb",
                "image_token_compression_cls": "avg_pool_2d", "projection_cls": "mlp",
                "use_hd_transform": True, "with_learnable_separator": True,
            },
        },
        "vision_lora": {"dp": 0.0, "layer": layer, "r": LORA["vision"][0],
                        "lora_alpha": LORA["vision"][1]},
        "speech_lora": {"dp": 0.0, "layer": layer, "r": LORA["speech"][0],
                        "lora_alpha": LORA["speech"][1]},
    }  # fmt: skip


def save_layout1(model, tokenizer, folder):
    """Write config.json, model.safetensors (bfloat16), tokenizer.json, generation_config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = tokenizer.get_vocab()
    tensors = {
        to_layout1(name): tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if stored(name)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = published_config(vocab)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = json.dumps({"_from_model_config": True, **ids}, indent=1)
    (folder / "generation_config.json").write_text(text + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    return sum(t.numel() for t in tensors.values())


def load_layout1(folder, tokenizer):
    """The model of a saved folder, its bfloat16 weights widened to float32."""
    model = build(tokenizer.get_vocab())
    tensors = load_file(Path(folder) / "model.safetensors")
    state = model.state_dict()
    for name in state:
        if stored(name):
            state[name] = tensors.pop(to_layout1(name)).float()
        elif not name.startswith("lm_head."):
            state[name] = torch.zeros_like(state[name])  # unused: any value gives the same answers
    if tensors:
        raise ValueError(f"unknown tensors in {folder}: {sorted(tensors)[:5]}")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    # PyTorch's fused attention would see an unpadded picture through a causal mask
    model.set_attn_implementation("eager")
    return model.eval()
