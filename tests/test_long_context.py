"""The original context's end: the short table up to it, the long table from one token more on, never a mix."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from cases import LONG_CASES, picture
from samples import decoded, sequence_of

import mlx_phi4
from mlx_phi4 import Request
from mlx_phi4.checkpoint.config_readers import read_config
from mlx_phi4.decoder.state import Run

pytestmark = pytest.mark.cpu  # pieces of all sizes give equal tokens

DATA = Path(__file__).parent / "golden" / "data"
ORIGINAL = 60  # tokens; a small one makes the test quick


@pytest.fixture(scope="module")
def small_context(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(checkpoint(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["original_max_position_embeddings"] = ORIGINAL
    (folder / "config.json").write_text(json.dumps(config))
    return mlx_phi4.load(folder)


def stepwise(model, processor, request, count):
    """Greedy tokens by whole forward passes without a cache, as the reference makes them."""
    inputs = processor.batch([request])
    h, ids, tokens = model.embed(inputs.rows[0]), inputs.input_ids, []
    for _ in range(count):
        state = model.new_state(mlx_phi4.Inputs(ids, (0,), inputs.modes).rows[0])
        tokens.append(model.forward(h, [Run(state, h.shape[1], 1)])[0, -1].argmax().item())
        if tokens[-1] in processor.tokenizer.stop_ids:
            break
        ids = mx.concatenate([ids, mx.array([tokens[-1:]], dtype=mx.int32)], axis=1)
        h = mx.concatenate([h, model.model.embed_tokens(ids[:, -1:])], axis=1)
    return tokens


TEXT = Request("Tell me of the sea. " * 2)
PICTURE = Request("What?", images=[picture(90, 90)])


def test_regime_changes_after_the_original_context(small_context):
    model, processor = small_context
    for length, long in ((ORIGINAL, False), (ORIGINAL + 1, True)):
        inputs = processor("x" * length, raw=True)
        inputs = mlx_phi4.Inputs(inputs.input_ids[:, :length], (0,), inputs.modes)
        assert model.new_state(inputs.rows[0]).long == long


def test_the_tables_differ_where_it_matters(small_context):
    model, processor = small_context
    inputs = processor("Tell me of the sea.")
    row, count = inputs.rows[0], inputs.lengths[0]
    short, long = (model.new_state(row, long=long) for long in (False, True))
    hidden = [model.forward(model.embed(row), [Run(state, count, count)]) for state in (short, long)]
    assert mx.abs(hidden[0] - hidden[1]).max().item() > 0.05


def test_generation_across_the_boundary_equals_full_passes(small_context):
    model, processor = small_context
    length = processor.batch([TEXT]).lengths[0]
    count = ORIGINAL - length + 12
    assert count - 12 > 5, "the prompt must leave room before the boundary"
    expected = stepwise(model, processor, TEXT, count)
    (answer,) = mlx_phi4.batch_generate(model, processor, [TEXT], max_tokens=count)
    assert answer.tokens == expected


def test_rows_of_both_regimes_in_one_batch(small_context):
    """One row starts long, one crosses on the way, one stays short."""
    model, processor = small_context
    requests = [TEXT, PICTURE, Request("Hi")]
    lengths = processor.batch(requests).lengths
    count = ORIGINAL - lengths[0] + 6
    assert lengths[1] > ORIGINAL > lengths[2] + count
    answers = mlx_phi4.batch_generate(model, processor, requests, max_tokens=count)
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == stepwise(model, processor, request, count)


@pytest.mark.parametrize("step", [1, 17, 64])
def test_prefill_in_pieces_equals_one_pass(small_context, step):
    model, processor = small_context
    request = Request("Tell me of the sea. " * 6)
    expected = mlx_phi4.batch_generate(model, processor, [request], max_tokens=5)[0].tokens
    answers = mlx_phi4.batch_generate(model, processor, [request], max_tokens=5, prefill_step_size=step)
    assert answers[0].tokens == expected


def test_published_scale(checkpoint):
    rope = read_config(checkpoint()).decoder.rope
    assert rope.scale == pytest.approx(1.1902, abs=1e-4)
    assert rope.original_max_position_embeddings == 4096


def test_rotation_keeps_the_other_dimensions(loaded):
    from mlx_phi4.decoder.rope import LongRope, rotate

    model, _ = loaded()
    config = model.config.decoder
    rope = LongRope(config.rope)
    x = mx.random.normal((1, 3, 2, config.head_dim))
    turned = rotate(x[:], rope.rotation([(0, 1, False), (5, 2, True)], mx.float32), 2, config.rope.dims)
    rest = config.rope.dims
    assert np.array_equal(np.array(turned[..., rest:]), np.array(x[..., rest:]))
    assert np.allclose(np.array(turned[:, 0, :, :rest]), np.array(x[:, 0, :, :rest]) * config.rope.scale, atol=1e-6)


@pytest.mark.parametrize("name", ["long_text", "long_picture", "long_clip", "long_5000"])
def test_greedy_tokens_equal_the_references_across_4096(loaded, name):
    """The published boundary: prompts near 4,000 tokens grow past it, and one begins beyond it."""
    model, processor = loaded()
    case = {case.name: case for case in LONG_CASES}[name]
    golden = np.load(DATA / "long.npz")
    expected, margin = golden[f"{name}/tokens"].tolist(), golden[f"{name}/margin"]
    # the text case in full; the others as far as shows that the change of tables was right
    count = len(expected) if name == "long_text" else 120
    request = Request(case.chat(), case.images(), [(audio, 16_000) for audio in case.audios()])
    sequence = sequence_of(processor, request, text=False, max_tokens=count)
    decoded(model, sequence)
    tokens = sequence.tokens
    assert sequence.state.long
    different = [i for i, (ours, theirs) in enumerate(zip(tokens, expected, strict=False)) if ours != theirs]
    # from a near tie on, the two go separate ways
    assert not different or margin[different[0]] < 0.02, different[0]
    assert not different or different[0] > 100
