"""Embeddings of pictures and clips that were seen already, so that a second question does not encode them again."""

import weakref
from collections import OrderedDict

import mlx.core as mx
import mlx.nn as nn

from ..arguments.kinds import integer
from ..arguments.names import takes
from ..modalities import Medium, projector_of
from ..model import Phi4

DEFAULT_BYTES = 256_000_000  # at full width in bfloat16: 4 pictures of 37 views, or 70 of two


class MediaCache:
    """Embeddings by content and projector; beyond ``max_bytes`` the least recently used ones go.

    A clip embeds differently in speech and in vision mode, so the projector is part of the key. One model's embeddings
    at a time: another model starts afresh.
    """

    @takes(max_bytes=integer(0))
    def __init__(self, max_bytes: int = DEFAULT_BYTES):
        self.max_bytes = max_bytes
        self._held: OrderedDict[tuple[str, str], mx.array] = OrderedDict()
        self._model = lambda: None

    def __repr__(self):
        return f"MediaCache({len(self)} media, {self.nbytes / 1e6:.1f} of {self.max_bytes / 1e6:.1f} MB)"

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(features.nbytes for features in self._held.values())

    def __len__(self):
        return len(self._held)

    def get(self, model: nn.Module, key: tuple[str, str]) -> mx.array | None:
        """The embeddings (tokens, D) under this key, or None."""
        if self._model() is not model:
            self._held.clear()
            self._model = weakref.ref(model)
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def embed(self, model: Phi4, item: Medium, mode: str) -> mx.array:
        """The embeddings (tokens, D) of a medium in a request of this mode, computed if they are not here yet."""
        key = item.key, projector_of(item, mode)
        features = self.get(model, key)
        if features is None:
            features = model.embed_medium(item, mode)
            self.put(key, features)
        return features

    def put(self, key: tuple[str, str], features: mx.array) -> None:
        """Keep embeddings, which are computed here and now so that nothing else stays alive with them."""
        mx.eval(features)
        self._held[key] = features
        while self.nbytes > self.max_bytes:
            self.evict()

    def evict(self) -> bool:
        """Let the least recently used embeddings go; False if there are none."""
        if self._held:
            self._held.popitem(last=False)
            return True
        return False
