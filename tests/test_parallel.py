"""A model that several ranks share gives what it gives alone; each has its part, and all have the same bits."""

import dataclasses
import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from ranks import JOB, ended, start
from ranks_job import computed

import mlx_phi4
from mlx_phi4 import Phi4Error
from mlx_phi4.decoder.parallel import Cut, check_sharing
from mlx_phi4.evaluation.speed import weight_bytes
from mlx_phi4.ranks.sharding import Sharding
from mlx_phi4.synthetic.published import SIZES
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

# heads for four ranks; the rest as small as groups of 64 allow
FOUR = dataclasses.replace(SIZES["reduced"], hidden=256, heads=8, kv_heads=4, mlp=256)


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    """Ranks -> folders of a float32 model and of the same with a 4-bit base and 8-bit adapters.

    The first has the published context; the others a short table of 300 tokens, since attention over 4,096 costs most
    of the time.
    """
    made = {2: [checkpoint()], 4: [write_random_checkpoint(tmp_path_factory.mktemp("four"), "microsoft", FOUR)]}
    for size, plain in made.items():
        packed = tmp_path_factory.mktemp("packed") / "model"
        mlx_phi4.convert(plain[0], packed, adapter_bits=8, quiet=True)
        plain.append(packed)
        for folder in plain if size == 4 else [packed]:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"original_max_position_embeddings": 300}))
    return made


def shared(size, models, result):
    """For each model: what each of so many ranks found, started once for all, and what one process finds."""
    processes = start(*[[*JOB, "same", result, *models]] * size)
    alone = []
    for folder in models:
        model, processor = mlx_phi4.load(folder)
        read, total = weight_bytes(model, "vision"), nbytes(model)
        alone.append((*computed(model, processor), read, total))
    outputs = ended(processes, timeout=300)
    assert [code for code, _, _ in outputs] == [0] * size, outputs
    ranks = [json.loads(out) for _, out, _ in outputs]
    return [
        {"ranks": [rank[i] for rank in ranks], "logits": np.load(f"{result}-{i}.npy"), "alone": alone[i]}
        for i in range(len(models))
    ]


def nbytes(model):
    """Bytes of all arrays, and of those that each rank has as a whole."""
    cut = [name for name, _ in tree_flatten(model.parameters()) if part_of_each(name)]
    sizes = {name: array.nbytes for name, array in tree_flatten(model.parameters())}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name not in set(cut))


def part_of_each(name):
    """Whether each rank has its part of an array only."""
    if not name.startswith("model.layers.") or "norm" in name:
        return False
    by_columns = ".o_proj." in name or ".down_proj." in name
    return ".lora." not in name or (".down." in name.split(".lora.")[1]) == by_columns


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_give_what_one_process_gives(folders, tmp_path, size):
    """One test for all that is asked of them, since it takes as many processes."""
    for found in shared(size, folders[size], tmp_path / "logits"):
        ranks, (logits, tokens, (base, adapter), (total, whole)) = found["ranks"], found["alone"]
        assert abs(found["logits"] - logits).max() < 1e-4
        assert ranks[0]["tokens"] == tokens  # among them a row that crosses the end of the short table
        assert len(tokens[-1]) == 5
        assert len({rank["digest"] for rank in ranks}) == 1  # the same bits
        assert all(rank["tokens"] == ranks[0]["tokens"] for rank in ranks)
        assert all(rank["drawn"] == ranks[0]["drawn"] for rank in ranks)  # without a seed: rank 0's choice
        assert all(rank["head"] < 1e-5 for rank in ranks)  # shared, it gives the same logits
        for rank in ranks:  # weights pass through memory once: none needs room for what it will not keep
            assert rank["loading"]["peak"] <= 1.05 * (whole + (total - whole) / size)
            assert sum(rank["read"]) < 0.75 * (base + adapter)


def test_parts_of_arrays_are_the_array():
    for segments, name, shape in (((8, 4, 4), "base.weight", (16, 6)), (None, "base.scales", (6, 16))):
        array = mx.arange(96).reshape(shape)
        parts = [Cut(Sharding(rank, 4, None), segments).take(name, array) for rank in range(4)]
        assert all(part.size == array.size // 4 for part in parts)

        class Gathering(Sharding):
            def gather(self, x, parts=parts):
                return mx.concatenate(parts)

        assert mx.array_equal(Cut(Gathering(1, 4, None), segments).whole(name, parts[1]), array)
    rows, columns = Cut(Sharding(1, 2, None), (4, 4)), Cut(Sharding(1, 2, None), None)
    assert rows.take("base.weight", mx.arange(8)[:, None]).tolist() == [[2], [3], [6], [7]]  # of each segment
    assert rows.ranges("lora.x.down.weight", (4, 4)) is None and columns.ranges("lora.x.up.weight", (4, 4)) is None
    assert rows.ranges("lora.x.gain", (8,)) and columns.ranges("lora.x.gain", (8,)) is None


@pytest.mark.parametrize("size, reason", [(3, "2 can"), (4, "2 key/value heads"), (16, "16 ranks cannot share")])
def test_ranks_that_do_not_divide_the_heads_are_refused(loaded, size, reason):
    model, _ = loaded()
    with pytest.raises(Phi4Error, match=reason):
        check_sharing(model.config.decoder, model.model, size)


def test_groups_that_cannot_be_cut_are_refused(folders):
    """A group of weights shares a scale: it cannot lie on two ranks."""
    model, _ = mlx_phi4.load(folders[2][1])
    config = dataclasses.replace(model.config.decoder, num_key_value_heads=4, num_attention_heads=4)
    with pytest.raises(Phi4Error, match="layer 0: 4 ranks cannot share 128 columns in groups of 64"):
        check_sharing(config, model.model, 4)
