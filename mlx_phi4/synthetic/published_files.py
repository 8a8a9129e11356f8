"""The JSON files beside the weights, in the form each layout publishes them.

Everything is a function from `Sizes` to plain dictionaries. With the full sizes `config` equals the published
config.json of the layouts "microsoft" and "text".
"""

from .published import PATCH, Sizes
from .published_tokenizer import AUDIO_TOKEN, END, END_OF_TEXT, IMAGE_TOKEN, token_ids, tokenizer, tokenizer_config

# fmt: off
LONG_FACTOR = (
    1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
    2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424,
    6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252,
    16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6,
    32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)  # published, for heads of 128
# fmt: on


def rope_factors(sizes: Sizes) -> tuple[list[float], list[float]]:
    """(long, short) tables, one factor for each pair of the head_dim * 0.75 dimensions that turn."""
    count = sizes.head_dim * 3 // 8
    last = len(LONG_FACTOR) - 1
    long = []
    for i in range(count):  # linear interpolation of the published table at `count` even steps
        at = i * last / max(count - 1, 1)
        low = min(int(at), last - 1)
        value = LONG_FACTOR[low] + (at - low) * (LONG_FACTOR[low + 1] - LONG_FACTOR[low])
        long.append(LONG_FACTOR[i] if count == len(LONG_FACTOR) else round(value, 6))
    return long, [1.0] * count


def config(sizes: Sizes, layout: str, dtype: str) -> dict:
    """config.json of `layout`."""
    base = _base_config(sizes, dtype)
    if layout == "text":
        return base | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    if layout == "transformers":
        return base | _transformers_config(sizes)
    return base | _microsoft_config(sizes)


def _base_config(sizes: Sizes, dtype: str) -> dict:
    long, short = rope_factors(sizes)
    end_of_text = token_ids(sizes)[END_OF_TEXT]
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "embd_pdrop": 0.0,
        "eos_token_id": end_of_text,
        "full_attn_mod": 1,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.mlp,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "original_max_position_embeddings": 4096,
        "pad_token_id": end_of_text,
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": long, "short_factor": short, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "transformers_version": "4.46.1",
        "use_cache": True,
        "vocab_size": sizes.vocab,
    }


def _microsoft_config(sizes: Sizes) -> dict:
    found = {
        "architectures": ["Phi4MMForCausalLM"],
        "model_type": "phi4mm",
        "audio_processor": {"name": "cascades", "config": _conformer_config(sizes)},
        "embd_layer": {
            "audio_embd_layer": {
                "compression_rate": 8,
                "downsample_rate": 1,
                "embedding_cls": "audio",
                "enable_gradient_checkpointing": True,
                "projection_cls": "mlp",
                "use_conv_downsample": False,
                "use_qformer": False,
            },
            "embedding_cls": "image_audio",
            "image_embd_layer": {
                "crop_size": 448,
                "embedding_cls": "tune_image",
                "enable_gradient_checkpointing": True,
                "hd_transform_order": "sub_glb",
                "image_token_compression_cls": "avg_pool_2d",
                "projection_cls": "mlp",
                "use_hd_transform": True,
                "with_learnable_separator": True,
            },
        },
        "vision_lora": {
            "dp": 0.0,
            "layer": r"layers.*((self_attn\.(qkv_proj|o_proj))|(mlp\.(gate_up|down)_proj))",
            "lora_alpha": 2 * sizes.vision_rank,
            "r": sizes.vision_rank,
        },
        "speech_lora": {
            "dp": 0.01,
            "layer": r"((layers.*self_attn\.(qkv|o)_proj)|(layers.*mlp\.(gate_up|down)_proj))",
            "lora_alpha": 2 * sizes.speech_rank,
            "r": sizes.speech_rank,
        },
    }
    vision = _vision_config(sizes)
    # The published config never states the vision sizes: SigLIP-400M is meant where the object is absent.
    return found if vision == _vision_config(Sizes()) else found | {"img_processor": vision}


def _conformer_config(sizes: Sizes) -> dict:
    return {
        "activation": "swish",
        "activation_checkpointing": {"interval": 1, "module": "transformer", "offload": False},
        "attention_dim": sizes.audio_hidden,
        "attention_heads": sizes.audio_heads,
        "batch_norm": False,
        "bias_in_glu": True,
        "causal": True,
        "chunk_size": -1,
        "cnn_layer_norm": True,
        "conv_activation": "swish",
        "conv_glu_type": "swish",
        "depthwise_multiplier": 1,
        "depthwise_seperable_out_channel": sizes.audio_hidden,
        "dropout_rate": 0.0,
        "encoder_embedding_config": {"input_size": 80},
        "ext_pw_kernel_size": 1,
        "ext_pw_out_channel": sizes.audio_hidden,
        "input_layer": "nemo_conv",
        "input_size": 80,
        "kernel_size": 3,
        "left_chunk": 18,
        "linear_units": sizes.audio_mlp,
        "nemo_conv_settings": {"conv_channels": sizes.audio_channels},
        "num_blocks": sizes.audio_blocks,
        "relative_attention_bias_args": {"t5_bias_max_distance": sizes.bias_rows // 2, "type": "t5"},
        "time_reduction": 8,
    }


def _vision_config(sizes: Sizes) -> dict:
    return {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_mlp,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_heads,
    }


def _transformers_config(sizes: Sizes) -> dict:
    ids = token_ids(sizes)
    audio = {
        "model_type": "phi4_multimodal_audio",
        "hidden_size": sizes.audio_hidden,
        "intermediate_size": sizes.audio_mlp,
        "num_blocks": sizes.audio_blocks,
        "num_attention_heads": sizes.audio_heads,
        "ext_pw_out_channel": sizes.audio_hidden,
        "depthwise_separable_out_channel": sizes.audio_hidden,
        "nemo_conv_channels": sizes.audio_channels,
        "bias_max_distance": sizes.bias_rows // 2,
        "audio_token_id": ids[AUDIO_TOKEN],
    }
    vision = _vision_config(sizes) | {
        "model_type": "phi4_multimodal_vision",
        "image_size": 448,
        "patch_size": PATCH,
        "crop_size": 448,
        "image_token_id": ids[IMAGE_TOKEN],
    }
    return {
        "architectures": ["Phi4MultimodalForCausalLM"],
        "model_type": "phi4_multimodal",
        "eos_token_id": [ids[END_OF_TEXT], ids[END]],
        "audio_config": audio,
        "vision_config": vision,
    }


def adapter_config(sizes: Sizes, adapter: str) -> dict:
    """adapter_config.json of PEFT for "vision" or "speech"."""
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 2 * sizes.rank[adapter],
        "lora_dropout": 0.0 if adapter == "vision" else 0.01,
        "peft_type": "LORA",
        "r": sizes.rank[adapter],
        "target_modules": r"model.layers.\d+.((self_attn.(qkv|o)_proj)|(mlp.(gate_up|down)_proj))",
        "task_type": "CAUSAL_LM",
    }


def other_files(sizes: Sizes, layout: str) -> dict[str, dict]:
    """File name -> content of everything else a repository of this layout holds."""
    ids = token_ids(sizes)
    files = {
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": ids[END_OF_TEXT],
            "eos_token_id": [ids[END], ids[END_OF_TEXT]],
            "pad_token_id": ids[END_OF_TEXT],
        },
        "tokenizer.json": tokenizer(sizes),
        "tokenizer_config.json": tokenizer_config(sizes, layout),
    }
    if layout != "text":
        stem = "Phi4MM" if layout == "microsoft" else "Phi4Multimodal"
        files["processor_config.json"] = {"processor_class": f"{stem}Processor"}
        files["preprocessor_config.json"] = {
            "audio_compression_rate": 8,
            "audio_downsample_rate": 1,
            "audio_feat_stride": 1,
            "dynamic_hd": 36,
            "feature_extractor_type": "Phi4MMAudioFeatureExtractor"
            if layout == "microsoft"
            else "Phi4MultimodalFeatureExtractor",
            "image_processor_type": f"{stem}ImageProcessor",
            "processor_class": f"{stem}Processor",
        }
    return files
