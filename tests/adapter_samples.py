"""Adapters that several test files share: peft's own from the golden files, and random ones."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_phi4 import Inputs
from mlx_phi4.checkpoint.adapter_files import write_adapter
from mlx_phi4.decoder.adapters import Adapter, LinearAdapter, decoder_linears

GOLDEN = Path(__file__).parent / "golden" / "data" / "adapters"
PEFT = sorted(each.name for each in GOLDEN.iterdir() if each.is_dir())
LOGITS = np.load(GOLDEN / "logits.npz")


def random_adapter(config, seed=0, rank=4, scale=2.0, dora=False, linears=("",), base=None):
    """An adapter of random numbers for the linears whose paths hold one of ``linears``."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return mx.array(rng.normal(0, 0.1, shape).astype(np.float32))

    parts = {}
    for path, (outputs, inputs) in decoder_linears(config.decoder).items():
        if any(each in path for each in linears):
            magnitude = mx.array(rng.uniform(2, 4, outputs).astype(np.float32)) if dora else None
            parts[path] = LinearAdapter(normal(rank, inputs), normal(outputs, rank), scale, magnitude)
    return Adapter(parts, base)


def random_folder(folder, config, form="peft", **options):
    """As ``random_adapter``, in a folder."""
    return write_adapter(folder, random_adapter(config, **options), config.decoder, form=form)


def logits(model, adapter=None, ids=LOGITS["ids"]):
    """(L, V) numpy of one pass over token ids, all by one adapter."""
    inputs = Inputs(mx.array(ids)[None], (0,), ("text",), adapters=(adapter,))
    return np.array(model(inputs)[0].astype(mx.float32))
