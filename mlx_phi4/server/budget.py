"""Bytes counted before they are taken: on Metal a failed allocation ends the process."""

import os
from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_flatten

from ..audio.encoder import WINDOW
from ..config import MEL_BINS, TIME_REDUCTION, Config
from ..decoder.kv_cache import BLOCK
from ..device import compute_dtype
from ..generation.draft_model import DraftModel
from ..model import Phi4
from ..vision.encoder import VIEWS_AT_ONCE
from ..vision.preprocess import PATCHES

STEP_TOKENS = 2048  # tokens whose activations a step may hold
SHARE = 0.75  # of a machine's memory, where it recommends nothing


@dataclass(frozen=True)
class Budget:
    """What rows and prefixes may hold, in bytes: the limit without weights and without a step's own needs.

    ``token`` is what a token's keys and values take in all layers.
    """

    total: int
    token: int

    @classmethod
    def of(
        cls, model: Phi4, limit: int | None = None, reserve: int | None = None, draft: DraftModel | None = None
    ) -> "Budget":
        """From a limit in bytes for the whole process (None: what the machine recommends), a draft model in it."""
        decoder = model.config.decoder
        width = model.model.norm.weight.dtype.size
        heads = decoder.num_key_value_heads // (1 if model.sharding is None else model.sharding.size)
        token = decoder.num_hidden_layers * 2 * heads * decoder.head_dim * width
        if limit is None:
            physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            limit = mx.device_info().get("max_recommended_working_set_size") or int(SHARE * physical)
        weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
        if reserve is None:
            # gate, up and their product, queries, keys, values, residuals: about six times the widest
            step = 6 * STEP_TOKENS * 2 * decoder.intermediate_size * width
            reserve = step + slice_bytes(model.config, compute_dtype(model.model.norm.weight.dtype).size)
        if draft is not None:
            weights, token = weights + draft.nbytes, token + draft.nbytes_per_token
        return cls(max(limit - weights - reserve, 0), token)

    def tokens(self, count: int) -> int:
        """Bytes of so many tokens' keys and values, in whole blocks."""
        return -(-count // BLOCK) * BLOCK * self.token

    @property
    def longest(self) -> int:
        """Tokens of the longest row that fits."""
        return self.total // (BLOCK * self.token) * BLOCK


def slice_bytes(config: Config, width: int) -> int:
    """What a slice of the work on media takes, at most: an encoder runs beside a step that is on its way.

    Attention between all patches of a few views, twice, or the first convolution over a window of sound, four times.
    """
    scores = VIEWS_AT_ONCE * config.vision.num_attention_heads * PATCHES**4 if config.vision else 0
    first = WINDOW * TIME_REDUCTION // 2 * MEL_BINS // 2 * config.audio.conv_channels if config.audio else 0
    return max(2 * scores, 4 * first) * width
