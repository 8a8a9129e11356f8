"""Strict, lazy reading of checkpoints: everything that is wrong is said at once, in one line."""

import gzip
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

import mlx_phi4
from mlx_phi4 import Phi4Error
from mlx_phi4.checkpoint import names
from mlx_phi4.synthetic.published import SIZES, tensors

LISTS = Path(__file__).parent / "golden" / "published_tensors.json.gz"


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A function layout -> a copy that a test may spoil."""

    def make(layout="microsoft"):
        return Path(shutil.copytree(checkpoint(layout), tmp_path / layout))

    return make


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(folder, change, file="model.safetensors"):
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file)


def refusal(folder, **options):
    with pytest.raises(Phi4Error) as caught:
        mlx_phi4.load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["microsoft", "transformers", "text"])
def test_every_published_tensor_has_a_name_or_is_dropped_on_purpose(layout):
    published = json.loads(gzip.decompress(LISTS.read_bytes()))[layout]
    table = names.TABLES[layout]
    dropped = {name for name in published if names.rename(name, table) is None}
    assert all(".head." in name or "post_layernorm" in name for name in dropped)
    assert len({names.rename(name, table) for name in published} - {None}) == len(published) - len(dropped)


@pytest.mark.parametrize("layout", ["microsoft", "transformers", "text"])
def test_random_checkpoints_have_the_published_tensors(layout):
    published = json.loads(gzip.decompress(LISTS.read_bytes()))[layout]
    assert {name: list(shape) for name, shape in tensors(SIZES["full"], layout).items()} == published


def test_all_faults_are_listed_together(copy):
    folder = copy()

    def spoil(weights):
        del weights["model.norm.weight"]
        weights["model.layers.0.self_attn.surprise.weight"] = np.zeros(3, np.float32)
        weights["model.embed_tokens.weight"] = np.zeros((5, 128), np.float32)

    edit_weights(folder, spoil)
    message = refusal(folder)
    assert "1 missing: model.norm.weight" in message
    assert "1 unexpected: model.layers.0.self_attn.surprise.weight" in message
    assert "1 misshapen: model.embed_tokens.weight (5, 128), expected (320, 128)" in message


def test_adapter_keys_with_and_without_prefix(copy, loaded):
    folder = copy("transformers")

    def strip(weights):
        for name in list(weights):
            weights[name.removeprefix("base_model.model.")] = weights.pop(name)

    def name_inside(weights):
        for name in list(weights):
            weights[name.replace(".weight", ".default.weight")] = weights.pop(name)

    edit_weights(folder, strip, "vision-lora/adapter_model.safetensors")
    edit_weights(folder, name_inside, "speech-lora/adapter_model.safetensors")
    ours = dict(tree_flatten(mlx_phi4.load(folder)[0].parameters()))
    expected = dict(tree_flatten(loaded()[0].parameters()))
    assert all(mx.array_equal(ours[name], weight).item() for name, weight in expected.items())


def test_placeholder_tokens_under_their_other_names(copy):
    folder = copy("transformers")
    text = (folder / "tokenizer.json").read_text()
    text = text.replace("<|endoftext10|>", "<|image|>").replace("<|endoftext11|>", "<|audio|>")
    (folder / "tokenizer.json").write_text(text)
    _, processor = mlx_phi4.load(folder)
    inputs = processor("x", images=[np.zeros((30, 30), np.uint8)])
    image_token = json.loads((folder / "config.json").read_text())["vision_config"]["image_token_id"]
    assert (np.array(inputs.input_ids) == image_token).sum() == inputs.media[0].item.tokens


def test_bias_table_tells_its_own_size(copy):
    folder = copy("transformers")
    edit_config(folder, lambda config: config["audio_config"].update(bias_max_distance=77))
    model, _ = mlx_phi4.load(folder)
    assert model.audio_encoder.relative_attention_bias_layer.bias_values.weight.shape[0] == 1000


def test_weights_that_a_request_does_not_touch_are_not_read(copy):
    """Text alone works, although the encoders' bytes are nonsense: they were never evaluated."""
    folder = copy()

    def spoil(weights):
        for name in weights:
            if "embed_tokens_extend" in name or "lora" in name:
                weights[name] = np.full_like(weights[name], np.nan)

    edit_weights(folder, spoil)
    model, processor = mlx_phi4.load(folder)
    assert np.isfinite(np.array(model(processor("Hello")))).all()
    assert not np.isfinite(np.array(model(processor("Hello", images=[np.zeros((30, 30), np.uint8)])))).all()


def test_unused_parts_are_not_loaded(loaded):
    model, _ = loaded()
    held = dict(tree_flatten(model.parameters()))
    assert len(model.vision_encoder.layers) == SIZES["reduced"].vision_layers - 1
    assert not any("head" in name or "post_layernorm" in name for name in held)


def test_dtype_and_lazy(copy):
    folder = copy()
    model, _ = mlx_phi4.load(folder, dtype="bfloat16", lazy=False)
    assert {w.dtype for _, w in tree_flatten(model.parameters())} == {mx.bfloat16}
    assert "float32, float16, bfloat16" in refusal(folder, dtype="int8")


def test_shards_and_index(tmp_path):
    from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

    folder = write_random_checkpoint(tmp_path / "m", "microsoft", "reduced", shard_bytes=1_000_000)
    mlx_phi4.load(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    moved = folder / shards[0]
    moved.rename(folder / "elsewhere")
    assert "missing" in refusal(folder) and shards[0] in refusal(folder)
    (folder / "elsewhere").rename(moved)
    moved.write_bytes(moved.read_bytes()[:-10])
    assert "not a complete safetensors file" in refusal(folder)


def test_index_and_shards_must_agree(tmp_path):
    from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

    folder = write_random_checkpoint(tmp_path / "m", "text", "reduced", shard_bytes=500_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    assert "disagree about model.norm.weight" in refusal(folder)


def test_merged_adapters_are_refused(copy):
    folder = copy()
    save_file({"language_model.model.norm.weight": np.zeros(4, np.float32)}, folder / "model.safetensors")
    assert "merged" in refusal(folder)


def test_pickled_weights_are_refused(copy):
    folder = copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled" in refusal(folder)


def test_weights_of_a_wrong_type_are_misfits(copy):
    folder = copy()
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": np.ones(128, np.int32)}))
    assert "model.norm.weight is I32, expected F32 or F16 or BF16" in refusal(folder)


def test_damaged_weights_give_no_answer(copy):
    """NaN weights used to print bytes of token 0 and count as success."""
    folder = copy("text")
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": np.full(128, np.nan, np.float32)}))
    model, processor = mlx_phi4.load(folder)
    with pytest.raises(Phi4Error, match="NaN"):
        mlx_phi4.generate(model, processor, "Hello")


CONFIG_FAULTS = {
    "hidden_size": lambda config: config.pop("hidden_size"),
    "model_type": lambda config: config.update(model_type="llama"),
    "audio_processor": lambda config: config.pop("audio_processor"),
    "speech_lora": lambda config: config.pop("speech_lora"),
    "long_factor": lambda config: config["rope_scaling"].update(long_factor=[1.0]),
    "rope type": lambda config: config["rope_scaling"].update(type="yarn"),
    "multiple": lambda config: config.update(num_key_value_heads=3),
    "hidden_size is '128'": lambda config: config.update(hidden_size="128"),
    "num_hidden_layers is '2'": lambda config: config.update(num_hidden_layers="2"),
    "num_attention_heads is 0": lambda config: config.update(num_attention_heads=0),
    "max_position_embeddings": lambda config: config.update(max_position_embeddings="x"),
    "rms_norm_eps": lambda config: config.update(rms_norm_eps="x"),
    "original_max_position_embeddings is 1": lambda config: config.update(original_max_position_embeddings=1),
    "original_max_position_embeddings is 0": lambda config: config.update(original_max_position_embeddings=0),
    "hidden_act": lambda config: config.update(hidden_act="gelu"),
    "sliding_window": lambda config: config.update(sliding_window=8),
    "conv_activation": lambda config: config["audio_processor"]["config"].update(conv_activation="relu"),
    "LoRA rank is 0": lambda config: config["vision_lora"].update(r=0),
    "rope_scaling is 'x', expected an object": lambda config: config.update(rope_scaling="x"),
    "short_factor is 'ab', expected a list": lambda config: config["rope_scaling"].update(short_factor="ab"),
    "has no attribute": lambda config: config.update(audio_processor="x"),
    "vision hidden_size is '64'": lambda config: config["img_processor"].update(hidden_size="64"),
    "time_reduction": lambda config: config["audio_processor"]["config"].update(time_reduction=4),
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_bad_configurations(copy, name):
    folder = copy()
    edit_config(folder, CONFIG_FAULTS[name])
    assert name in refusal(folder)


def test_an_older_model_is_refused(copy):
    folder = copy("text")
    edit_config(folder, lambda config: config.update(tie_word_embeddings=False))
    assert "Phi-3" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "expected an object"),
        ("config.json", "[" * 100_000, "config.json cannot be read"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id"),
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("tokenizer.json", None, "missing"),
        ("config.json", None, "missing"),
        ("model.safetensors", "nonsense", "safetensors"),
    ],
)
def test_spoiled_files(copy, file, content, message):
    folder = copy()
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    assert message in refusal(folder)


@pytest.mark.parametrize("option", ["use_dora", "fan_in_fan_out", "rank_pattern"])
def test_variants_of_lora_are_refused(copy, option):
    folder = copy("transformers")
    path = folder / "vision-lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: {"x": 1} if "pattern" in option else True}))
    assert option in refusal(folder)


def test_missing_adapter_folder(copy):
    folder = copy("transformers")
    shutil.rmtree(folder / "speech-lora")
    assert "speech-lora" in refusal(folder)


def test_unknown_folder(tmp_path):
    assert "no such model folder" in refusal(tmp_path / "nothing")


def test_unknown_hub_id(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "no-such-owner/no-such-model" in refusal("no-such-owner/no-such-model")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_text_folder_of_mlx_lm_loads(checkpoint, tmp_path, bits):
    """Layout 4, written by mlx-lm's own converter; both read the same quantized weights."""
    from mlx_lm import convert, load

    convert(str(checkpoint("text")), str(tmp_path / "q"), quantize=True, q_bits=bits, q_group_size=64, dtype="float32")
    model, processor = mlx_phi4.load(tmp_path / "q")
    theirs, _ = load(str(tmp_path / "q"))
    ids = processor("Hello there").input_ids
    ours = model.model.layers[0].self_attn.qkv_proj.base
    other = theirs.model.layers[0].self_attn.qkv_proj
    assert ours.bits == bits and mx.array_equal(ours.weight, other.weight).item()
    h = model.model.embed_tokens(ids)
    assert mx.array_equal(h, theirs.model.embed_tokens(ids)).item()
    assert np.isfinite(np.array(model(processor("Hello there")))).all()


def test_quantization_table_and_tensors_must_agree(checkpoint, tmp_path):
    from mlx_lm import convert

    convert(str(checkpoint("text")), str(tmp_path / "q"), quantize=True)
    edit_config(tmp_path / "q", lambda config: [config.pop(k, None) for k in ("quantization", "quantization_config")])
    assert "no quantization table" in refusal(tmp_path / "q")
    table = {"group_size": 64, "bits": 4}
    edit_config(
        tmp_path / "q", lambda config: config.update(quantization=table | {"model.layers.0.mlp.down_proj": False})
    )
    assert "disagrees" in refusal(tmp_path / "q")
    edit_config(tmp_path / "q", lambda config: config.update(quantization=table | {"bits": 8}))
    assert "misshapen" in refusal(tmp_path / "q")
