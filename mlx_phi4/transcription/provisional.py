"""What is heard of a piece that is still being spoken: asked now and then, where nothing else is to do."""

import time
from typing import TYPE_CHECKING, Any

from ..audio.segmentation import Piece
from ..errors import Phi4Error
from .chunking import chunk_of
from .decoding import PiecesInHand
from .live_events import Provisional

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..generation.responses import GenerationResponse

FIRST = 0.4  # s of a piece, after which it is asked about at first
EACH = 0.5  # s that it has grown by before it is asked about again
PROVISIONAL_COST = 2.0  # times as long as an answer took, lest the answers to long pieces take all the time there is


class Guess:
    """Asks about one piece at a time, with rows of the pool that answers the finished ones."""

    def __init__(self):
        self._asked: tuple[int, float] | None = None  # the piece, and its seconds
        self._waits: tuple[Any, float] | None = None  # for the answer to this key, since then
        self._took = 0.0  # seconds, the last time

    def ask(self, pieces: PiecesInHand, number: int, piece: Piece | None) -> None:
        """Ask about the piece that is open, if it is time."""
        if piece is None or self._waits is not None:
            return
        seconds = piece.end_seconds - piece.start_seconds
        again = self._asked is not None and self._asked[0] == number
        if seconds < (self._asked[1] + max(EACH, PROVISIONAL_COST * self._took) if again else FIRST):
            return
        chunk = chunk_of(piece)
        self._asked = number, seconds
        key = "provisional", number, chunk.start
        try:
            pieces.pool.ask(key, pieces.question(chunk), max_tokens=pieces.limit(chunk), temperature=0.0)
        except Phi4Error:  # a full queue: there are more urgent things
            return
        self._waits = key, time.monotonic()

    def answered(self, key: Any, answer: "GenerationResponse") -> Provisional | None:
        """What to show of an answer; None if it is none, or failed: the piece itself will tell."""
        if self._waits is None or key != self._waits[0]:
            return None
        self._took, self._waits = time.monotonic() - self._waits[1], None
        text = " ".join(answer.text.split())
        return Provisional(key[1], key[2], text) if text and answer.error is None else None
