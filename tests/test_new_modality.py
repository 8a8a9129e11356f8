"""A modality in one folder: trained over a frozen base, added at run time, served beside the four others."""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_phi4
from mlx_phi4 import Phi4Error, Request, add_modality, batch_generate, generate, load, train_adapter
from mlx_phi4.checkpoint.modality_loading import new_modality
from mlx_phi4.modalities import MODALITIES
from mlx_phi4.training import run

EXAMPLE = Path(__file__).parents[1] / "examples" / "series"


@pytest.fixture(scope="module")
def example():
    """The example's modules; the table of modalities and the names of modules are put back."""
    sys.path.insert(0, str(EXAMPLE))
    before = dict(MODALITIES)
    import data
    import series
    import train

    MODALITIES.setdefault(series.KIND, series.SERIES)
    yield {"data": data, "series": series, "train": train}
    MODALITIES.clear()
    MODALITIES.update(before)
    sys.path.remove(str(EXAMPLE))
    for name in ("data", "series", "train"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    """The example's stages, cut short: the folder, and its data."""
    work = tmp_path_factory.mktemp("series")
    data = example["data"].write(work / "data", train=48, valid=6, test=12)
    usual = run.mode_digests
    run.mode_digests = lambda model, processor: {"text": "not computed"}
    try:
        folder, right = example["train"].train(work, data, share=0.02, quiet=True)
    finally:
        run.mode_digests = usual
    assert len(right) == 4
    return folder


def series(example, shape="square", seed=0):
    return example["data"].draw(shape, np.random.default_rng(seed)).tolist()


def test_the_stages_end_in_one_folder_that_changes_nothing_else(example, trained):
    assert sorted(path.name for path in trained.iterdir()) == ["adapter", "modality.json", "modality.safetensors"]
    assert not any(path.suffix in (".py", ".pkl", ".bin") for path in trained.rglob("*"))
    assert example["train"].unchanged(trained)
    model, _ = example["train"].opened(trained)
    assert "series" in model.adapters and model.config.added["series"] == example["series"].SETTINGS


def test_five_kinds_in_one_batch_get_what_they_get_alone(example, trained):
    answers = example["train"].answers(trained, series(example))
    assert list(answers) == ["text", "vision", "speech", "vision-speech", "series"]
    assert list(answers.values())[:4] == ["Paris", "7", "turn on the radio", "star"]
    model, processor = example["train"].opened(trained)
    asked = Request("What shape is it?", media={"series": [series(example)]})
    assert batch_generate(model, processor, [asked], max_tokens=12)[0].text == answers["series"]


def test_what_was_trained_is_what_is_loaded(example, trained):
    stored = mx.load(str(trained / "modality.safetensors"))
    model, processor = example["train"].opened(trained)
    held = dict(tree_flatten(model.parameters()))
    assert all(mx.array_equal(array, held[name]) for name, array in stored.items())
    asked = {"media": {"series": [series(example)]}}
    assert processor.row(Request("What?", **asked)).adapter == "series"
    assert processor.row(Request("What?", **asked, adapter="base")).adapter is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "modality.json").unlink(), "holds no modality"),
        (lambda folder: edit(folder, kind="smell"), "kind 'smell' is not known"),
        (lambda folder: edit(folder, format=9), "format is 9"),
        (lambda folder: edit(folder, modules=["series_encoder"]), "lacks series_projector"),
        (lambda folder: edit(folder, base={"weights": "0" * 32, "norms": "0" * 32}), "another base"),
        (lambda folder: (folder / "modality.safetensors").write_bytes(b"x" * 99), "not a complete safetensors"),
        (lambda folder: (folder / "adapter" / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: drop(folder), "series_projector.up.weight is missing"),
    ],
)
def test_a_damaged_folder_is_one_line_and_leaves_the_model_as_it_was(example, trained, tmp_path, damage, said):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    damage(folder)
    model, processor = load("phi4-tiny")
    before = dict(tree_flatten(model.parameters())).keys()
    with pytest.raises(Phi4Error, match=said) as error:
        add_modality(model, processor, folder)
    assert "\n" not in str(error.value) and dict(tree_flatten(model.parameters())).keys() == before
    assert generate(model, processor, "What is the capital of France?") == "Paris"
    assert add_modality(model, processor, trained) == "series"  # nothing was left behind


def edit(folder, **changes):
    file = folder / "modality.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop(folder):
    arrays = mx.load(str(folder / "modality.safetensors"))
    del arrays["series_projector.up.weight"]
    mx.save_safetensors(str(folder / "modality.safetensors"), arrays)


def test_what_cannot_be_added(example, trained, loaded, monkeypatch):
    model, processor = example["train"].opened(trained)
    with pytest.raises(Phi4Error, match="adapter 'series' already"):
        add_modality(model, processor, trained)
    with pytest.raises(Phi4Error, match="has a series encoder already"):
        new_modality(model, processor, "series")
    with pytest.raises(Phi4Error, match="kind is 'smell', registered are image, audio, series"):
        new_modality(model, processor, "smell")
    model, processor = load("phi4-tiny")
    monkeypatch.setitem(MODALITIES, "series", example["series"].SERIES.__class__(
        **{**vars(example["series"].SERIES), "tokens": ("<|nowhere|>",)}))  # fmt: skip
    with pytest.raises(Phi4Error, match=r"none of <\|nowhere\|> to mark a series"):
        new_modality(model, processor, "series", example["series"].SETTINGS)


def test_a_tuned_projector_of_the_models_own_is_a_folder_too(checkpoint, tmp_path, monkeypatch):
    """It replaces what the model has, where the program asks for it; quantized weights make room for plain ones."""
    from PIL import Image

    monkeypatch.setattr(run, "mode_digests", lambda model, processor: {"text": "not computed"})
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "x", "completion": "y", "image": "a.png"}) + "\n")
    result = train_adapter(
        checkpoint(), tmp_path, adapter_path=tmp_path / "out", tune="vision_projector", iters=2, learning_rate=1e-2,
        quiet=True, plot=False, cache_features=False,
    )  # fmt: skip
    assert result.folders == {"image": tmp_path / "out" / "image"}
    mlx_phi4.convert(checkpoint(), tmp_path / "packed")
    for folder in (checkpoint(), tmp_path / "packed"):
        model, processor = load(folder)
        inputs = [processor.batch([Request("x", **media)]) for media in ({}, {"images": [tmp_path / "a.png"]})]
        before = [model(each) for each in inputs]
        mx.eval(before)
        assert add_modality(model, processor, result.folders["image"]) == "image"
        same = [mx.array_equal(old, model(each)) for old, each in zip(before, inputs, strict=True)]
        assert [bool(each) for each in same] == [True, False]
