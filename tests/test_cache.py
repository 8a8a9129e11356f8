"""Conversion on first use: once per model, from hub or folder, safe for several processes."""

import json
import os
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from fake_hub import COMMIT, fake_hub

import mlx_phi4
from mlx_phi4 import Phi4Error
from mlx_phi4.converter import first_use as cache
from mlx_phi4.converter import writer
from mlx_phi4.converter.convert import convert


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(checkpoint, tmp_path):
    """A hub that serves a reduced model, and a function (code, variables) that starts Python against it."""
    with fake_hub(checkpoint()) as hub:
        environment = os.environ | hub.environment(tmp_path / "home")

        def python(*arguments, **variables):
            return subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env=environment | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )

        hub.python = python
        yield hub


def result(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output.strip(), errors


def test_a_folder_is_converted_once(checkpoint, cache_folder, capfd):
    source = checkpoint()
    model, processor = mlx_phi4.load(source, quantize=4)
    assert model.model.layers[0].mlp.down_proj.base.bits == 4
    assert "Converting" in capfd.readouterr().err
    (made,) = (path for path in cache_folder.glob("*/*") if path.is_dir())
    assert "4bit" in made.name
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    mlx_phi4.load(source, quantize=4)
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before
    assert "Converting" not in capfd.readouterr().err
    plain, _ = mlx_phi4.load(source)  # keeps what is published
    assert not hasattr(plain.model.layers[0].mlp.down_proj.base, "bits")
    eight, _ = mlx_phi4.load(source, quantize=8)
    assert eight.model.layers[0].mlp.down_proj.base.bits == 8
    assert np.isfinite(np.array(eight(processor("x")).astype(mx.float32))).all()


def test_a_changed_folder_is_converted_anew(checkpoint, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoint("text"), source)
    first = cache.cached_folder(source, quiet=True)
    os.utime(source / "model.safetensors", ns=(1, 1))
    assert cache.cached_folder(source, quiet=True) != first


def test_quantized_weights_are_taken_as_they_are(checkpoint, tmp_path):
    packed = convert(checkpoint("text"), tmp_path / "packed", q_bits=8)
    assert cache.model_folder(packed) == packed
    assert cache.cached_folder(packed) == packed and cache.cached_folder(packed, bits=8) == packed
    with pytest.raises(Phi4Error, match="quantized already, in 8 bits"):
        mlx_phi4.load(packed, quantize=4)
    with pytest.raises(Phi4Error, match="quantize is 7, expected 2, 3, 4, 5, 6 or 8"):
        mlx_phi4.load(checkpoint("text"), quantize=7)


def test_a_stopped_first_use_is_gone_on_with(checkpoint, cache_folder, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, "_write_companions", stop)
        cache.cached_folder(checkpoint("text"), quiet=True)
    (partial,) = cache_folder.glob("*/*.partial")
    written = (partial / "model.safetensors").stat().st_mtime_ns
    folder = cache.cached_folder(checkpoint("text"), quiet=True)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (partial_again := folder.with_name(folder.name + ".partial")).mkdir()  # of another plan, and no use
    (partial_again / writer.PLAN).write_text("{}")
    shutil.rmtree(folder)
    assert (cache.cached_folder(checkpoint("text"), quiet=True) / "config.json").exists()


def test_hub_id_with_two_processes_at_once(hub, cache_folder):
    """One converts, the other waits; later neither the hub nor its cache is needed."""
    code = "import sys; from mlx_phi4.converter.first_use import model_folder; print(model_folder(sys.argv[1]))"
    results = [result(p) for p in [hub.python("-c", code, "owner/model") for _ in range(2)]]
    assert [code for code, _, _ in results] == [0, 0], results
    assert len({output for _, output, _ in results}) == 1
    assert sum("Converting owner/model to 4 bits" in errors for _, _, errors in results) == 1
    (folder,) = [path for path in cache_folder.glob("owner--model/*") if path.is_dir()]
    assert folder.name.startswith(COMMIT[:12]) and str(folder) == results[0][1]
    assert json.loads((folder / "config.json").read_text())["quantization"]["bits"] == 4
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "elsewhere"}
    assert result(hub.python("-c", code, "owner/model", **offline))[:2] == (0, str(folder))
    assert result(hub.python("-c", code, "owner/other", **offline))[0] == 1


def test_generate_takes_a_hub_id(hub):
    code, _, errors = result(hub.python("-m", "mlx_phi4", "generate", "--model", "owner/model", "-p", "x", "-m", "2"))
    assert code == 0 and "Converting owner/model to 4 bits" in errors


LOADED = """
import sys
from pathlib import Path
from mlx_phi4 import load, loading
def bits(**options):
    model, _ = load("owner/model", quiet=True, **options)
    return getattr(model.model.layers[0].mlp.down_proj.base, "bits", None)
print(bits(), bits(quantize=False), bits(quantize=8), bits(revision=sys.argv[1]))
model, _ = loading.model_and_processor("owner/model")
print(model.model.layers[0].mlp.down_proj.base.bits)
"""


def test_load_means_the_same_folder_as_the_commands(hub, cache_folder):
    """4 bits on first use; the weights as they are published only where they are asked for."""
    code, output, errors = result(hub.python("-c", LOADED, COMMIT))
    assert (code, output) == (0, "4 None 8 4\n4"), errors
    assert "Converting" not in errors
    assert len([path for path in cache_folder.glob("owner--model/*") if path.is_dir()]) == 2


def test_a_folder_has_no_revisions(checkpoint):
    for quantize in (None, False):
        with pytest.raises(Phi4Error, match="is a folder: it has no revision 'main'"):
            mlx_phi4.load(checkpoint(), revision="main", quantize=quantize)


def test_hub_ids_that_cannot_be_had(hub):
    convert = ("-m", "mlx_phi4", "convert", "--quiet", "--model")
    code, _, errors = result(hub.python(*convert, "owner/none"))
    assert code == 2 and errors.strip() == (
        "error: owner/none: no such folder here, and no such model on the hub (or it is private)"
    )
    code, _, errors = result(hub.python(*convert, "owner/none", HF_HUB_OFFLINE="1"))
    assert code == 2 and errors.count("\n") == 1 and "the hub cannot be reached" in errors


def test_interrupted_download(hub, tmp_path):
    hub.cut = "model.safetensors"
    convert = ("-m", "mlx_phi4", "convert", "--quiet", "--model", "owner/model", "--mlx-path", "out")
    code, _, errors = result(hub.python(*convert))
    assert code == 2 and "error: owner/model: the download stopped, the same command goes on with it" in errors
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    hub.cut = None
    code, _, errors = result(hub.python(*convert))
    assert code == 0 and "base_model: owner/model" in (tmp_path / "out" / "README.md").read_text()


def test_cache_root(monkeypatch, tmp_path):
    assert cache.cache_root() == tmp_path / "cache"
    monkeypatch.delenv(cache.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "mlx_phi4"
