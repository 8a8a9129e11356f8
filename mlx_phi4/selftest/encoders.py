"""Stages of the encoders and projectors, on fixed inputs, against the reference."""

import math
import time
from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from ..device import exclusive
from . import samples
from .bench import DTYPES, Bench
from .checks import Check

# roundings one after another, counted by hand: of a layer twelve (norm, projections, scores, softmax, products, sums)
LAYER, MLP = 12, 4
FEATURE_STRIDES = {"sign": 7, "high": 13}  # tokens between those that were kept
PROJECTED = ("sign", "large")  # pictures of one crop and of four
CONFORMER_STRIDE = 16
SIDE = 16  # cells of a view


def vision_encoder(bench: Bench) -> Iterator[Check]:
    """Pooled features of a padded view and of four crops with their global view."""
    config = bench.model()[0].config.vision
    for name, stride in FEATURE_STRIDES.items():
        picture, reference = samples.ready(name), samples.golden()[f"vision/{name}"]
        chosen = [_cells(kept)[::stride] for kept in picture.kept_by_view]
        expected = np.concatenate([view[inside] for view, inside in zip(reference, chosen, strict=True)])

        def compute(dtype, name=name, picture=picture, stride=stride, chosen=chosen):
            encoder, began = bench.model(dtype)[0].vision_encoder, time.perf_counter()
            with exclusive():
                found = [_spread(each)[::stride] for each in encoder(picture)]
                # a mask chooses on the host
                kept = [part[mx.array(np.flatnonzero(inside))] for part, inside in zip(found, chosen, strict=True)]
                found = _done(mx.concatenate(kept))
            if name == "sign":
                seconds = time.perf_counter() - began
                bench.notes.append(f"vision: a picture of two views encoded in {seconds:.3f} s, {dtype}")
            return found

        dtypes = bench.encoder_dtypes if name == "sign" else DTYPES[:1]  # the same layers, slow on a CPU
        yield from bench.both(name, compute, expected, LAYER * config.used_layers, config.intermediate_size, dtypes)


def _cells(kept: tuple[int, int]) -> np.ndarray:
    """(256,) bool: the cells of a view that are picture."""
    inside = np.zeros((SIDE, SIDE), bool)
    inside[: math.ceil(kept[0] / 2), : math.ceil(kept[1] / 2)] = True
    return inside.reshape(-1)


def _spread(features: mx.array) -> mx.array:
    """(rows, columns, D) -> (256, D), zeros where nothing is kept."""
    rows, columns, width = features.shape
    return mx.pad(features, [(0, SIDE - rows), (0, SIDE - columns), (0, 0)]).reshape(SIDE * SIDE, width)


def vision_projector(bench: Bench) -> Iterator[Check]:
    """Made-up features of all views in their order, with both separators, projected."""
    config = bench.model()[0].config
    for name in PROJECTED:
        picture = samples.ready(name)
        made = samples.features(picture, config.vision.hidden_size)

        def compute(dtype, picture=picture, made=made):
            projector = bench.model(dtype)[0].vision_projector
            with exclusive():
                parts = [mx.array(each).astype(getattr(mx, dtype)) for each in made]
                return _done(projector(parts, picture)[mx.array(samples.kept_embeddings(picture))])

        expected = samples.golden()[f"picture_embeddings/{name}"]
        yield from bench.both(name, compute, expected, MLP, config.decoder.hidden_size)


def audio_encoder(bench: Bench) -> Iterator[Check]:
    """The conformer on 2 seconds, and on 41, which are more than one window."""
    golden = samples.golden()
    config = bench.model()[0].config.audio
    clips = {
        "2 s": (golden["log_mel"], 1, golden["conformer"]),
        "41 s": (np.tile(golden["log_mel"], (samples.LONG_MEL, 1)), CONFORMER_STRIDE, golden["long_conformer"]),
    }
    for name, (features, stride, expected) in clips.items():

        def compute(dtype, features=features, stride=stride):
            encoder = bench.model(dtype)[0].audio_encoder
            with exclusive():
                return _done(encoder(features)[::stride])

        depth = 2 * LAYER * config.num_blocks
        yield from bench.both(name, compute, expected, depth, 10 * config.conv_channels, bench.encoder_dtypes)


def audio_projectors(bench: Bench) -> Iterator[Check]:
    """Both of them, on made-up frames."""
    config = bench.model()[0].config
    made = samples.frames(config.audio.hidden_size)
    for name in ("speech", "vision"):

        def compute(dtype, name=name):
            projector = bench.model(dtype)[0].audio_projectors[name]
            with exclusive():
                return _done(projector(mx.array(made).astype(getattr(mx, dtype))))

        expected = samples.golden()[f"audio_embeddings/{name}"]
        yield from bench.both(name, compute, expected, MLP, config.decoder.hidden_size)


def _done(array: mx.array) -> mx.array:
    mx.eval(array)
    return array
