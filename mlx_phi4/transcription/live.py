"""Text while somebody speaks: sound as it arrives, provisional text at once, a segment when a pause ends it.

One thread cuts and decodes; whoever brings the sound only waits where more lies ready than is good for memory.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..arguments import kinds
from ..arguments.names import takes
from ..audio.reader import HIGHEST_RATE, NARROW_RATE, SAMPLE_RATE, open_recording
from ..audio.segmentation import Piece
from ..errors import Phi4Error
from .arriving import ArrivingPieces
from .chunking import chunk_of
from .decoding import AudioChunk, PiecesInHand, SegmentDecoder
from .live_events import Behind, Event, Failed, Heard, SpeechStarted, SpeechStopped
from .provisional import Guess
from .tasks import WHOLE
from .transcriber import Transcriber
from .transcript import Segment, Transcript

if TYPE_CHECKING:  # imported where used, so that --help is instant
    import numpy as np

    from ..generation.pool import AnswerPool
    from ..inputs.processor import Processor
    from ..model import Phi4

LATE = 2.0  # s that a segment has waited since it ended, from which somebody should know
IN_TIME = 1.0  # s, below which it has caught up
IDLE_SECONDS = 0.5  # between two looks at an empty inbox


@takes(model=kinds.model, processor=kinds.processor, rate=kinds.integer(NARROW_RATE, HIGHEST_RATE))
def live(
    model: "Phi4",
    processor: "Processor",
    *,
    rate: int = SAMPLE_RATE,
    told: Callable[[Event], None] | None = None,
    **options,
) -> "Live":
    """A context manager that hears what it is fed.

        with live(model, processor) as ears:
            ears.feed(samples)
        print(ears.segments)

    Args:
        rate: of the samples, in Hz; they are resampled to 16 kHz, but for 8 kHz.
        told: called in a thread of its own with each event of ``live_events`` as it happens; it must not wait long.
        options: the keywords of ``Transcriber`` but ``clip_timestamps`` and ``partial``; tasks that take a recording
            as a whole cannot be had.

    Raises:
        Phi4Error: a bad value.
    """
    if told is not None:
        kinds.settled({"told": kinds.function}, {"told": told})
    return Live(Transcriber(**options), model, processor, rate=rate, told=told)


class Live:
    """Ears for one stream of sound: ``feed`` in any thread, one at a time.

    Attributes:
        segments: those that were heard, in order; only kept where nobody is ``told``.
        seconds: of sound that was fed.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        model: "Phi4 | None",
        processor: "Processor",
        *,
        rate: int = SAMPLE_RATE,
        told: Callable[[Event], None] | None = None,
        pool: "Callable[[], AnswerPool] | None" = None,
        outside: Callable[[], float] = lambda: 0.0,
    ):
        """``pool`` as in ``SegmentDecoder``, ``outside`` the seconds that wait to be fed; the rest as in ``live``.

        Raises Phi4Error.
        """
        if transcriber.question.task in WHOLE:
            raise Phi4Error(f"task {transcriber.question.task} takes a recording as a whole, which this has no end of")
        if transcriber.chunking.clips is not None or transcriber.chunking.partial:
            raise Phi4Error("clip_timestamps and partial are for recordings that are there already")
        self._decoder = SegmentDecoder(model, processor, transcriber.question, transcriber.decoding, pool)
        chunking = transcriber.chunking.suited_to(processor.config)
        self._rate, self._arriving = rate, ArrivingPieces(rate, chunking.segment_seconds, chunking.pause)
        # so much may wait that the largest batch is full
        self._limit = transcriber.decoding.batch_size * chunking.segment_seconds
        self._outside = outside
        self._told, self.segments, self.seconds = told, [], 0.0
        self._changed = threading.Condition()
        self._inbox: deque[np.ndarray | None] = deque()  # None: the piece that is open ends here
        self._queue: deque[tuple[int, AudioChunk]] = deque()  # pieces that no row is free for
        self._ends: deque[tuple[float, float]] = deque()  # start and end of all pieces that were not heard yet
        self._cut = 0  # pieces that have ended
        self._started = -1  # the last piece whose beginning was told
        self._guess = Guess()
        self._late = 0.0  # seconds, as they were last told
        self._ended = self._closed = self._stopped = self._done = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="ears", daemon=True)

    def __repr__(self):
        return f"Live({self.seconds:.1f} s fed, {len(self.segments)} segments kept)"

    def __enter__(self) -> "Live":
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self.finish()
        else:
            self.stop()

    @property
    def text(self) -> str:
        """All that was heard so far, of the segments that are kept."""
        return Transcript(self.segments, self.seconds).text

    @property
    def behind(self) -> float:
        """Seconds that have been fed since the oldest piece ended that was not heard yet; 0 if there is none."""
        with self._changed:
            oldest = self._ends[0][1] if self._ends else self._arriving.seconds
            inside = max(0.0, self.seconds - oldest) if self._ends or self._inbox else 0.0
        return inside + self._outside()

    @property
    def full(self) -> bool:
        """Whether ``feed`` would wait."""
        with self._changed:
            return not self._done and self._held > self._limit

    @property
    def error(self) -> Exception | None:
        """What ended the thread that decodes, if anything did."""
        return self._error

    def feed(self, samples: Any, *, wait: bool = True) -> None:
        """Take sound: (samples,) or (samples, channels), floats in [-1, 1] or integers of full scale.

        Waits while more lies ready than a full batch holds, unless it is not to ``wait``: whoever may not looks whether
        it is ``full``. Raises MediaError for what is no sound, and what went wrong in the thread that decodes.
        """
        if hasattr(samples, "__len__") and not len(samples):
            return
        with open_recording((samples, SAMPLE_RATE)) as recording:  # checks and mixes; the rate is ours to change
            for block in recording.blocks():
                self._put(block, wait)

    def flush(self) -> None:
        """End the piece that is being spoken, without waiting for a pause."""
        with self._changed:
            self._inbox.append(None)
            self._changed.notify_all()

    def finish(self) -> None:
        """No more sound comes: hear the rest. Raises what went wrong."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        self._raise()

    def stop(self) -> None:
        """Drop what was not heard yet."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _put(self, block: "np.ndarray", wait: bool) -> None:
        with self._changed:
            if self._thread.ident is None or self._ended or self._stopped:
                raise Phi4Error("sound is heard inside of the block, as in: with live(...) as ears: ears.feed(samples)")
            while wait and not self._done and self._held > self._limit:
                self._changed.wait(IDLE_SECONDS)
            self._raise()
            self.seconds += len(block) / self._rate
            self._inbox.append(block)
            self._changed.notify_all()

    @property
    def _held(self) -> float:
        """Seconds of sound in memory that was not heard yet."""
        return self.seconds - (self._ends[0][0] if self._ends else self._arriving.seconds)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        """The work of the thread."""
        try:
            with self._decoder.begin() as pieces:
                while not self._turn(pieces):
                    pass
        except Exception as error:  # whoever feeds is told
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _turn(self, pieces: PiecesInHand) -> bool:
        """Take in what has arrived, go on with what is being decoded; whether all is done."""
        ended = self._take_in(wait=not (self._queue or pieces or len(pieces.pool)))
        if self._stopped:
            return True
        while self._queue and pieces.room(self._queue[0][1]):
            pieces.put(*self._queue.popleft())
        if not self._queue and not pieces and not ended:
            self._guess.ask(pieces, self._cut, self._arriving.open)
        for key, answer in pieces.step():
            if (found := self._guess.answered(key, answer)) is not None:
                self._tell(found)
        for number, result in pieces.ready():
            self._hear(number, result)
        self._tell_lateness()
        return ended and not self._queue and not pieces

    def _take_in(self, wait: bool) -> bool:
        """Cut the sound that has arrived; whether it was the last."""
        with self._changed:
            if wait and not (self._inbox or self._ended or self._stopped):
                self._changed.wait(IDLE_SECONDS)
            arrived, ended = list(self._inbox), self._ended
            self._inbox.clear()
        for block in arrived:
            self._take_pieces(self._arriving.end_piece() if block is None else self._arriving.add(block))
        if ended and not self._closed and not self._stopped:
            self._closed = True
            self._take_pieces(self._arriving.end())
        return ended

    def _take_pieces(self, found: Iterable[Piece]) -> None:
        for piece in found:
            self._begin(piece.start_seconds)
            chunk = chunk_of(piece)
            with self._changed:
                self._ends.append((chunk.start, chunk.end))
            self._queue.append((self._cut, chunk))
            self._tell(SpeechStopped(self._cut, chunk.start, chunk.end))
            self._cut += 1
        if (open_piece := self._arriving.open) is not None:
            self._begin(open_piece.start_seconds)

    def _begin(self, start: float) -> None:
        if self._started < self._cut:
            self._started = self._cut
            self._tell(SpeechStarted(self._cut, start))

    def _hear(self, number: int, result: Segment | Exception) -> None:
        with self._changed:
            start, end = self._ends.popleft()
            self._changed.notify_all()
        if isinstance(result, Segment):
            if self._told is None:
                self.segments.append(result)
            self._tell(Heard(number, result))
        elif self._told is None:
            raise result
        else:
            self._tell(Failed(number, start, end, result))

    def _tell_lateness(self) -> None:
        late = self.behind
        if late < IN_TIME and self._late:
            self._late = 0.0
            self._tell(Behind(0.0))
        elif late > LATE and not self._late * 2 / 3 < late < self._late * 1.5:
            self._late = late
            self._tell(Behind(late))

    def _tell(self, event: Event) -> None:
        if self._told is not None:
            self._told(event)
