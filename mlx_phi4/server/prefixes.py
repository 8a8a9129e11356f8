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


@dataclass(eq=False)
class Prefix:
    """One finished sequence: ids (L,), its state, what stood where, and under which salt."""

    ids: np.ndarray
    state: RowState
    spans: frozenset[MediaSpan]
    options: CacheOptions
    salt: str
    used: int

    def common(self, row: Row, long: bool, options: CacheOptions, salt: str) -> int:
        """Tokens of a row that are here; at least one is left to compute."""
        mine, theirs = (
            (self.salt, self.state.adapter, self.state.long, self.options),
            (salt, row.adapter, long, options),
        )
        if mine != theirs:
            return 0
        limit = min(len(row.ids) - 1, len(self.ids))
        different = np.nonzero(self.ids[:limit] != np.asarray(row.ids[:limit]))[0]
        shared = int(different[0]) if len(different) else limit
        return min([shared, *(start for start, _, _ in self.spans ^ spans_of(row))])


class PrefixStore:
    """Prefixes in the order of their last use, the oldest leave beyond ``max_bytes``. Belongs to the engine thread."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._held: list[Prefix] = []
        self._clock = count()

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(prefix.state.nbytes for prefix in self._held)

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        self._held = []

    def evict(self) -> bool:
        """Let the least recently used one go; False if there is none."""
        if self._held:
            self._held.remove(min(self._held, key=lambda prefix: prefix.used))
            return True
        return False

    def take(self, row: Row, long: bool, options: CacheOptions, salt: str) -> RowState | None:
        """A state of its own that begins as the row does, or None. What is held stays for others."""
        ranked = [(prefix.common(row, long, options, salt), prefix) for prefix in self._held]
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
        self._held = [prefix for prefix in self._held if not _extends(new, prefix)]
        if state.nbytes <= self.max_bytes:
            self._held.append(new)
        while self.nbytes > self.max_bytes:
            self.evict()


def _extends(new: Prefix, old: Prefix) -> bool:
    same = (new.salt, new.options, new.state.adapter, new.state.long) == (
        old.salt,
        old.options,
        old.state.adapter,
        old.state.long,
    )
    inside = old.spans <= new.spans and len(old.ids) <= len(new.ids)
    return same and inside and np.array_equal(new.ids[: len(old.ids)], old.ids)


class SharedPrefixes(PromptCache):
    """The store as a sequence sees it: under one salt."""

    def __init__(self, store: PrefixStore, salt: str):
        super().__init__()
        self._store, self._salt = store, salt

    def take(self, model: Phi4, row: Row, long: bool, options: CacheOptions, *, share: bool = False) -> RowState | None:
        return self._store.take(row, long, options, self._salt)

    def put(self, model: Phi4, state: RowState, row: Row, generated: list[int], options: CacheOptions) -> None:
        self._store.put(state, row, generated, options, self._salt)
