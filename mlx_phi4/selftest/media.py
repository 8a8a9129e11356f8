"""Stages log-mel and views: media to what encoders see, in numpy, against the reference's own processors."""

from collections.abc import Iterator

import numpy as np

from ..audio.preprocess import prepare_clip
from ..vision.preprocess import prepare_picture
from . import samples
from .bench import Bench
from .checks import Check, holds, within

LOG_MEL = 1e-3  # of values up to 25: sums of 246 float32 numbers in another order, and their logarithm
GREY = 1.01  # levels: where a picture is resized, two right resizers round some pixels to neighbouring levels
GLOBAL_GREY = 2.01  # levels: bicubic without clamping makes twice as much of it
EXACT_GREY = 1e-3  # levels, where nothing is resized: float32 sums of four products
VIEW_STRIDE = 11  # pixels between those that were kept


def log_mel(bench: Bench) -> Iterator[Check]:
    """The bundled recording's features, through the file reader."""
    expected = samples.golden()["log_mel"]
    got = prepare_clip(str(samples.path(samples.SPOKEN_COMMAND))).features
    yield holds("frames", got.shape == expected.shape, f"{got.shape}, expected {expected.shape}")
    if got.shape == expected.shape:
        yield within("features", float(np.abs(got - expected).max()), LOG_MEL)


def views(bench: Bench) -> Iterator[Check]:
    """Crops, global view and kept patches of pictures that are and are not resized."""
    golden = samples.golden()
    for name, pixels in samples.pictures().items():
        picture = prepare_picture(pixels)
        kept = [tuple(each) for each in golden[f"views/{name}/kept"].tolist()]
        yield holds(f"{name}: kept patches", picture.kept_by_view == kept, f"{picture.kept_by_view}, expected {kept}")
        crops = golden[f"views/{name}/crops"]
        if len(picture.crops) != len(crops):
            yield holds(f"{name}: crops", False, f"{len(picture.crops)}, expected {len(crops)}")
            continue
        seen = picture.pixels(range(len(crops) + 1))[:, ::VIEW_STRIDE, ::VIEW_STRIDE].astype(np.float64) * 127.5 + 127.5
        exact = name in ("sign", "high", "large")
        yield within(f"{name}: crops", float(np.abs(seen[1:] - crops).max()), EXACT_GREY if exact else GREY)
        limit = (EXACT_GREY if exact else 0) or GLOBAL_GREY
        gap = np.abs(seen[0] - golden[f"views/{name}/global"].astype(np.float64)).max()
        yield within(f"{name}: global view", float(gap), limit)
