"""Embeddings of a row's media, computed in slices before the pieces of the prompt that need them."""

import mlx.core as mx

from ..errors import Phi4Error
from ..inputs.processor import Row
from ..modalities import Medium, Slices, projector_of
from ..model import Phi4
from .media_cache import MediaCache


class RowMedia:
    """``features`` are the embeddings (tokens, D) that are there, by the token that their medium begins at."""

    def __init__(self, row: Row, cache: MediaCache | None):
        """``cache`` has those that were seen already."""
        self._row, self._cache = row, cache
        self.features: dict[int, mx.array] = {}
        self._encoding: tuple[int, Medium, Slices] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in self.features.values())

    def unencoded(self, start: int, stop: int) -> tuple[int, Medium] | None:
        """The first medium that the tokens [start, stop) need and whose embeddings are not here yet."""
        media = ((first, item) for first, item in self._row.media if first < stop and first + item.tokens > start)
        return next((each for each in media if each[0] not in self.features), None)

    def encode_slice(self, model: Phi4, medium: tuple[int, Medium]) -> None:
        """A slice of the work on a medium, or on the one that was begun; done here, so that what fails is the row's."""
        mode, cache = self._row.mode, self._cache
        if self._encoding is None:
            first, item = medium
            seen = None if cache is None else cache.get(model, (item.key, projector_of(item, mode)))
            if seen is not None:
                self.features[first] = seen
                return
            self._encoding = first, item, model.embed_slices(item, mode)
        first, item, slices = self._encoding
        try:
            mx.eval(next(slices))
        except StopIteration as end:
            mx.eval(end.value)
            if len(end.value) != item.tokens:
                raise Phi4Error(f"a medium of {item.tokens} tokens has {len(end.value)} embeddings") from None
            self.features[first], self._encoding = end.value, None
            if cache is not None:
                cache.put((item.key, projector_of(item, mode)), end.value)

    def share(self, other: "RowMedia") -> None:
        """Hand what is there on to another answer to the same prompt."""
        other.features = dict(self.features)

    def clear(self) -> None:
        """Let go of all."""
        self.features, self._encoding = {}, None
