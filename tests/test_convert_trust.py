"""What a conversion refuses, and that no end of it leaves something that only looks finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_phi4 import Phi4Error
from mlx_phi4.converter import writer
from mlx_phi4.converter.convert import convert
from mlx_phi4.converter.plan import make_plan
from mlx_phi4.converter.verify import verify
from mlx_phi4.converter.writer import exclusive, partial_folder, write
from mlx_phi4.errors import ConversionError
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

SHARD = 200_000  # bytes: five shards of a reduced model


@pytest.fixture
def source(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint(), tmp_path / "source"))


@pytest.fixture
def sharded(tmp_path):
    return write_random_checkpoint(tmp_path / "sharded", shard_bytes=1_000_000)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(*arguments, **options):
    """The one line; and nothing is left behind that was not there."""
    destination = Path(arguments[1])
    before = sorted(destination.parent.iterdir())
    with pytest.raises(Phi4Error) as caught:
        convert(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert sorted(destination.parent.iterdir()) == before
    return str(caught.value)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(folder, change, file="model.safetensors"):
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file)


# sources


def test_missing_shard(sharded, tmp_path):
    path = sorted(sharded.glob("*.safetensors"))[1]
    path.unlink()
    assert f"named in the index are missing: {path.name}" in refusal(sharded, tmp_path / "out")


def test_truncated_shard(sharded, tmp_path):
    path = sorted(sharded.glob("*.safetensors"))[2]
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path.name} is not a complete safetensors file" in refusal(sharded, tmp_path / "out")


def test_index_and_shard_disagree(sharded, tmp_path):
    path = sorted(sharded.glob("*.safetensors"))[0]
    edit_json(
        sharded / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({"model.norm.weight": path.name}),
    )
    assert "disagree about model.norm.weight" in refusal(sharded, tmp_path / "out")


def test_unknown_layout(source, tmp_path):
    edit_json(source / "config.json", lambda config: config.update(model_type="llama"))
    assert "model_type is 'llama'" in refusal(source, tmp_path / "out")


def test_merged_adapters(source, tmp_path):
    def merge(weights):
        for name in list(weights):
            array = weights.pop(name)
            if "lora" not in name:
                weights["language_model." + name] = array

    edit_weights(source, merge)
    assert "both adapters were merged" in refusal(source, tmp_path / "out")


def test_only_pickled_weights(source, tmp_path):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin), which are never loaded" in refusal(source, tmp_path / "out")


def test_a_tensor_of_another_shape_or_absent(source, tmp_path):
    def spoil(weights):
        weights["model.norm.weight"] = weights["model.norm.weight"][:5]
        del weights["model.layers.1.mlp.down_proj.base_layer.weight"]

    edit_weights(source, spoil)
    message = refusal(source, tmp_path / "out")
    assert "model.norm.weight (5,), expected (128,)" in message and "layers.1.mlp.down_proj" in message


def test_a_folder_without_tokenizer(source, tmp_path):
    (source / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_in_a_weight_is_not_packed_away(source, tmp_path, value):
    """A quantized group can hide one: it must be found while it can be seen."""

    def spoil(weights):
        weights["model.layers.0.mlp.down_proj.base_layer.weight"][3, 5] = value

    edit_weights(source, spoil)
    assert "mlp.down_proj.base_layer.weight holds NaN" in refusal(source, tmp_path / "out")


def test_integer_weights(source, tmp_path):
    edit_weights(source, lambda w: w.update({"model.norm.weight": w["model.norm.weight"].astype(np.uint8)}))
    assert "model.norm.weight is U8" in refusal(source, tmp_path / "out")


def test_quantized_and_unquantized_the_wrong_way(source, tmp_path):
    assert "nothing to dequantize" in refusal(source, tmp_path / "out", dequantize=True)
    packed = convert(source, tmp_path / "packed")
    assert "quantized already" in refusal(packed, tmp_path / "out")


@pytest.mark.parametrize("spoil", ["bits", "entry", "scales"])
def test_table_and_tensors_must_agree(source, tmp_path, spoil):
    folder = convert(source, tmp_path / "packed")
    if spoil == "scales":
        edit_weights(folder, lambda w: w.pop("model.embed_tokens.scales"))
    else:
        name = "vision_projector.up"
        change = {"bits": {"group_size": 64, "bits": 4, "mode": "affine"}, "entry": False}[spoil]
        edit_json(folder / "config.json", lambda config: config["quantization"].update({name: change}))
    with pytest.raises(Phi4Error, match=r"model\.embed_tokens|vision_projector\.up"):
        verify(folder)


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q_bits": 7}, "bits of mode affine is 7, expected 2, 3, 4, 5, 6, 8"),
        ({"q_bits": 0}, "bits of mode affine is 0"),
        ({"q_group_size": 48}, "group size of mode affine is 48, expected 32, 64, 128"),
        ({"q_mode": "mxfp4", "q_bits": 8}, "bits of mode mxfp4 is 8, expected 4"),
        ({"q_mode": "fp8"}, "mode is 'fp8', expected affine, mxfp4, nvfp4, mxfp8"),
        ({"adapter_bits": 7}, "adapter bits are 7"),
        ({"encoder_bits": 1}, "encoder bits are 1"),
        ({"quant_predicate": "mixed_9_9"}, "expected mixed_2_6"),
        ({"quant_predicate": "mixed_3_6", "q_mode": "mxfp8"}, "brings its own bits"),
        ({"quantize": False, "q_bits": 4}, "--q-bits does not go together with --no-quantize"),
        ({"dequantize": True, "adapter_bits": 4}, "--adapter-bits does not go together with --dequantize"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"revision": "main"}, "has no revision"),
    ],
)
def test_bad_options(checkpoint, tmp_path, options, message):
    assert message in refusal(checkpoint(), tmp_path / "out", **options)


# destinations


def test_an_existing_destination(checkpoint, tmp_path):
    out = convert(checkpoint(), tmp_path / "out")
    before = contents(out)
    assert "--overwrite replaces it" in refusal(checkpoint(), out)
    assert contents(out) == before
    convert(checkpoint(), out, overwrite=True, q_bits=8)
    assert contents(out) != before and sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_failed_overwrite_leaves_the_old_folder(source, tmp_path):
    out = convert(source, tmp_path / "out")
    before = contents(out)
    edit_weights(source, lambda w: w["model.norm.weight"].fill(np.inf))
    assert "holds NaN or infinite values" in refusal(source, out, overwrite=True)
    assert contents(out) == before


def test_overwrite_spares_what_is_no_model(checkpoint, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "precious.txt").write_text("x")
    assert "is not a model folder" in refusal(checkpoint(), tmp_path / "letters", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert (convert(checkpoint("text"), tmp_path / "empty") / "config.json").exists()


def test_the_source_is_never_the_destination(source):
    for there in (source, source.parent):
        with pytest.raises(ConversionError, match="is or holds the source"):
            (source.parent / "config.json").write_text("{}")
            convert(source, there, overwrite=True)
    assert (source / "model.safetensors").exists()


def test_no_space(checkpoint, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=40_000_000))
    with pytest.raises(ConversionError, match=r"0\.05 GB of disk are needed, 0\.04 GB are free"):
        convert(checkpoint(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_can_be_gone_on_with(checkpoint, tmp_path, monkeypatch):
    def full(self, name, row, array):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer.ShardWriter, "write", full)
        with pytest.raises(ConversionError, match=r"No space left on device; free some and use --resume"):
            convert(checkpoint(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(checkpoint(), tmp_path / "out", resume=True)


def test_no_permission(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match=r"file.*: (Not a directory|File exists)"):
        convert(checkpoint(), tmp_path / "file" / "out")
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ConversionError, match="Permission denied"):
        convert(checkpoint(), tmp_path / "closed" / "out")


def test_one_writer_at_a_time(checkpoint, tmp_path):
    with exclusive(tmp_path / "out"), pytest.raises(ConversionError, match="another conversion is writing"):
        convert(checkpoint(), tmp_path / "out")
    convert(checkpoint(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# interruptions

KILLED = """
import os, signal, sys
from pathlib import Path
from mlx_phi4.converter import writer
from mlx_phi4.converter.plan import make_plan
source, out, after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
original = writer._write_shard
def write_shard(path, tasks, progress):
    global after
    if after == 0:
        write = writer.ShardWriter.write
        writer.ShardWriter.write = lambda self, *rest: (write(self, *rest), os.kill(os.getpid(), signal.SIGKILL))
    after -= 1
    original(path, tasks, progress)
writer._write_shard = write_shard
writer.write(make_plan(source), out, shard_limit=int(sys.argv[4]))
"""


@pytest.mark.parametrize("after", [0, 3])
def test_a_killed_run_looks_unfinished_and_resumes_to_the_same_bytes(checkpoint, tmp_path, after):
    source, out, whole = checkpoint(), tmp_path / "out", tmp_path / "whole"
    write(make_plan(source), whole, shard_limit=SHARD)
    killed = subprocess.run([sys.executable, "-c", KILLED, source, out, str(after), str(SHARD)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    partial = partial_folder(out)
    finished = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert len(finished) == after and not (partial / "config.json").exists()
    with pytest.raises(Phi4Error):
        verify(partial)
    write(make_plan(source), out, shard_limit=SHARD, resume=True)
    assert contents(out) == contents(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished  # not written again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_resume_refuses_other_work(source, tmp_path):
    def begin(**options):
        shutil.rmtree(partial_folder(tmp_path / "out"), ignore_errors=True)
        partial_folder(tmp_path / "out").mkdir()
        plan = make_plan(source, **options)
        text = json.dumps({"fingerprint": plan.fingerprint(writer.SHARD)})
        (partial_folder(tmp_path / "out") / writer.PLAN).write_text(text)

    begin(q_bits=8)
    assert "was begun with other options" in refusal(source, tmp_path / "out", resume=True)
    begin()
    os.utime(source / "model.safetensors", ns=(1, 1))
    assert "or another source" in refusal(source, tmp_path / "out", resume=True)
    convert(source, tmp_path / "out")  # anew
    assert not partial_folder(tmp_path / "out").exists()


def test_resume_without_a_beginning_is_a_beginning(checkpoint, tmp_path):
    assert (convert(checkpoint("text"), tmp_path / "out", resume=True) / "config.json").exists()


# verifying


def test_verify_reports_components(checkpoint, tmp_path):
    sizes = {size.name: size for size in verify(convert(checkpoint(), tmp_path / "out"))}
    assert list(sizes) == [
        "decoder", "vision adapter", "speech adapter", "vision encoder and projector", "audio encoder and projectors"
    ]  # fmt: skip
    assert 5 <= sizes["decoder"].bits_per_weight <= 5.1  # float32 scales: 4 + 2 * 32 / 64, and the norms
    stored = sum(array.nbytes for array in mx.load(str(tmp_path / "out" / "model.safetensors")).values())
    assert sum(size.nbytes for size in sizes.values()) == stored
    assert [size.name for size in verify(checkpoint("text"))] == ["decoder"]


def test_verify_finds_what_was_spoiled_later(checkpoint, tmp_path):
    folder = convert(checkpoint(), tmp_path / "out")

    def spoil(weights):
        weights["model.layers.0.mlp.down_proj.base.scales"][0, 0] = np.nan
        weights["vision_projector.sub_GN"] = weights["vision_projector.sub_GN"].astype(np.float16)

    edit_weights(folder, spoil)
    with pytest.raises(Phi4Error) as caught:
        verify(folder)
    assert "down_proj.base.scales holds NaN" in str(caught.value)
    assert "sub_GN has dtype F16, expected F32" in str(caught.value)
