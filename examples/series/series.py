"""A fifth kind of input: a sampled time series, as a modality of its own.

What is run stands here, the row of the table and the modules that it names; what is learnt lies in a folder. A program
that is to serve such series imports this file, then adds the folder: ``add_modality(model, processor, folder)``.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_phi4.errors import MediaError
from mlx_phi4.modalities import MODALITIES, Modality, register

KIND = "series"
PATCH = 16  # samples of a token
MOST = 4096  # samples
SETTINGS = {"width": 64, "layers": 2, "heads": 4, "positions": MOST // PATCH}


@dataclass(frozen=True)
class Series:
    """Samples (n,) float32, scaled to mean 0 and deviation 1, n a multiple of ``PATCH``."""

    samples: np.ndarray

    @property
    def tokens(self) -> int:
        """One for each ``PATCH`` samples."""
        return len(self.samples) // PATCH

    @cached_property
    def key(self) -> str:
        """A digest of the content, for caches."""
        return blake2b(self.samples.tobytes(), digest_size=16).hexdigest()


def prepare_series(source) -> Series:
    """A list or an array of numbers, or the path of a JSON file with one; cut to whole patches. Raises MediaError."""
    if isinstance(source, Series):
        return source
    try:
        if isinstance(source, (str, Path)):
            source = json.loads(Path(source).read_text(encoding="utf-8"))
        samples = np.asarray(source, np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise MediaError(f"a series cannot be read: {error}") from None
    if samples.ndim != 1 or not PATCH <= len(samples) <= MOST or not np.isfinite(samples).all():
        raise MediaError(f"a series has shape {samples.shape}, expected {PATCH} to {MOST} finite numbers")
    samples = samples[: len(samples) // PATCH * PATCH]
    return Series(((samples - samples.mean()) / max(samples.std(), 1e-6)).astype(np.float32))


class Layer(nn.Module):
    """Attention over all patches and an MLP, pre-norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiHeadAttention(width, heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.norm1(x)
        x = x + self.attention(y, y, y)
        return x + self.down(nn.gelu(self.up(self.norm2(x))))


class SeriesEncoder(nn.Module):
    """Patches of samples with learned positions, through a few layers."""

    def __init__(self, width: int, layers: int, heads: int, positions: int):
        super().__init__()
        self.patch = nn.Linear(PATCH, width)
        self.positions = nn.Embedding(positions, width)
        self.layers = [Layer(width, heads) for _ in range(layers)]
        self.norm = nn.LayerNorm(width)

    def __call__(self, samples: mx.array) -> mx.array:
        """samples (n,) -> (n / PATCH, width)."""
        patches = samples.reshape(1, -1, PATCH)
        x = nn.gelu(self.patch(patches)) + self.positions(mx.arange(patches.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)[0]


class SeriesProjector(nn.Module):
    """``down(gelu(up(x)))`` to the decoder's width."""

    def __init__(self, width: int, output_dims: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, output_dims), nn.Linear(output_dims, output_dims)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(nn.gelu(self.up(x)))


def _modules(config):
    settings = config.added[KIND]
    return {
        "series_encoder": SeriesEncoder(**settings),
        "series_projector": SeriesProjector(settings["width"], config.decoder.hidden_size),
    }


def _features(model, item: Series):
    features = model.series_encoder(mx.array(item.samples))
    yield features  # what is to be computed by now
    return features


def _encode(model, item: Series, projector: str):
    features = yield from _features(model, item)
    return model.series_projector(features)


SERIES = Modality(
    kind=KIND,
    label="series",
    noun="series",
    argument=None,  # Request(..., media={"series": [...]})
    tokens=("<|endoftext12|>", "<|/tool|>"),  # one that the tokenizer has and prompts do without
    parts=("series",),
    fields=("series",),
    prepare=prepare_series,
    item=Series,
    held=lambda config: KIND in config.added,
    modules=_modules,
    encode=_encode,
    adapter="series",
    features=_features,
    project=lambda model, features, outline, projector: model.series_projector(features),
)
if KIND not in MODALITIES:
    register(SERIES)
