"""What finished rows leave behind: keys and values by their tokens, reused by prompts that begin alike."""

from dataclasses import dataclass
from itertools import count

import numpy as np

from ..decoder.kv_cache import CacheOptions
from ..decoder.state import RowState
from ..generation.prompt_cache import MediaSpan, PromptCache, reusable, spans_of
from ..inputs.processor import Row
from ..model import Phi4

LEAST = 16  # tokens that are worth a look
MOST = 512  # prefixes that are held: a prompt is compared with each


@dataclass(eq=False)
class Prefix:
    """One finished sequence: ids (L,), its state, what stood where, and under which salt."""

    ids: np.ndarray
    state: RowState
    spans: frozenset[MediaSpan]
    options: CacheOptions
    salt: str
    used: int

    @property
    def kind(self) -> tuple:
        """What must be alike, whatever the tokens."""
        return self.salt, self.state.adapter, self.state.digest, self.state.long, self.options

    def common(self, ids: np.ndarray, spans: frozenset[MediaSpan], kind: tuple) -> int:
        """Tokens of a row, ids (L,), that are here; at least one is left to compute."""
        limit = min(len(ids) - 1, len(self.ids))
        if self.kind != kind or limit < LEAST or not np.array_equal(self.ids[:LEAST], ids[:LEAST]):
            return 0
        different = np.nonzero(self.ids[:limit] != ids[:limit])[0]
        shared = int(different[0]) if len(different) else limit
        return min([shared, *(start for start, _, _ in self.spans ^ spans)])


class PrefixStore:
    """Prefixes in the order of their last use, the oldest leave beyond ``max_bytes``. Belongs to the engine thread."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self.nbytes = 0  # of keys and values held; asked for at every step, so it is not summed up again
        self._held: list[Prefix] = []
        self._clock = count()

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        self._held, self.nbytes = [], 0

    def evict(self) -> bool:
        """Let the least recently used one go; False if there is none."""
        if self._held:
            self._drop(min(self._held, key=lambda prefix: prefix.used))
            return True
        return False

    def take(
        self, row: Row, long: bool, options: CacheOptions, salt: str, digest: str | None = None
    ) -> RowState | None:
        """A state of its own that begins as the row does, or None. What is held stays for others.

        ``digest`` as in ``RowState``, of the row's adapter.
        """
        ids, spans, kind = np.asarray(row.ids), spans_of(row), (salt, row.adapter, digest, long, options)
        ranked = [(prefix.common(ids, spans, kind), prefix) for prefix in self._held]
        shared, prefix = max(ranked, key=lambda each: each[0], default=(0, None))
        if shared < LEAST or not reusable(prefix.state, shared, len(prefix.ids) - shared, options):
            self.misses += 1
            return None
        self.hits += 1
        prefix.used = next(self._clock)
        state = prefix.state.fork()
        state.trim(len(prefix.ids) - shared)
        return state

    def put(self, state: RowState, row: Row, generated: list[int], options: CacheOptions, salt: str) -> None:
        """Keep a finished row; what it extends goes."""
        ids = np.array([*row.ids, *generated][: state.offset], np.int64)
        spans = frozenset(span for span in spans_of(row) if span[0] < state.offset)
        new = Prefix(ids, state, spans, options, salt, next(self._clock))
        for prefix in [prefix for prefix in self._held if _extends(new, prefix)]:
            self._drop(prefix)
        if state.nbytes <= self.max_bytes:
            self._held.append(new)
            self.nbytes += state.nbytes
        while self.nbytes > self.max_bytes or len(self) > MOST:
            self.evict()

    def _drop(self, prefix: Prefix) -> None:
        self._held.remove(prefix)
        self.nbytes -= prefix.state.nbytes


def _extends(new: Prefix, old: Prefix) -> bool:
    inside = old.spans <= new.spans and len(old.ids) <= len(new.ids)
    return new.kind == old.kind and inside and np.array_equal(new.ids[: len(old.ids)], old.ids)


class SharedPrefixes(PromptCache):
    """The store as a sequence sees it: under one salt."""

    def __init__(self, store: PrefixStore, salt: str):
        super().__init__()
        self._store, self._salt = store, salt

    def take(self, model: Phi4, row: Row, long: bool, options: CacheOptions, *, share: bool = False) -> RowState | None:
        return self._store.take(row, long, options, self._salt, model.adapters.digest(row.adapter))

    def put(self, model: Phi4, state: RowState, row: Row, generated: list[int], options: CacheOptions) -> None:
        self._store.put(state, row, generated, options, self._salt)
