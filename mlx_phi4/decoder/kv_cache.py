"""Keys and values of one sequence in one layer: plain, quantized, or the last of them only.

Each holds keys and values side by side, as the fused projection gives them, so that a step writes once. All are of one
row, without padding; nothing is copied when a row joins or leaves a batch. ``fork`` shares what is there until one of
the two writes.
"""

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..errors import Phi4Error

BLOCK = 256  # tokens by which a cache grows
KEPT = 4  # first tokens that a window never forgets: attention leans on them (arXiv 2309.17453)
MOST_TAKEN_BACK = 64  # tokens of a piece that may go through a full window and be taken back


@dataclass(frozen=True)
class CacheOptions:
    """How keys and values are kept.

    ``bits`` 8 or 4 quantizes them in groups of ``group_size`` along a head, from ``quantized_start`` tokens on;
    ``max_size`` keeps the first 4 and the last tokens, that many in all (the model forgets what lies between).
    """

    bits: int | None = None
    group_size: int = 64
    quantized_start: int = 0
    max_size: int | None = None

    def check(self, head_dim: int) -> None:
        """Raises Phi4Error for what cannot be computed with heads of this size."""
        if self.bits not in (None, 4, 8):
            raise Phi4Error(f"kv_bits is {self.bits}, expected 4 or 8")
        if self.bits and (self.group_size not in (32, 64, 128) or head_dim % self.group_size):
            raise Phi4Error(
                f"kv_group_size is {self.group_size}, expected 32, 64 or 128 that divides the head size {head_dim}"
            )
        if self.quantized_start < 0:
            raise Phi4Error(f"quantized_kv_start is {self.quantized_start}, expected at least 0")
        if self.max_size is not None and self.max_size < 16:
            raise Phi4Error(f"max_kv_size is {self.max_size}, expected at least 16")
        if self.max_size is not None and self.bits:
            raise Phi4Error("max_kv_size and kv_bits cannot be combined: a window is not quantized")

    def make(self, layers: int) -> list:
        """A fresh cache per layer."""
        if self.max_size is not None:
            return [WindowKVCache(self.max_size) for _ in range(layers)]
        if self.bits and self.quantized_start == 0:
            return [QuantizedKVCache(self.bits, self.group_size) for _ in range(layers)]
        return [KVCache() for _ in range(layers)]

    def boundary(self, offset: int) -> int | None:
        """The token at which a plain cache of ``offset`` tokens is yet to be quantized, if there is one."""
        return self.quantized_start if self.bits and self.quantized_start > offset else None


class KVCache:
    """Keys and values as they are: one array (1, 2 * kv heads, capacity, head_dim), keys first."""

    largest: int | None = None  # tokens that there will ever be room for

    def __init__(self):
        self.parts: list[mx.array] = []
        self.offset = 0  # tokens seen

    def update(self, new: mx.array) -> tuple:
        """Append new (1, 2 * kv heads, n, head_dim) -> all keys and all values, (1, kv heads, tokens, head_dim)."""
        self._append([new])
        half = new.shape[1] // 2
        return self.parts[0][:, :half, : self.offset], self.parts[0][:, half:, : self.offset]

    def mask(self, count: int) -> mx.array | str | None:
        """Which of the keys that ``update`` returns each of ``count`` new tokens sees."""
        return None if count == 1 else "causal"

    def _append(self, new: list[mx.array]) -> None:
        start, stop = self.offset, self.offset + new[0].shape[2]
        if not self.parts or stop > self.parts[0].shape[2]:
            capacity = min(-(-stop // BLOCK) * BLOCK, self.largest or stop + BLOCK)
            self.parts = [_grown(held, part, start, capacity) for held, part in _pairs(self.parts, new)]
        for held, part in zip(self.parts, new, strict=True):
            held[:, :, start:stop] = part
        self.offset = stop

    def quantized(self, options: CacheOptions) -> "QuantizedKVCache":
        """The same tokens in fewer bits."""
        packed = QuantizedKVCache(options.bits, options.group_size)
        if self.offset:
            packed.update(self.parts[0][:, :, : self.offset])
        return packed

    @property
    def revocable(self) -> float:
        """Tokens that may come at once now and all be taken back."""
        return math.inf

    def trimmable(self, count: int) -> bool:
        """Whether the last ``count`` tokens can be taken back."""
        return count <= self.offset

    def trim(self, count: int) -> None:
        """Take the last ``count`` tokens back."""
        self.offset -= count

    def fork(self) -> "KVCache":
        """The same tokens for another row; memory is shared until one of the two writes."""
        other = copy(self)
        other.parts = [part[:] for part in self.parts]  # a handle of its own: writing changes what a handle stands for
        return other

    @property
    def nbytes(self) -> int:
        """Bytes held, room to grow included."""
        return sum(part.nbytes for part in self.parts)


class QuantizedKVCache(KVCache):
    """Keys and values in 8 or 4 bits: packed words, scales and biases, each (1, 2 * kv heads, capacity, ...)."""

    def __init__(self, bits: int, group_size: int):
        super().__init__()
        self.bits, self.group_size = bits, group_size

    def update(self, new: mx.array) -> tuple[tuple, tuple]:
        """As ``KVCache.update``; keys and values are triples (packed, scales, biases)."""
        self._append(mx.quantize(new, group_size=self.group_size, bits=self.bits))
        half, stop = new.shape[1] // 2, self.offset
        return tuple(p[:, :half, :stop] for p in self.parts), tuple(p[:, half:, :stop] for p in self.parts)


class WindowKVCache(KVCache):
    """The first ``KEPT`` tokens and the last ones, ``size`` in all.

    A token sees what it would see if all came one by one, whatever pieces they come in: the first ``KEPT``, itself, and
    the ``size - KEPT - 1`` before it. Position p lies in slot ``KEPT + (p - KEPT) % (size - KEPT)``; keys are rotated
    already, so the order of slots does not matter.

    Of a few tokens that came at once into a full window, the last ones can be taken back: what they displaced is kept
    until the next ones come.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size, self.recent, self.largest = size, size - KEPT, size
        self._displaced: mx.array | None = None  # by the last tokens, in the order of these

    def update(self, new: mx.array) -> tuple[mx.array, mx.array]:
        self._displaced = None
        if self.offset + new.shape[2] <= self.size:
            return super().update(new)
        half = new.shape[1] // 2
        if self._few(new.shape[2]):
            slots = mx.array(self._slots(self.offset, new.shape[2]))
            self._displaced = self.parts[0][:, :, slots]
            self.parts[0][:, :, slots] = new
            self.offset += new.shape[2]
            seen = mx.concatenate([self.parts[0], self._displaced], axis=2)
            return seen[:, :half], seen[:, half:]
        if new.shape[2] == 1:
            slot = self._slot(self.offset)
            self.parts[0][:, :, slot : slot + 1] = new
            self.offset += 1
            return self.parts[0][:, :half, : self.size], self.parts[0][:, half:, : self.size]
        everything = mx.concatenate([self._in_order(), new], axis=2) if self.offset else new
        self.offset += new.shape[2]
        first = self._slot(self.offset - self.recent) - KEPT  # the slot of the oldest of the last ones
        last = everything[:, :, -self.recent :]
        turned = [everything[:, :, :KEPT], last[:, :, self.recent - first :], last[:, :, : self.recent - first]]
        self.parts = [mx.concatenate(turned, axis=2)]
        return everything[:, :half], everything[:, half:]

    def mask(self, count: int) -> mx.array | str | None:
        if count == 1 or self.offset + count <= self.size:
            return super().mask(count)
        if self._few(count):  # a token sees those before it, and of what the later ones displace all
            tokens, displacing = np.arange(count), np.full(self.size, -1)
            displacing[self._slots(self.offset, count)] = tokens
            return mx.array(np.concatenate([displacing <= tokens[:, None], tokens > tokens[:, None]], axis=1))
        first = 0 if self.offset <= self.size else self.offset - self.recent
        held = np.arange(first, self.offset)
        kept = np.arange(KEPT if first else 0)
        new = np.arange(self.offset, self.offset + count)
        keys = np.concatenate([kept, held, new])
        queries = new[:, None]
        return mx.array((keys <= queries) & ((keys < KEPT) | (keys > queries - self.recent)))

    def _in_order(self) -> mx.array:
        """What is held, oldest first."""
        held = self.parts[0]
        if self.offset <= self.size:
            return held[:, :, : self.offset]
        first = self._slot(self.offset)
        return mx.concatenate([held[:, :, :KEPT], held[:, :, first : self.size], held[:, :, KEPT:first]], axis=2)

    def _slot(self, position: int) -> int:
        return KEPT + (position - KEPT) % self.recent

    def _slots(self, start: int, count: int) -> np.ndarray:
        return KEPT + (np.arange(start, start + count) - KEPT) % self.recent

    def _few(self, count: int) -> bool:
        """Whether so many tokens go into a full window so that they can be taken back."""
        return 1 < count <= self.revocable and self.offset >= self.size

    @property
    def revocable(self) -> float:
        return min(MOST_TAKEN_BACK, self.recent) if self.offset >= self.size else self.size - self.offset

    def trimmable(self, count: int) -> bool:
        kept = 0 if self._displaced is None else self._displaced.shape[2]
        return count == 0 or count <= self.offset <= self.size or count <= kept

    def trim(self, count: int) -> None:
        if self._displaced is not None and count:
            left = self._displaced.shape[2] - count
            slots = mx.array(self._slots(self.offset - count, count))
            self.parts[0][:, :, slots] = self._displaced[:, :, left:]
            self._displaced = self._displaced[:, :, :left] if left else None
        super().trim(count)

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._displaced is None else self._displaced.nbytes)


def _pairs(held: list[mx.array], new: list[mx.array]) -> Iterator[tuple[mx.array | None, mx.array]]:
    return zip(held or [None] * len(new), new, strict=True)


def _grown(held: mx.array | None, new: mx.array, tokens: int, capacity: int) -> mx.array:
    """An array with room for ``capacity`` tokens that begins with the ``tokens`` held."""
    spare = mx.zeros((*new.shape[:2], capacity - tokens, new.shape[3]), new.dtype)
    return mx.concatenate([held[:, :, :tokens], spare], axis=2) if tokens else spare
