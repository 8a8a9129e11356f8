"""Rank 0 of ranks that share a model: it works as if the model were whole, and the others follow each of its steps.

They are told which rows take part and with how many tokens; the embeddings go through one sum on the device. So rank 0
alone has requests, tokenizer, sampling and text, and what it decides at its own pace nobody else has to decide alike.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import count
from typing import Any
from weakref import finalize

import mlx.core as mx
import numpy as np

from ..audio.preprocess import Clip
from ..checkpoint.adapter_files import read_adapter
from ..decoder.kv_cache import CacheOptions, QuantizedKVCache, WindowKVCache
from ..decoder.state import RowState, Run
from ..device import exclusive
from ..errors import Phi4Error
from ..modalities import Medium, Slices, modality_of
from ..model import Phi4
from ..vision.preprocess import Picture
from .star import Ranks


@dataclass(eq=False)
class Mirror:
    """A row of the other ranks: the same state under a number; see ``decoder.state.Mirror``."""

    leader: "Leader"
    number: int

    def fork(self, offset: int, other: RowState) -> "Mirror":
        made = self.leader.mirror(other)
        self.leader.tell({"do": "fork", "row": self.number, "offset": offset, "to": made.number})
        return made

    def quantize(self, offset: int, options: CacheOptions) -> None:
        self.leader.tell({"do": "quantize", "row": self.number, "offset": offset, "options": asdict(options)})


class Leader:
    """What a model asks for each step, once others follow it."""

    def __init__(self, model: Phi4, ranks: Ranks):
        self._model, self._ranks = model, ranks
        self._numbers = count()
        self._dropped: deque[int] = deque()  # rows that nobody has any more
        self._between = False  # the others were told, or may have been, and this rank has not done it yet

    def tell(self, message: dict, data: bytes | memoryview = b"") -> None:
        """Tell the others what to do. Raises Phi4Error where they are not in step any more."""
        if self._between:
            raise Phi4Error("this run was stopped in the middle of a step, its ranks are no longer in step")
        message["drop"] = [self._dropped.popleft() for _ in range(len(self._dropped))]
        self._ranks.tell(message, data)

    @contextmanager
    def _together(self, message: dict, data: bytes | memoryview = b"") -> Iterator[None]:
        """Do something that the others do, too."""
        self.tell(message, data)
        self._between = True
        yield
        self._between = False

    def mirror(self, state: RowState) -> Mirror:
        """A number for a state, given back when nobody has the state any more."""
        made = Mirror(self, next(self._numbers))
        finalize(state, self._dropped.append, made.number)
        return made

    def hidden(self, h: mx.array, runs: list[Run]) -> mx.array | None:
        """As ``Phi4.hidden``."""
        model = self._model
        with exclusive():
            model.read({run.state.adapter for run in runs})
            described = [self._described(run) for run in runs]
            dtype = str(h.dtype).removeprefix("mlx.core.")
            hidden = model.model(model.sharding.sum(h), runs, model.adapters.composed)
            with self._together({"do": "step", "runs": described, "dtype": dtype}):
                submit(hidden, runs)
        return hidden

    def _described(self, run: Run) -> dict:
        state, new = run.state, None
        if state.caches and state.mirror is None:
            if state.offset:
                raise Phi4Error("keys and values from a file are those of one rank; several cannot go on with them")
            state.mirror, new = self.mirror(state), _kind_of(state.caches[0])
        about = {"row": state.mirror.number if state.mirror else None, "adapter": state.adapter, "long": state.long}
        return about | {"offset": state.offset, "count": run.count, "asked": run.asked, "new": new}

    def slices(self, item: Medium, mode: str, slices: Slices) -> Slices:
        """The slices of the work on a medium, which the ranks share out."""
        if not _worth_sharing(self._model, item):
            return (yield from slices)
        number, (about, data) = next(self._numbers), packed(item)
        kind = modality_of(item).kind
        with exclusive():
            self.tell({"do": "medium", "number": number, "kind": kind, "mode": str(mode), "item": about}, data)
        try:
            while True:
                with exclusive(), self._together({"do": "slice", "number": number}):
                    try:
                        ended, value = finish(slices)
                    except Exception:  # the others fail by the same medium
                        self._between = False
                        raise
                if ended:
                    return value
                yield
        finally:
            with exclusive():
                self.tell({"do": "forget", "number": number})

    def add_adapter(self, name: str, adapter: str, bits: int | None) -> None:
        """Add an adapter that each rank reads itself. Raises Phi4Error."""
        self.tell({"do": "adapter", "name": name, "adapter": adapter, "bits": bits})
        add_adapter(self._model, self._ranks, name, adapter, bits)

    def remove_adapter(self, name: str) -> None:
        """After it was removed here."""
        self.tell({"do": "remove", "name": name})


def lead(model: Phi4, ranks: Ranks) -> None:
    """Have the other ranks follow what is computed with this model from now on."""
    model.leader = Leader(model, ranks)


def finish(slices: Slices) -> tuple[bool, mx.array | None]:
    """Compute the next slice -> whether there was none left, and then the whole."""
    try:
        pending = next(slices)
    except StopIteration as end:
        return True, end.value
    mx.eval([] if pending is None else pending)
    return False, None


def submit(hidden: mx.array | None, runs: list[Run]) -> None:
    """Begin to compute a step now, as all ranks do: sums must come in the same order everywhere."""
    kept = [run.state.arrays() for run in runs if run.state.caches]
    mx.async_eval(*([] if hidden is None else [hidden]), *[array for arrays in kept for array in arrays])


def add_adapter(model: Phi4, ranks: Ranks, name: str, adapter: str, bits: int | None) -> None:
    """Add an adapter on all ranks, or on none. Raises Phi4Error."""
    found, error = None, None
    try:
        model.adapters.check_free(name)
        if "+" not in adapter:
            found = read_adapter(adapter, model.config.decoder)
    except Phi4Error as raised:
        error = str(raised)
    seen = ranks.gather([error, found.digest if found else None])
    for rank, (line, _) in enumerate(seen):
        if line is not None:
            raise Phi4Error(line if rank == 0 else f"{ranks.name(rank)}: {line}")
    for rank, (_, digest) in enumerate(seen):
        if digest != seen[0][1]:
            raise Phi4Error(f"{adapter}: {ranks.name(rank)} has another adapter there than rank 0")
    if found is None:
        model.adapters.compose(name, adapter.split("+"))
    else:
        model.adapters.add(name, found, bits=bits)


def packed(item: Medium) -> tuple[dict, bytes]:
    """A prepared medium as JSON and bytes; a dataclass whose fields are arrays and what JSON holds."""
    about: dict[str, Any] = {}
    data = bytearray()
    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, np.ndarray):
            about[field.name] = {"dtype": value.dtype.str, "shape": value.shape}
            data += np.ascontiguousarray(value).tobytes()
        else:
            about[field.name] = {"value": value}
    return about, bytes(data)


def unpacked(kind: type, about: dict, data: bytes) -> Medium:
    """What ``packed`` was given."""
    found, position = {}, 0
    for name, entry in about.items():
        if "value" in entry:
            value = entry["value"]
            found[name] = tuple(value) if isinstance(value, list) else value
            continue
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        size = dtype.itemsize * int(np.prod(shape))
        found[name] = np.frombuffer(data[position : position + size], dtype).reshape(shape)
        position += size
    return kind(**found)


def _kind_of(cache) -> dict:
    """How a cache was asked for, as ``CacheOptions`` has it."""
    if isinstance(cache, QuantizedKVCache):
        return asdict(CacheOptions(cache.bits, cache.group_size))
    return asdict(CacheOptions(max_size=cache.size if isinstance(cache, WindowKVCache) else None))


def _worth_sharing(model: Phi4, item: Medium) -> bool:
    """Whether a medium has more than one part to encode."""
    if isinstance(item, Picture):
        return len(model.vision_encoder.parts(item)) > 1
    return isinstance(item, Clip) and len(model.audio_encoder.parts(item.features)) > 1
