"""The converter's results: what is packed how, that modes stay apart, and that other loaders agree."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from cases import clip, picture
from mlx.utils import tree_flatten

import mlx_phi4
from mlx_phi4.checkpoint.tensorfile import shard_bytes
from mlx_phi4.converter.convert import convert
from mlx_phi4.converter.plan import make_plan
from mlx_phi4.converter.quantization import Rules, Scheme, component
from mlx_phi4.errors import ConversionError
from mlx_phi4.synthetic import published_files
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.published import tensors as published_tensors
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

PROMPT = "measure the northern river"
MEDIA = {
    "text": {},
    "vision": {"images": [picture(300, 200)]},
    "speech": {"audios": [(clip(1.0), 16_000)]},
    "vision-speech": {"images": [picture(300, 200)], "audios": [(clip(1.0), 16_000)]},
}


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    """A function (layout, size, options) -> converted folder, made once. Not to be changed."""
    made = {}

    def make(layout="microsoft", size="reduced", **options):
        key = (layout, size, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("converted") / "out"
            made[key] = convert(checkpoint(layout, size), folder, **options)
        return made[key]

    return make


def table(folder):
    return json.loads((folder / "config.json").read_text())["quantization"]


def tensors(folder):
    return {name: array for path in folder.glob("*.safetensors") for name, array in mx.load(str(path)).items()}


@cache
def logits(folder, mode="text"):
    model, processor = mlx_phi4.load(folder)
    return np.array(model(processor(PROMPT, **MEDIA[mode])).astype(mx.float32))


def test_text_mode_equals_the_converted_text_model_exactly(converted):
    for size in ("reduced", "wide"):
        text = logits(converted("text", size))
        for layout in ("microsoft", "transformers"):
            assert np.array_equal(logits(converted(layout, size)), text)


def test_both_layouts_give_the_same_folder(converted):
    one, other = converted("microsoft"), converted("transformers")
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert json.loads((one / "config.json").read_text())["img_processor"] == json.loads(
        (other / "config.json").read_text()
    ).get("img_processor")
    assert np.array_equal(logits(one, "vision-speech"), logits(other, "vision-speech"))


@pytest.mark.parametrize("layout", ["microsoft", "text"])
def test_unquantized_conversion_changes_no_answer(checkpoint, converted, layout):
    for mode in ("text", "vision", "speech") if layout != "text" else ["text"]:
        assert np.array_equal(logits(converted(layout, quantize=False), mode), logits(checkpoint(layout), mode))


def test_each_mode_answers_with_its_own_adapter(converted):
    """Merging would make every mode follow every adapter: silencing one must move its own modes only."""
    folder = converted(encoder_bits=16)
    model, processor = mlx_phi4.load(folder)
    requests = {mode: processor(PROMPT, **media) for mode, media in MEDIA.items()}
    before = {mode: np.array(model(inputs)) for mode, inputs in requests.items()}
    for adapter, moved in (("vision", {"vision", "vision-speech"}), ("speech", {"speech"})):
        model, _ = mlx_phi4.load(folder)
        for name, module in model.named_modules():
            if name.endswith(f".lora.{adapter}.up"):
                module.weight = mx.zeros_like(module.weight)
                if "scales" in module:
                    module.biases = mx.zeros_like(module.biases)
        changed = {m for m, inputs in requests.items() if not np.array_equal(np.array(model(inputs)), before[m])}
        assert changed == moved


@pytest.mark.parametrize("size", ["reduced", "wide"])
def test_round_trip(converted, tmp_path, size):
    """Packed weights turned back are what the packed model computes with, and SigLIP has its width again."""
    packed = converted("microsoft", size)
    back = convert(packed, tmp_path / "back", dequantize=True)
    assert "quantization" not in json.loads((back / "config.json").read_text())
    assert {name: a.shape for name, a in tensors(back).items()} == {
        name: a.shape for name, a in tensors(converted("microsoft", size, quantize=False)).items()
    }
    for mode in ("text", "vision-speech"):
        np.testing.assert_allclose(logits(back, mode), logits(packed, mode), atol=2e-3)
    again = convert(back, tmp_path / "again")
    assert table(again) == table(packed)


def test_weights_that_no_mode_uses_are_left_out(converted):
    names = set(tensors(converted()))
    last = mlx_phi4.load(converted())[0].config.vision.num_hidden_layers - 1
    assert not [name for name in names if f"layers.{last}.mlp.fc" in name or "head" in name or "post_layernorm" in name]
    assert {name for name in names if ".lora.vision." in name} and {name for name in names if ".lora.speech." in name}


def test_the_table_says_how_each_tensor_is(converted):
    folder = converted("microsoft", "wide", adapter_bits=4, encoder_bits=6)
    said, found = table(folder), tensors(folder)
    for name in [name.removesuffix(".scales") for name in found if name.endswith(".scales")]:
        part = component(name)
        expected = 4 if part == "decoder" or "adapter" in part else 6
        entry = said.get(name, said)
        assert entry["bits"] == expected and entry["mode"] == "affine"
        width = found[f"{name}.weight"].shape[1] * 32 // entry["bits"]
        assert found[f"{name}.scales"].shape[1] * entry["group_size"] == width
    # left as they are, and said so: a width that no group divides
    kept = {name for name, value in said.items() if value is False}
    assert kept and not any(f"{name}.scales" in found for name in kept)
    assert "vision_encoder.layers.0.self_attn.q_proj" in kept  # 144 wide
    for name, array in found.items():
        if "norm" in name or "conv.0." in name or "dw_conv" in name or "position" in name or name.endswith(".bias"):
            assert array.dtype == mx.float32


def test_an_indivisible_vision_mlp_is_padded_exactly(checkpoint, converted):
    """269 columns become 320: the zeros that fill up change no feature."""
    folder = converted("microsoft", "wide")
    fc2 = tensors(folder)["vision_encoder.layers.0.mlp.fc2.weight"]
    assert fc2.shape == (144, 320 * 8 // 32) and table(folder)["vision_encoder.layers.0.mlp.fc2"]["group_size"] == 64
    padded, _ = mlx_phi4.load(folder)
    plain, processor = mlx_phi4.load(checkpoint("microsoft", "wide"))
    for layer in (0, 1):
        mlp, original = (model.vision_encoder.layers[layer].mlp for model in (padded, plain))
        weight = mx.dequantize(mlp.fc2.weight, mlp.fc2.scales, mlp.fc2.biases, group_size=64, bits=8)
        x = mx.random.normal((5, 144))
        hidden = mx.pad(original.fc1(x), [(0, 0), (0, 51)])
        assert mx.abs(mlp.fc1(x) - hidden).max().item() < 0.1 and mx.all(mlp.fc1(x)[:, 269:] == 0).item()
        assert mx.abs(weight[:, 269:]).max().item() < mx.abs(weight).max().item() / 100
    assert processor.config.vision.intermediate_size == 269


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_number_of_bits(checkpoint, tmp_path, bits):
    folder = convert(checkpoint(), tmp_path / "out", q_bits=bits, adapter_bits=bits, encoder_bits=bits, verify=True)
    error = {bits: np.abs(logits(folder) - logits(checkpoint())).mean()}
    assert error[bits] < {2: 8, 3: 4, 4: 2.5, 5: 1.2, 6: 0.6, 8: 0.2}[bits]


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_every_mode(checkpoint, tmp_path, mode):
    folder = convert(checkpoint(), tmp_path / "out", q_mode=mode, verify=True)
    assert table(folder)["mode"] == mode and table(folder)["vision_projector.up"]["mode"] == "affine"
    assert np.abs(logits(folder) - logits(checkpoint())).mean() < 4
    packed = tensors(folder)
    back = tensors(convert(folder, tmp_path / "back", dequantize=True, dtype="float32"))
    name = "model.layers.0.mlp.down_proj.base"
    expected = mx.dequantize(packed[f"{name}.weight"], packed[f"{name}.scales"], mode=mode, dtype=mx.float32)
    assert mx.array_equal(back[f"{name}.weight"], expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_of_what_is_not_packed(checkpoint, tmp_path, dtype):
    folder = convert(checkpoint(), tmp_path / "out", dtype=dtype, verify=True)
    assert {a.dtype for a in tensors(folder).values()} == {mx.uint32, getattr(mx, dtype)}
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("options", [{}, {"q_bits": 8, "q_group_size": 32}, {"q_mode": "mxfp8"}, {"recipe": True}])
def test_text_folders_are_those_of_mlx_lm(checkpoint, tmp_path, options):
    """Tensor by tensor, mixed recipes included; each side loads the other's folder."""
    import mlx_lm

    options = {"quant_predicate": "mixed_3_6"} if options.pop("recipe", False) else options
    peer_options = options | ({"q_group_size": 64} if "quant_predicate" in options else {})
    source, ours, theirs = checkpoint("text", "wide"), tmp_path / "ours", tmp_path / "theirs"
    convert(source, ours, **options)
    mlx_lm.convert(str(source), str(theirs), quantize=True, **peer_options)
    one, other = tensors(ours), tensors(theirs)
    assert one.keys() == other.keys()
    assert all(one[name].dtype == other[name].dtype and mx.array_equal(one[name], other[name]) for name in one)
    ids = mx.array([[1, 2, 3, 4, 5]])
    assert mx.array_equal(mlx_lm.load(str(ours))[0](ids), mlx_lm.load(str(theirs))[0](ids))
    assert np.array_equal(logits(ours), logits(theirs))


def test_mlx_lm_answers_alike(converted):
    """It always turns by the long table; given the short one, logits agree."""
    import mlx_lm

    folder = converted("text", "wide")
    config = json.loads((folder / "config.json").read_text())
    scaling = config["rope_scaling"] | {"long_factor": config["rope_scaling"]["short_factor"]}
    peer, _ = mlx_lm.load(str(folder), model_config={"rope_scaling": scaling})
    model, processor = mlx_phi4.load(folder)
    inputs = processor(PROMPT)
    np.testing.assert_allclose(np.array(peer(inputs.input_ids)), np.array(model(inputs)), atol=1e-3)


def test_transformers_five_spelling_of_rope_reaches_mlx_lm(checkpoint, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoint("text"), source)
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"] = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    config["dtype"] = config.pop("torch_dtype")
    (source / "config.json").write_text(json.dumps(config))
    made = json.loads((convert(source, tmp_path / "out") / "config.json").read_text())
    assert made["rope_scaling"]["type"] == "longrope" and made["rope_theta"] == 10000.0
    assert made["torch_dtype"] == "float32" and "dtype" not in made


def test_companion_files_travel_and_code_does_not(checkpoint, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoint(), source)
    for name in ("chat_template.jinja", "LICENSE", "modeling_phi4mm.py", "training_args.bin"):
        (source / name).write_text("x")
    folder = convert(source, tmp_path / "out")
    kept = {path.name for path in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"} <= kept
    assert {"processor_config.json", "chat_template.jinja", "LICENSE", "README.md"} <= kept
    assert not [name for name in kept if name.endswith((".py", ".bin"))]


def test_text_use_of_a_multimodal_folder_reads_the_decoder_only(converted):
    model, processor = mlx_phi4.load(converted())
    inputs = processor(PROMPT)
    mx.eval(mx.zeros(1))
    before = mx.get_active_memory()
    mx.eval(model(inputs))
    read = mx.get_active_memory() - before
    assert read < 1.2 * sum(a.nbytes for name, a in tree_flatten(model.parameters()) if component(name) == "decoder")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint of the published sizes whose data is a hole in the file: headers are all a plan reads."""
    folder = write_random_checkpoint(tmp_path_factory.mktemp("published"), "microsoft", "reduced")
    (folder / "config.json").write_text(json.dumps(published_files.config(Sizes(), "microsoft", "bfloat16")))
    header, end = {}, 0
    for name, shape in published_tensors(Sizes(), "microsoft").items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def test_published_sizes_give_the_promised_bytes(published):
    default, small = make_plan(published), make_plan(published, adapter_bits=4)
    assert default.bytes_out <= 4.0e9 and small.bytes_out <= 3.6e9
    assert default.config["mlx_phi4"]["vision_intermediate_size"] == 4304
    assert default.config["img_processor"]["intermediate_size"] == 4352
    shards = default.shards(1_000_000_000)
    assert len(shards) == 5 and all(sum(shard_bytes(t.written) for t in shard) <= 1e9 for shard in shards)
    largest = max(default.tasks, key=lambda task: task.nbytes)  # the embedding, 1.23 GB, is worked on in pieces
    first, last = next(largest.pieces())
    assert largest.nbytes > 1.2e9 and largest.sources[0].row_bytes * (last - first) <= 16e6
    # every published linear divides into groups: nothing but what the rules leave out stays unpacked
    assert not [name for name, entry in default.config["quantization"].items() if entry is False]


def test_mixed_recipe_names_the_fused_projection_only_in_the_decoder():
    rules = Rules.of(32, quant_predicate="mixed_4_6")
    bits = {i: rules.scheme(f"model.layers.{i}.self_attn.qkv_proj.base", (5120, 3072)).bits for i in range(32)}
    assert [i for i, b in bits.items() if b == 6] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert rules.scheme("model.layers.0.self_attn.o_proj.base", (3072, 3072)).bits == 4
    assert rules.scheme("model.layers.0.mlp.down_proj.base", (3072, 8192)).bits == 6
    assert rules.scheme("audio_encoder.encoders.0.self_attn.v_proj", (1024, 1024)).bits == 8
    assert rules.scheme("model.layers.0.self_attn.qkv_proj.lora.vision.down", (256, 3072)).bits == 8


def test_the_next_smaller_group():
    assert Scheme(4, 128).fit(192) == Scheme(4, 64)
    assert Scheme(4, 64).fit(96) == Scheme(4, 32)
    assert Scheme(4, 64).fit(80) is None and Scheme(4, 32).fit(64) == Scheme(4, 32)


def test_a_decoder_that_no_group_divides_is_refused_by_name(tmp_path):
    odd = Sizes(
        hidden=144, layers=1, heads=2, kv_heads=1, mlp=256, vocab=320, vision_hidden=64, vision_mlp=64,
        vision_layers=2, vision_heads=4, audio_hidden=64, audio_mlp=64, audio_blocks=1, audio_heads=4,
        audio_channels=32, bias_rows=20, vision_rank=8, speech_rank=8,
    )  # fmt: skip
    folder = write_random_checkpoint(tmp_path / "odd", "text", odd)
    with pytest.raises(ConversionError, match=r"model\.embed_tokens\.weight \(320, 144\).*not a multiple of 32"):
        make_plan(folder)
    assert make_plan(folder, q_mode="nvfp4").config["quantization"]["group_size"] == 16
    assert make_plan(folder, quantize=False).config.get("quantization") is None


def test_conversion_in_any_thread(checkpoint, converted, tmp_path):
    """MLX's streams belong to threads; a server converts in one of its own."""
    with ThreadPoolExecutor(1) as pool:
        folder = pool.submit(convert, checkpoint("text"), tmp_path / "out").result()
    assert (folder / "model.safetensors").read_bytes() == (converted("text") / "model.safetensors").read_bytes()
