"""Folders of adapters: peft's and mlx-lm's, read exactly or refused by name, and written so that nothing is lost."""

import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from adapter_samples import GOLDEN, LOGITS, PEFT, logits, random_adapter, random_folder
from tolerances import near

import mlx_phi4
from mlx_phi4 import Phi4Error
from mlx_phi4.checkpoint.adapter_files import read_adapter, write_adapter
from mlx_phi4.decoder.identity import identify


@pytest.fixture(scope="module")
def model(checkpoint):
    """The text model that the golden adapters were trained on, with all of them."""
    return mlx_phi4.load(checkpoint("text"), adapters={name: GOLDEN / name for name in PEFT})[0]


@pytest.fixture
def folder(tmp_path):
    """A function (golden adapter) -> a copy of its folder."""
    return lambda name="plain": shutil.copytree(GOLDEN / name, tmp_path / name)


def edit_config(folder, **options):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return folder


def edit_tensors(folder, change, name="adapter_model.safetensors"):
    """Pass a folder's tensors through a function, which may change the dictionary or return another."""
    tensors = mx.load(str(folder / name))
    mx.eval(tensors)
    mx.save_safetensors(str(folder / name), change(tensors) or tensors)
    return folder


# exactly


@pytest.mark.parametrize("name", ["base", *PEFT])
def test_logits_are_those_of_peft(model, name):
    found = logits(model, None if name == "base" else name)[::8]
    assert np.abs(found - LOGITS[name]).max() <= near(1e-4)
    assert name == "base" or np.abs(found - LOGITS["base"]).max() > 0.1


@pytest.mark.parametrize("name", PEFT)
@pytest.mark.parametrize("form", ["peft", "mlx-lm"])
def test_what_is_written_is_read_again_bit_by_bit(model, name, form, tmp_path):
    adapter, decoder = read_adapter(GOLDEN / name, model.config.decoder), model.config.decoder
    if form == "mlx-lm" and len({part.scale for part in adapter.linears.values()}) > 1:
        with pytest.raises(Phi4Error, match="mlx-lm has one scale for all linears"):
            write_adapter(tmp_path / "out", adapter, decoder, form=form)
        assert not any(tmp_path.iterdir())
        return
    if name == "split_dora":
        with pytest.raises(Phi4Error, match="have no magnitude yet"):
            write_adapter(tmp_path / "out", adapter, decoder, form=form)
        return
    again = read_adapter(write_adapter(tmp_path / "out", adapter, decoder, form=form), decoder)
    assert again.digest == adapter.digest
    assert {path: part.scale for path, part in again.linears.items()} == {
        path: part.scale for path, part in adapter.linears.items()
    }


@pytest.mark.parametrize("form", ["peft", "mlx-lm"])
@pytest.mark.parametrize("name", ["vision", "speech"])
def test_a_models_own_adapters_can_be_taken_elsewhere(checkpoint, name, form, tmp_path):
    model, _ = mlx_phi4.load(checkpoint("microsoft"))
    write_adapter(tmp_path / "out", model.adapters.get_adapter(name), model.config.decoder, form=form)
    model.add_adapter("again", tmp_path / "out")
    assert np.array_equal(logits(model, "again"), logits(model, name))


def test_rows_that_dora_left_out_have_the_bases_norm_where_they_are_written(model, tmp_path):
    """q and k trained with DoRA, v not at all: peft's form for the fused linear needs a magnitude for v, too."""
    whole = model.adapters.get_adapter("split_dora")
    assert not any(mx.isnan(part.magnitude).any() for part in whole.linears.values())
    write_adapter(tmp_path / "out", whole, model.config.decoder)
    model.add_adapter("rows", tmp_path / "out")
    try:
        assert np.array_equal(logits(model, "rows"), logits(model, "split_dora"))
    finally:
        model.remove_adapter("rows")


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_outputs_are_those_of_mlx_lm(checkpoint, dora, tmp_path):
    """mlx-lm reads what is written here, and computes the same in every linear."""
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    model, _ = mlx_phi4.load(checkpoint("text"))
    random_folder(tmp_path / "mine", model.config, "mlx-lm", rank=3, scale=1.7, dora=dora, linears=("layers.1",))
    model.add_adapter("mine", tmp_path / "mine")
    theirs = load_adapters(load_model(checkpoint("text"))[0], str(tmp_path / "mine"))
    x = mx.random.normal((1, 5, 128), key=mx.random.key(1))
    for block, name in (("self_attn", "qkv_proj"), ("self_attn", "o_proj"), ("mlp", "gate_up_proj")):
        from mlx_phi4.decoder.adapters import Route

        ours = model.model.layers[1][block][name](x, Route.of([("mine", 5)]))
        assert mx.abs(ours - theirs.layers[1][block][name](x)).max() <= near(1e-4)
    assert type(theirs.layers[0].mlp.gate_up_proj) is nn.Linear  # the first layer was left out


def test_linears_that_an_adapter_lacks_are_not_missed(model, tmp_path):
    """A folder names what it holds: one of the first layer alone is not taken for one that lost the others."""
    for form in ("peft", "mlx-lm"):
        adapter = random_adapter(model.config, linears=("layers.0.mlp", "layers.1.self_attn.o_proj"))
        folder = write_adapter(tmp_path / form, adapter, model.config.decoder, form=form)
        assert read_adapter(folder, model.config.decoder).linears.keys() == adapter.linears.keys()


def test_one_rank_for_all_is_made_of_zeros_and_taken_back(model, tmp_path):
    adapter = random_adapter(model.config, rank=2)
    adapter.linears.update(random_adapter(model.config, seed=1, rank=5, linears=("down_proj",)).linears)
    folder = write_adapter(tmp_path / "out", adapter, model.config.decoder, form="mlx-lm")
    tensors = mx.load(str(folder / "adapters.safetensors"))
    assert {array.shape[0] for name, array in tensors.items() if name.endswith("lora_b")} == {5}
    assert read_adapter(folder, model.config.decoder).digest == adapter.digest


# refused

CONFIGS = {
    "peft_type": ("LOHA", "peft_type is 'LOHA'"),
    "modules_to_save": (["lm_head"], "modules_to_save .*whole layers"),
    "bias": ("lora_only", "bias 'lora_only' .biases"),
    "lora_bias": (True, "lora_bias True .biases"),
    "trainable_token_indices": ([1, 2], "trained tokens"),
    "layer_replication": ([[0, 1], [0, 2]], "another number of layers"),
    "init_lora_weights": ("pissa", "'pissa' .a converted initialisation"),
    "fan_in_fan_out": (True, "transposed weights"),
    "use_qalora": (True, "use_qalora True"),
    "target_parameters": (["mlp.experts"], "adapters of bare parameters"),
    "something_new": (1, "something_new 1"),
    "r": (0, "r is 0"),
    "lora_alpha": (None, "lacks lora_alpha"),
    "rank_pattern": ({"o_proj": 5}, r"o_proj lora_A is \(4, 128\), expected \(5, 128\)"),
    "target_modules": (["qkv_proj"], "does not target"),
    "layers_to_transform": ([0], "does not target: model.layers.1"),
    "exclude_modules": ("(a+)+", "more complicated"),
    "alpha_pattern": ({"(": 1}, "is no pattern"),
    "use_dora": (True, "lacks lora_magnitude_vector"),
}


@pytest.mark.parametrize("option", CONFIGS)
def test_what_cannot_be_exact_is_refused_by_name(model, folder, option):
    value, message = CONFIGS[option]
    edited = edit_config(folder(), **{option: value})
    with pytest.raises(Phi4Error, match=message) as refused:
        model.add_adapter("new", edited)
    assert "plain: " in str(refused.value) and "new" not in model.adapters


@pytest.mark.parametrize("option", ["use_rslora", "use_dora", "layers_pattern", "rank_pattern", "r", "target_modules"])
def test_values_of_the_wrong_kind_are_refused(model, folder, option):
    with pytest.raises(Phi4Error, match=option):
        read_adapter(edit_config(folder(), **{option: {"a": []}}), model.config.decoder)


O_PROJ = "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"
TENSORS = {
    "transposed": (lambda t: {n: w.T for n, w in t.items()}, r"expected \(4, \d+\): it is transposed"),
    "one transposed": (lambda t: t.update({O_PROJ: t[O_PROJ].T}), r"o_proj lora_A is \(128, 4\).*transposed"),
    "missing": (lambda t: {n: w for n, w in t.items() if n != O_PROJ}, "o_proj lacks lora_A"),
    "missing linear": (
        lambda t: {n: w for n, w in t.items() if "0.mlp.down" not in n},
        "lacks .* targets: .*down_proj",
    ),
    "all missing": (lambda t: {"x": mx.zeros(1)}, "1 tensors are not of this model's decoder linears: x"),
    "twice": (lambda t: t.update({O_PROJ.replace(".weight", ".default.weight"): t[O_PROJ]}), "there twice"),
    "beyond": (lambda t: t.update({O_PROJ.replace(".0.", ".2."): t[O_PROJ]}), "not of this model's decoder"),
    "bias": (lambda t: t.update({O_PROJ.replace("A.weight", "B.bias"): mx.zeros(128)}), "a bias"),
    "head": (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": mx.zeros((4, 128))}), "the output head"),
    "encoder": (
        lambda t: t.update({"model.embed_tokens_extend.image_embed.x.lora_A.weight": mx.zeros((4, 4))}),
        "an encoder",
    ),
    "not finite": (lambda t: t.update({O_PROJ: t[O_PROJ] * mx.nan}), "NaN or infinite"),
    "both forms": (
        lambda t: t.update({O_PROJ.replace("o_proj", "q_proj"): t[O_PROJ]}),
        "does not target|lacks",
    ),
    "mlx-lm's names": (
        lambda t: {n.replace("lora_A.weight", "lora_a"): w for n, w in t.items()},
        "not of this model's",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(model, folder, case):
    change, message = TENSORS[case]
    with pytest.raises(Phi4Error, match=message):
        model.add_adapter("new", edit_tensors(folder(), change))
    assert "new" not in model.adapters


MLX_LM = {
    "fine_tune_type": ("full", "fine_tune_type is 'full'"),
    "lora_parameters": ({"rank": 4, "alpha": 8}, "alpha and no scale"),
}


@pytest.mark.parametrize("option", MLX_LM)
def test_mlx_lms_options_are_refused_by_name(model, tmp_path, option):
    value, message = MLX_LM[option]
    folder = random_folder(tmp_path / "mine", model.config, "mlx-lm")
    with pytest.raises(Phi4Error, match=message):
        read_adapter(edit_config(folder, **{option: value}), model.config.decoder)


def test_mlx_lms_tensors_that_do_not_fit_are_refused(model, tmp_path):
    folder = random_folder(tmp_path / "mine", model.config, "mlx-lm")
    swapped = edit_tensors(folder, lambda t: {n: w.T for n, w in t.items()}, "adapters.safetensors")
    with pytest.raises(Phi4Error, match="it is transposed"):
        read_adapter(swapped, model.config.decoder)


def test_a_folder_that_is_none_is_told_in_a_line(model, tmp_path, folder):
    def refused(path, message):
        with pytest.raises(Phi4Error, match=message) as told:
            model.add_adapter("new", path)
        assert "\n" not in str(told.value)

    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "is no adapter's folder")
    refused(GOLDEN / "logits.npz", "is a file, expected a folder")
    damaged = folder()
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    refused(damaged, "is not a complete safetensors file")
    (damaged / "adapter_config.json").write_text("{")
    refused(damaged, "cannot be read")
    (damaged / "adapter_config.json").unlink()
    refused(damaged, "no adapter_config.json")
    weights.rename(damaged / "adapter_model.bin")
    refused(damaged, "only pickled weights")


# which base


def test_an_adapter_knows_its_base(checkpoint, tmp_path):
    """A LoRA serves its base in any precision, a DoRA only the very weights; neither serves another model."""
    model, _ = mlx_phi4.load(checkpoint("text"))
    base = identify(model)
    for name, dora in (("lora", False), ("dora", True)):
        random_folder(tmp_path / name, model.config, dora=dora, base=base)
        model.add_adapter(name, tmp_path / name)
    assert model.adapters.get_adapter("lora").base == base
    rounded, _ = mlx_phi4.load(checkpoint("text"), dtype="bfloat16")
    rounded.add_adapter("lora", tmp_path / "lora")
    with pytest.raises(Phi4Error, match="dora: is a DoRA, whose gains belong to the base"):
        rounded.add_adapter("dora", tmp_path / "dora")
    other, _ = mlx_phi4.load(checkpoint("microsoft"))
    other.model.norm.weight = other.model.norm.weight * 2
    with pytest.raises(Phi4Error, match="was trained on another base"):
        other.add_adapter("lora", tmp_path / "lora")


# writing


def test_a_folder_is_written_whole_or_not_at_all(model, tmp_path, monkeypatch):
    adapter, decoder = random_adapter(model.config), model.config.decoder
    there = write_adapter(tmp_path / "mine", adapter, decoder)
    with pytest.raises(Phi4Error, match="exists already"):
        write_adapter(there, adapter, decoder)
    with pytest.raises(Phi4Error, match="another form"):
        write_adapter(there, adapter, decoder, form="mlx-lm", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years")
    with pytest.raises(Phi4Error, match="is no adapter's folder"):
        write_adapter(tmp_path / "other", adapter, decoder, overwrite=True)
    before = {path.name: path.read_bytes() for path in there.iterdir()}

    def full(*arguments):
        arguments[0].write(b"half")
        raise RuntimeError("[save_safetensors] No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    for folder, overwrite in ((there, True), (tmp_path / "new", False)):
        with pytest.raises(Phi4Error, match="cannot be written"):
            write_adapter(folder, random_adapter(model.config, seed=1), decoder, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other"]
