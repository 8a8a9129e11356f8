"""The package against the reference implementation's golden files, stage by stage, then whole.

A failure names its stage: features before encoders, encoders before projectors, projectors before logits.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from cases import CASES
from mlx.utils import tree_flatten
from tolerances import near

from mlx_phi4.audio.preprocess import prepare_clip
from mlx_phi4.decoder.kv_cache import CacheOptions
from mlx_phi4.decoder.state import Run
from mlx_phi4.vision.preprocess import prepare_picture

DATA = Path(__file__).parent / "golden" / "data"
STRIDES = json.loads((DATA / "made_with.json").read_text())["strides"]
BY_NAME = {case.name: case for case in CASES}
EXACT = near(5e-3)  # logits; their deviation is about 5
RESIZED = 0.1  # logits where a picture is resized: two resizers differ by a grey level
PICTURES = ("picture_exact", "picture_wide", "picture_tall", "picture_small")
# golden/parity.py compares every case at both sizes; here the large ones run at one, to stay quick on a CPU
WIDE = ("text", "system", "picture_wide", "picture_small", "clip_6s", "picture_clip")
CASES_BY_SIZE = [("reduced", case.name) for case in CASES] + [("wide", name) for name in WIDE]


def media(name):
    return np.load(DATA / "media.npz")[name]


def stage(size, name):
    return np.load(DATA / f"{size}_stages.npz")[name]


def picture(name):
    return prepare_picture(BY_NAME[name].images()[0])


def clip(name):
    return prepare_clip((BY_NAME[name].audios()[0], 16_000))


def inputs_of(processor, name):
    case = BY_NAME[name]
    return processor(case.chat(), case.images(), [(audio, 16_000) for audio in case.audios()])


@pytest.mark.parametrize(("name", "stride"), [("clip_1s", 1), ("clip_6s", 7)])
def test_log_mel(name, stride):
    assert np.abs(clip(name).features[::stride] - media(f"log_mel/{name}")).max() <= 1e-3


@pytest.mark.parametrize("name", PICTURES)
def test_views(name):
    ours, stride = picture(name), STRIDES["pixels"]
    levels = ours.pixels(range(len(ours.crops) + 1))[:, ::stride, ::stride] * 127.5 + 127.5
    assert np.abs(levels[1:] - media(f"crops/{name}").astype(float)).max() <= 1.01
    assert np.abs(levels[0] - media(f"global/{name}").astype(float)).max() <= 2.01


@pytest.mark.parametrize("name", PICTURES)
def test_kept_patches(name):
    mask = media(f"mask/{name}")
    assert picture(name).kept_by_view == [(int(m[:, 0].sum()), int(m[0].sum())) for m in mask]


@pytest.mark.parametrize("size", ["reduced", "wide"])
@pytest.mark.parametrize("name", ["picture_exact", "picture_tall"])
def test_vision(loaded, size, name):
    model, _ = loaded("microsoft", size)
    ours = picture(name)
    tolerance = near(1e-3) if name == "picture_exact" else 0.1
    features = model.vision_encoder(ours)
    expected = stage(size, f"vision_features/{name}")
    for view, (rows, columns) in enumerate(ours.kept_by_view):
        cells = np.zeros((16, 16, features[view].shape[-1]), np.float32)
        inside = np.zeros((16, 16), bool)
        inside[: -(-rows // 2), : -(-columns // 2)] = True
        cells[: features[view].shape[0], : features[view].shape[1]] = np.array(features[view])
        chosen = inside.reshape(-1)[:: STRIDES["vision_features"]]
        got = cells.reshape(256, -1)[:: STRIDES["vision_features"]]
        assert np.abs(got - expected[view])[chosen].max() <= tolerance
    projected = np.array(model.vision_projector(features, ours))[:: STRIDES["picture_embeddings"]]
    assert np.abs(projected - stage(size, f"picture_embeddings/{name}")).max() <= tolerance


@pytest.mark.parametrize("size", ["reduced", "wide"])
def test_audio(loaded, size):
    model, _ = loaded("microsoft", size)
    frames = model.audio_encoder(clip("clip_1s").features)
    assert np.abs(np.array(frames) - stage(size, "conformer/clip_1s")).max() <= near(1e-3)
    for name, projector in model.audio_projectors.items():
        assert np.abs(np.array(projector(frames)) - stage(size, f"audio_embeddings/{name}")).max() <= near(1e-3)
    # three windows of 500 frames, the last one padded
    long = np.array(model.audio_encoder(clip("clip_95s").features))[:: STRIDES["conformer_95s"]]
    assert np.abs(long - stage(size, "conformer/clip_95s")).max() <= near(1e-3)


@pytest.mark.parametrize("size", ["reduced", "wide"])
def test_merge(loaded, size):
    model, processor = loaded("microsoft", size)
    merged = np.array(model.embed(inputs_of(processor, "picture_clip").rows[0])[0])[:: STRIDES["merged"]]
    assert np.abs(merged - stage(size, "merged/picture_clip")).max() <= 0.1


def in_pieces(model, inputs, step=2048):
    """Logits of a long prompt as generation computes it: half the time of a single pass on a CPU."""
    row = inputs.rows[0]
    state, embeddings = model.new_state(row, CacheOptions().make(len(model.model.layers))), model.embed(row)
    found = []
    for start in range(0, len(row.ids), step):
        piece = embeddings[:, start : start + step]
        found.append(np.array(model.forward(piece, [Run(state, piece.shape[1], piece.shape[1])])[0]))
    return np.concatenate(found)


@pytest.mark.parametrize(("size", "name"), CASES_BY_SIZE)
def test_logits(loaded, size, name):
    model, processor = loaded("microsoft", size)
    golden = np.load(DATA / f"{size}_{name}.npz")
    inputs = inputs_of(processor, name)
    assert np.array_equal(np.array(inputs.input_ids[0]), golden["input_ids"])
    logits = in_pieces(model, inputs) if name == "picture_large" else np.array(model(inputs)[0])
    resized = bool(BY_NAME[name].pictures) and name != "picture_exact"
    worst = np.abs(logits[golden["positions"]] - golden["logits"]).max()
    assert worst <= (RESIZED if resized else EXACT)
    # a top token may only differ where the reference's two best are closer than our error
    differing = logits.argmax(-1) != golden["top"]
    assert not (differing & (golden["margin"] > 2 * worst)).any()


@pytest.mark.parametrize("size", ["reduced", "wide"])
@pytest.mark.parametrize("layout", ["transformers", "text"])
def test_layouts_hold_the_same_model(loaded, size, layout):
    """Logits were compared in layout 1; the others must load to the very same parameters."""
    expected = dict(tree_flatten(loaded("microsoft", size)[0].parameters()))
    ours = dict(tree_flatten(loaded(layout, size)[0].parameters()))
    if layout == "text":
        base = {name for name in expected if name.startswith("model.") and ".lora." not in name}
        assert ours.keys() == base
    else:
        assert ours.keys() == expected.keys()
    assert all(mx.array_equal(weight, expected[name]).item() for name, weight in ours.items())


@pytest.mark.parametrize(
    ("layout", "name"), [("transformers", "picture_clip"), ("transformers", "clip_6s"), ("text", "system")]
)
def test_logits_of_other_layouts(loaded, layout, name):
    model, processor = loaded(layout)
    golden = np.load(DATA / f"reduced_{name}.npz")
    logits = np.array(model(inputs_of(processor, name))[0])
    tolerance = RESIZED if BY_NAME[name].pictures else EXACT
    assert np.abs(logits[golden["positions"]] - golden["logits"]).max() <= tolerance


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["text", "picture_small", "clip_1s", "picture_clip"])
def test_half_precision(loaded, checkpoint, dtype, name):
    import mlx_phi4

    model, processor = mlx_phi4.load(checkpoint(), dtype=dtype)
    logits = model(inputs_of(processor, name))[0]
    assert logits.dtype == getattr(mx, dtype)
    golden = np.load(DATA / f"reduced_{name}.npz")
    got = np.array(logits.astype(mx.float32))[golden["positions"]].ravel()
    expected = golden["logits"].ravel()
    cosine = got @ expected / (np.linalg.norm(got) * np.linalg.norm(expected))
    assert cosine > 0.99
