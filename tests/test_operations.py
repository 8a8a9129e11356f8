"""How many operations a decoder layer takes, counted from the graph: on a GPU each is a launch."""

import io
import re
from collections import Counter

import mlx.core as mx
import pytest

import mlx_phi4
from mlx_phi4 import convert
from mlx_phi4.decoder.kv_cache import KVCache
from mlx_phi4.decoder.state import RowState, Run, Step

# only another way to look at the same memory
VIEWS = {"Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unflatten"}
# what a GPU does in one kernel and the CPU in several: their parts, counted once each
NORM = Counter(Square=1, Sum=1, Multiply=3, Add=1, Rsqrt=1)
ATTENTION = Counter(Multiply=1, Matmul=2, Softmax=1)


def launches(counted):
    """Kernels of a GPU: norms and attention are one each, in whatever form the graph has them."""
    norms = counted["Rsqrt"]
    heads = counted["Softmax"]
    parts = sum(NORM.values()) * norms + sum(ATTENTION.values()) * heads
    return sum(counted.values()) - parts + norms + heads


def operations(model, *adapters):
    """Of the first layer for one new token of each row."""
    rows = [RowState(adapter, caches=[KVCache() for _ in model.model.layers]) for adapter in adapters]
    decoder = model.config.decoder
    for row in rows:
        for cache in row.caches:
            cache.update(mx.zeros((1, 2 * decoder.num_key_value_heads, 5, decoder.head_dim)))
            mx.eval(cache.parts)
    h = mx.zeros((1, len(rows), decoder.hidden_size))
    step = Step([Run(row, 1, 1) for row in rows], model.model._rope, h.dtype)
    mx.eval(h, step.rotation, model.parameters())
    dot = io.StringIO()
    mx.export_to_dot(dot, model.model.layers[0](h, step, step.caches(0)))
    counted = Counter(re.findall(r'label ?= ?"([^"]+)"', dot.getvalue()))
    return Counter({name: count for name, count in counted.items() if name not in VIEWS})


@pytest.fixture(scope="module", params=["as published", "4-bit base, 8-bit adapters"])
def model(request, checkpoint, tmp_path_factory):
    if request.param == "as published":
        return mlx_phi4.load(checkpoint())[0]
    folder = tmp_path_factory.mktemp("packed") / "model"
    return mlx_phi4.load(convert(checkpoint(size="wide"), folder, q_group_size=32, dtype="float32"))[0]


def test_operations_of_a_layer(model):
    """The count that stands; more would be a launch more a layer and token."""
    text = operations(model, None)
    assert text["SliceUpdate"] == 2  # the turned halves into place, keys and values into the cache
    assert sum(count for name, count in text.items() if name.startswith("Compiled")) == 2  # rotation, gate
    assert text["Concatenate"] == 0
    # four linears, two norms, attention, two residuals, and the four above
    assert launches(text) == 13


@pytest.mark.parametrize("adapter", ["vision", "speech"])
def test_an_adapter_costs_three_operations_a_linear_at_most(model, adapter):
    text, routed = operations(model, None), operations(model, adapter)
    if text["QuantizedMatmul"] and adapter == "vision":  # of rank 32, so that both of its halves are packed
        assert routed["QuantizedMatmul"] == 3 * text["QuantizedMatmul"]
    assert launches(routed) - launches(text) <= 12
    assert routed["Multiply"] == text["Multiply"]  # alpha / rank is part of the weights


def test_a_row_more_costs_its_attention_alone(model):
    """Linears and norms run once over all rows; an adapter runs on its own rows."""
    one, two = operations(model, None), operations(model, None, None)
    for name in ("QuantizedMatmul", "Rsqrt"):
        assert two[name] == one[name]
    assert two["SliceUpdate"] == one["SliceUpdate"] + 1 and two["Concatenate"] == 1
    mixed = operations(model, None, "vision")
    assert launches(mixed) - launches(two) <= 12 + 4  # and putting its part into place
