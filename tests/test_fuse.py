"""Fusing: an adapter in the weights answers as it did beside them, costs what is said, or is refused whole."""

import errno
import json

import mlx.core as mx
import numpy as np
import pytest
from adapter_samples import GOLDEN, logits, random_adapter, random_folder
from samples import MODES
from tolerances import near

import mlx_phi4
from mlx_phi4 import Phi4Error
from mlx_phi4.checkpoint.adapter_files import read_adapter, write_adapter
from mlx_phi4.commands import fuse as fuse_command
from mlx_phi4.converter import writer
from mlx_phi4.fusing import agreement
from mlx_phi4.fusing.agreement import Agreement
from mlx_phi4.fusing.fuse import check_cost, fuse
from mlx_phi4.fusing.plan import fused_plan


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few prompts and answers: what is measured is the same."""
    monkeypatch.setattr(agreement, "ABOUT_ANYTHING", agreement.ABOUT_ANYTHING[:3])
    monkeypatch.setattr(agreement, "ANSWERED", 4)


@pytest.fixture(scope="module")
def packed(checkpoint, tmp_path_factory):
    """The text model in 4 bits."""
    return mlx_phi4.convert(checkpoint("text"), tmp_path_factory.mktemp("packed") / "model")


def tensors(folder):
    return {name: array for path in folder.glob("*.safetensors") for name, array in mx.load(str(path)).items()}


@pytest.mark.parametrize("name", ["plain", "patterns", "dora", "split", "split_dora"])
def test_fused_weights_answer_as_the_adapter_does(checkpoint, name, tmp_path):
    found = fuse(checkpoint("text"), GOLDEN / name, tmp_path / "fused", most_change=0)
    assert [each.mode for each in found] == ["text"] and found[0].tokens > 40 and found[0].divergence < near(1e-6)
    beside, _ = mlx_phi4.load(checkpoint("text"), adapters={"mine": GOLDEN / name})
    fused, _ = mlx_phi4.load(tmp_path / "fused")
    assert np.abs(logits(fused) - logits(beside, "mine")).max() <= near(1e-4)
    before, after = tensors(checkpoint("text")), tensors(tmp_path / "fused")
    touched = {f"model.{path}.weight" for path in beside.adapters.get_adapter("mine").linears}
    differing = {name for name in before if not np.array_equal(np.array(before[name]), np.array(after[name]))}
    assert before.keys() == after.keys() and differing == touched
    assert "An adapter is in these weights" in (tmp_path / "fused" / "README.md").read_text()


def test_packed_weights_are_packed_again_as_they_were(checkpoint, packed, tmp_path):
    found = fuse(packed, GOLDEN / "rslora", tmp_path / "fused", most_change=1)
    assert found[0].divergence > 1e-4  # what packing costs is told
    before, after = tensors(packed), tensors(tmp_path / "fused")
    differing = {name for name in before if not mx.array_equal(before[name], after[name])}
    linears = ("model.layers.1.self_attn.qkv_proj", "model.layers.1.mlp.down_proj")
    assert differing == {f"{name}.{part}" for name in linears for part in ("weight", "scales", "biases")}
    assert {n: (w.shape, w.dtype) for n, w in before.items()} == {n: (w.shape, w.dtype) for n, w in after.items()}
    tables = [json.loads((each / "config.json").read_text())["quantization"] for each in (packed, tmp_path / "fused")]
    assert tables[0] == tables[1]
    beside, _ = mlx_phi4.load(packed, adapters={"mine": GOLDEN / "rslora"})
    fused, _ = mlx_phi4.load(tmp_path / "fused")
    moved = np.abs(logits(beside, "mine") - logits(beside)).mean()
    assert np.abs(logits(fused) - logits(beside, "mine")).mean() < moved


def test_dequantized_weights_answer_as_the_adapter_does(packed, tmp_path):
    found = fuse(packed, GOLDEN / "plain", tmp_path / "fused", dequantize=True, most_change=0)
    assert found[0].divergence < near(1e-5)
    assert "quantization" not in json.loads((tmp_path / "fused" / "config.json").read_text())
    assert not any(name.endswith(".scales") for name in tensors(tmp_path / "fused"))


@pytest.mark.parametrize("dequantize", [False, True])
def test_a_packed_multimodal_model_keeps_all_the_rest(checkpoint, tmp_path, dequantize):
    """Biases of packed encoders were once lost on the way to a folder without packed weights."""
    source = mlx_phi4.convert(checkpoint(), tmp_path / "packed")
    before, processor = mlx_phi4.load(source)
    adapter = random_adapter(before.config, scale=0.5)
    plan = fused_plan(source, adapter, dequantize=dequantize)
    writer.write(plan, tmp_path / "fused")
    after, _ = mlx_phi4.load(tmp_path / "fused")
    encoded = [net.embed(processor.row(MODES["speech"])) for net in (before, after)]
    assert mx.abs(encoded[0] - encoded[1]).max() < (1e-3 if dequantize else 1e-9)
    before.add_adapter("mine", adapter)
    moved = np.abs(logits(before, "mine") - logits(before)).mean()
    assert np.abs(logits(after) - logits(before, "mine")).mean() < (1e-3 if dequantize else moved)


def test_answers_that_change_more_than_asked_are_refused(packed, tmp_path):
    with pytest.raises(Phi4Error, match=r"more than asked \(0 %\): text: .* % of \d+ tokens change.*--dequantize"):
        fuse(packed, GOLDEN / "plain", tmp_path / "fused", most_change=0)
    assert not any(tmp_path.iterdir())


def test_answers_about_media_are_judged_where_that_is_asked():
    """A changed base is another one for the adapters that were made for it."""
    found = [Agreement("text", 100, 0.01, 0.1), Agreement("vision", 20, 0.2, 0.1), Agreement("speech", 20, 0.0, 0.0)]
    check_cost(found, 0.05, 1.0)
    with pytest.raises(Phi4Error, match=r"\(0 %\): text: 1.0 % of 100 tokens change.*--dequantize"):
        check_cost(found, 0.0, 1.0)
    with pytest.raises(Phi4Error, match=r"\(5 %\): vision: 20.0 % of 20 tokens change.*--most-media-change"):
        check_cost(found, 0.05, 0.05)


def test_a_text_adapter_goes_into_a_multimodal_model(checkpoint, tmp_path):
    model, _ = mlx_phi4.load(checkpoint())
    random_folder(tmp_path / "mine", model.config, linears=("layers.0",))
    found = fuse(checkpoint(), tmp_path / "mine", tmp_path / "fused", most_change=0, prompts=["Hello"])
    assert [each.mode for each in found] == ["text", "vision", "speech"] and found[0].divergence < near(1e-5)
    fused, _ = mlx_phi4.load(tmp_path / "fused")
    model.add_adapter("mine", tmp_path / "mine")
    assert np.abs(logits(fused) - logits(model, "mine")).max() <= near(1e-4)
    assert list(fused.adapters) == ["speech", "vision"]


# adapters elsewhere


@pytest.mark.parametrize("form", ["peft", "mlx-lm"])
def test_a_models_own_adapter_is_taken_elsewhere(checkpoint, run_command, form, tmp_path):
    code, out, said = run_command(
        fuse_command.command,
        "--model",
        checkpoint(),
        "--use-adapter",
        "speech",
        "--to",
        form,
        "--save-path",
        tmp_path / "s",
    )
    assert (code, out) == (0, "") and f"The adapter is in {tmp_path / 's'}" in said
    model, _ = mlx_phi4.load(checkpoint(), adapters={"again": tmp_path / "s"})
    assert np.array_equal(logits(model, "again"), logits(model, "speech"))
    assert "LoRA of rank 24 on 8 linears" in (tmp_path / "s" / "README.md").read_text()


def test_a_sum_is_taken_elsewhere(checkpoint, tmp_path):
    random_folder(tmp_path / "mine", mlx_phi4.load(checkpoint())[0].config)
    fuse(checkpoint(), "vision+mine", tmp_path / "both", adapters={"mine": tmp_path / "mine"}, form="peft")
    adapters = {"mine": tmp_path / "mine", "sum": "vision+mine", "both": tmp_path / "both"}
    model, _ = mlx_phi4.load(checkpoint(), adapters=adapters)
    assert np.abs(logits(model, "both") - logits(model, "sum")).max() < near(1e-4)


def test_nothing_is_rounded_on_the_way(checkpoint, tmp_path):
    """From mlx-lm's form to peft's, through a model of another precision."""
    rounded = mlx_phi4.convert(checkpoint("text"), tmp_path / "rounded", quantize=False, dtype="bfloat16")
    model, _ = mlx_phi4.load(rounded)
    adapter = random_adapter(model.config, scale=1.7)
    write_adapter(tmp_path / "mine", adapter, model.config.decoder, form="mlx-lm")
    fuse(rounded, tmp_path / "mine", tmp_path / "again", form="peft")
    assert read_adapter(tmp_path / "again", model.config.decoder).digest == adapter.digest


# refused


def test_bad_input_is_one_line(checkpoint, run_command, tmp_path, monkeypatch):
    model, mine = checkpoint(), random_folder(tmp_path / "mine", mlx_phi4.load(checkpoint())[0].config)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years")
    (tmp_path / "empty.txt").write_text("\n")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    for options, message in (
        ((), "Give --adapter-path FOLDER, or --use-adapter NAME"),
        (("--adapter-path", mine, "--use-adapter", "vision"), "Give --adapter-path FOLDER, or"),
        (("--use-adapter", "vision"), "'vision' is the model's own adapter"),
        (("--use-adapter", "vision+mine", "--adapter", f"mine={mine}"), "'vision' is the model's own adapter"),
        (("--use-adapter", "yours"), "adapter name is 'yours', this model has"),
        (("--adapter-path", tmp_path / "none"), "no such folder"),
        (("--adapter-path", mine, "--save-path", tmp_path / "taken"), "exists already"),
        (("--adapter-path", mine, "--save-path", tmp_path / "taken", "--overwrite"), "is not a model folder"),
        (("--adapter-path", mine, "--save-path", tmp_path / "taken", "--to", "peft"), "exists already"),
        (("--adapter-path", mine, "--to", "peft", "-d"), "go with --to model"),
        (("--adapter-path", mine, "--prompts", tmp_path / "empty.txt"), "holds no prompts"),
        (("--adapter-path", mine, "--most-change", "2"), "most_change is 2.0, expected between 0 and 1"),
        (("--adapter-path", mine, "--upload-repo", "me/model"), "no hub token"),
    ):
        given = ("--save-path", tmp_path / "out") if "--save-path" not in options else ()
        code, out, said = run_command(fuse_command.command, "--model", model, *options, *given)
        assert code == 2 and out == "" and message in said and said.count("\n") == 1, said
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty.txt", "mine", "taken"]


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_write_shard", full)
    with pytest.raises(Phi4Error, match=r"No space left on device$"):
        fuse(checkpoint("text"), GOLDEN / "plain", tmp_path / "fused")
    assert not any(tmp_path.iterdir())


def test_a_former_result_is_replaced_only_when_asked(checkpoint, tmp_path):
    for overwrite in (False, True):
        fuse(checkpoint("text"), GOLDEN / "rslora", tmp_path / "fused", overwrite=overwrite)
    with pytest.raises(Phi4Error, match="is or holds the source"):
        fuse(tmp_path / "fused", GOLDEN / "rslora", tmp_path / "fused", overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["fused"]
