"""The ranks beside rank 0: they do what they are told with their part of the model, until rank 0 leaves."""

import queue
import signal
import threading
from contextlib import suppress

import mlx.core as mx

from ..decoder.kv_cache import CacheOptions
from ..decoder.state import RowState, Run
from ..device import exclusive
from ..errors import Phi4Error
from ..modalities import MODALITIES, Slices
from ..model import Phi4
from .leading import add_adapter, finish, submit, unpacked
from .star import Ranks

CLEARED_AFTER = 256  # steps after which freed buffers go back to the system
FORGET_SECONDS = 5.0  # that rank 0 may take to give up a medium that failed here


class Follower:
    """The rows of rank 0 as this rank has them, under the numbers that it gave them."""

    def __init__(self, model: Phi4, ranks: Ranks):
        self._model, self._ranks = model, ranks
        self._rows: dict[int, RowState] = {}
        self._media: dict[int, Slices] = {}
        self._steps = 0

    def do(self, message: dict, data: bytes) -> None:
        """One thing that rank 0 told."""
        for number in message.get("drop", ()):
            self._rows.pop(number, None)
        with exclusive():
            getattr(self, f"_{message['do']}")(message, data)

    def _step(self, message: dict, data: bytes) -> None:
        model = self._model
        runs = [Run(self._state(each), each["count"], each["asked"]) for each in message["runs"]]
        model.read({run.state.adapter for run in runs})
        tokens = sum(run.count for run in runs)
        h = mx.zeros((1, tokens, model.config.decoder.hidden_size), getattr(mx, message["dtype"]))
        submit(model.model(model.sharding.sum(h), runs, model.adapters.composed), runs)
        self._steps += 1
        if self._steps % CLEARED_AFTER == 0:
            mx.clear_cache()

    def _state(self, told: dict) -> RowState:
        number = told["row"]
        if number is None:
            return RowState(told["adapter"], told["long"])
        if told["new"] is not None:
            caches = CacheOptions(**told["new"]).make(len(self._model.model.layers))
            self._rows[number] = RowState(told["adapter"], told["long"], caches)
        return self._at(number, told["offset"])

    def _at(self, number: int, offset: int) -> RowState:
        """A row as rank 0 has it now: it may have taken tokens back."""
        state = self._rows[number]
        if state.offset > offset:
            state.trim(state.offset - offset)
        if state.offset != offset:
            raise Phi4Error(f"a row of {state.offset} tokens, where rank 0 has {offset}")
        return state

    def _fork(self, message: dict, data: bytes) -> None:
        self._rows[message["to"]] = self._at(message["row"], message["offset"]).fork()

    def _quantize(self, message: dict, data: bytes) -> None:
        self._at(message["row"], message["offset"]).quantize(CacheOptions(**message["options"]))

    def _medium(self, message: dict, data: bytes) -> None:
        item = unpacked(MODALITIES[message["kind"]].item, message["item"], data)
        self._media[message["number"]] = self._model.embed_slices(item, message["mode"])

    def _slice(self, message: dict, data: bytes) -> None:
        number = message["number"]
        try:
            finish(self._media[number])
        except Exception:
            # a medium that cannot be encoded fails on rank 0, too, which then forgets it
            with suppress(queue.Empty):
                following, _ = self._ranks.orders.get(timeout=FORGET_SECONDS)
                if (following["do"], following.get("number")) == ("forget", number):
                    self._media.pop(number)
                    return
            raise

    def _forget(self, message: dict, data: bytes) -> None:
        self._media.pop(message["number"], None)

    def _adapter(self, message: dict, data: bytes) -> None:
        with suppress(Phi4Error):  # rank 0 raises the same, and says so
            add_adapter(self._model, self._ranks, message["name"], message["adapter"], message["bits"])

    def _remove(self, message: dict, data: bytes) -> None:
        self._model.adapters.remove(message["name"])


def follow(model: Phi4, ranks: Ranks) -> int:
    """Follow rank 0 until it leaves -> its exit code. Ctrl-C is its affair."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    follower = Follower(model, ranks)
    while True:
        message, data = ranks.orders.get()
        if message["do"] == "bye":
            return message["code"]
        follower.do(message, data)
