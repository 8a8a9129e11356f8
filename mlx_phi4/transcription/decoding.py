"""From pieces of recordings to texts: rows, and a second try at a higher temperature where an answer looks wrong.

The guards are Whisper's (``whisper/transcribe.py``): text that repeats itself compresses too well, and a model that
does not understand what it hears gives its own answer a low probability.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..arguments.kinds import integer, one_or_several, real, settle, text
from ..config import WINDOW_SECONDS
from .tasks import Question, split_answer
from .transcript import Segment

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..audio.preprocess import Clip
    from ..generation.pool import AnswerPool
    from ..generation.responses import GenerationResponse
    from ..inputs.processor import Processor, Request
    from ..model import Phi4

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TOKENS_PER_SECOND = 12  # fast speech has 5 to 7; a loop is cut off before it costs much
SPARE_TOKENS = 32
ANSWER_TOKENS = 1024  # of an answer to a whole recording


DECODING_KINDS = {
    "batch_size": integer(1),
    "max_tokens": integer(1) | None,
    "temperatures": one_or_several(real(0, 10), least=1),
    "compression_ratio_threshold": real(infinite=True) | None,
    "logprob_threshold": real(infinite=True) | None,
    "seed": integer(0),
    "adapter": text | None,
}


@dataclass(frozen=True)
class DecodingOptions:
    """How pieces are decoded and when an answer is tried again.

    ``batch_size`` pieces at once; ``max_tokens`` of an answer, None for a number that grows with the piece;
    ``temperatures`` one attempt each, until an answer passes (one number for a single attempt);
    ``compression_ratio_threshold`` and ``logprob_threshold`` that an answer must keep to, None for no such guard;
    ``seed`` of the attempts above temperature 0; ``adapter`` instead of speech mode's own.
    """

    batch_size: int = 8
    max_tokens: int | None = None
    temperatures: tuple[float, ...] = TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    seed: int = 0
    adapter: str | None = None

    def __post_init__(self):
        settle(self, DECODING_KINDS)


@dataclass(frozen=True)
class AudioChunk:
    """A piece of a recording, ready for the model: seconds in the recording, and log-mel features."""

    start: float
    end: float
    clip: "Clip"

    @property
    def seconds(self) -> float:
        return self.end - self.start


class SegmentDecoder:
    """Turns a stream of pieces, of one recording or of many, into segments.

    ``pool`` makes what answers the pieces, with the methods of ``AnswerPool``; None is a batch of this decoder's own,
    for which it needs the model.
    """

    def __init__(
        self,
        model: "Phi4 | None",
        processor: "Processor",
        question: Question,
        options: DecodingOptions,
        pool: "Callable[[], AnswerPool] | None" = None,
    ):
        from ..modalities import Mode, chosen_adapter

        processor.config.check_hears()
        chosen_adapter(options.adapter, Mode.SPEECH, processor.adapters)
        self._pool = pool
        self._model, self._processor = model, processor
        self._question, self._options = question, options

    def __call__(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Pairs (key, AudioChunk) -> (key, Segment), in the same order; what is not ``AudioChunk`` passes in its place.

        A piece that cannot be computed gives its error. One is pulled and begun as soon as a row is free, and so is the
        next attempt at a doubtful one: a piece that goes on and on holds nobody up. Rows hold no more sound together
        than ``batch_size`` windows of the encoder.
        """
        source, given_back = iter(items), None
        with self.begin() as pieces:
            while True:
                while len(pieces.pool) < self._options.batch_size:
                    pair, given_back = given_back or next(source, None), None
                    if pair is None:
                        break
                    if not pieces.room(pair[1]):
                        given_back = pair
                        break
                    pieces.put(*pair)
                pieces.step()
                yield from pieces.ready()
                if not pieces and not given_back and pair is None:
                    return

    def begin(self) -> "PiecesInHand":
        """Begin to decode pieces that are put in one by one; a context manager."""
        from ..generation.pool import AnswerPool

        pool = self._pool() if self._pool else AnswerPool(self._model, self._processor)
        return PiecesInHand(pool, self._question, self._options)


class PiecesInHand:
    """Pieces that are being decoded; results come in the order in which pieces were put in.

    ``pool`` answers them, and may be asked other things with keys of one's own.
    """

    def __init__(self, pool: "AnswerPool", question: Question, options: DecodingOptions):
        self.pool, self._question, self._options = pool, question, options
        self._waiting: deque[_Slot] = deque()  # in the order of the items, the answered ones too

    def __enter__(self) -> "PiecesInHand":
        self.pool.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.pool.__exit__(*exception)

    def __len__(self) -> int:
        """Items whose results were not taken yet."""
        return len(self._waiting)

    def room(self, item: Any) -> bool:
        """Whether an item can be begun now: rows hold no more sound than ``batch_size`` windows."""
        if not isinstance(item, AudioChunk):
            return True
        held = [slot.item.seconds for slot in self._waiting if slot.result is None]
        fits = sum(held) + item.seconds <= self._options.batch_size * WINDOW_SECONDS
        return not held or (fits and len(self.pool) < self._options.batch_size)

    def put(self, key: Any, item: Any) -> None:
        """Begin a piece; what is not ``AudioChunk`` is its own result."""
        self._waiting.append(_Slot(key, item))
        if isinstance(item, AudioChunk):
            self._ask(self._waiting[-1])

    def step(self) -> "list[tuple[Any, GenerationResponse]]":
        """One step for all; answers to what others asked of the pool."""
        others = []
        for key, answer in self.pool.step() if len(self.pool) else ():
            if isinstance(key, _Slot):
                self._judge(key, answer)
            else:
                others.append((key, answer))
        return others

    def ready(self) -> Iterator[tuple[Any, Any]]:
        """Take the results whose turn it is: pairs (key, Segment or error, or what was put in)."""
        while self._waiting and self._waiting[0].result is not None:
            slot = self._waiting.popleft()
            yield slot.key, slot.result

    def question(self, piece: AudioChunk) -> "Request":
        """What is asked about a piece."""
        from ..inputs.processor import Request

        return Request(self._question.prompt, audios=[piece.clip], adapter=self._options.adapter)

    def _ask(self, slot: "_Slot") -> None:
        """Begin the next attempt at a piece, a temperature higher than the last one."""
        number = len(slot.attempts)
        self.pool.ask(
            slot,
            self.question(slot.item),
            max_tokens=self.limit(slot.item),
            temperature=self._options.temperatures[number],
            seed=self._options.seed + number,
            logprobs=0,
            media_cache=slot.media,
        )

    def _judge(self, slot: "_Slot", answer: "GenerationResponse") -> None:
        """Keep an attempt, and try again where it fails a guard."""
        if answer.error is not None:
            slot.finish(answer.error)
            return
        temperature = self._options.temperatures[len(slot.attempts)]
        slot.attempts.append(self._segment(slot.item, answer, temperature))
        if self._doubtful(slot.attempts[-1]) and len(slot.attempts) < len(self._options.temperatures):
            self._ask(slot)
            return
        slot.finish(self._best(slot.attempts))

    def limit(self, piece: AudioChunk) -> int:
        """Most tokens of an answer."""
        if self._options.max_tokens is not None:
            return self._options.max_tokens
        if self._question.whole:
            return ANSWER_TOKENS
        return (SPARE_TOKENS + int(TOKENS_PER_SECOND * piece.seconds)) * (2 if self._question.two_parts else 1)

    def _segment(self, piece: AudioChunk, answer: "GenerationResponse", temperature: float) -> Segment:
        """An answer with all doubts about it."""
        options, text, translation, flags = self._options, answer.text.strip(), None, []
        ratio = compression_ratio(text)
        logprob = sum(answer.logprob) / len(answer.logprob)
        if options.compression_ratio_threshold is not None and ratio > options.compression_ratio_threshold:
            flags.append("repetition")
        if options.logprob_threshold is not None and logprob < options.logprob_threshold:
            flags.append("low confidence")
        if answer.finish_reason == "length":
            flags.append("length")
        if self._question.two_parts:
            text, translation = split_answer(text)
            if text and translation is None:
                flags.append("no separator")
        return Segment(
            start=piece.start,
            end=piece.end,
            text=text,
            translation=translation,
            avg_logprob=round(logprob, 4),
            compression_ratio=round(ratio, 4),
            temperature=temperature,
            no_speech=not text and not translation,
            flags=tuple(flags),
            tokens=list(answer.tokens),
        )

    def _doubtful(self, segment: Segment) -> bool:
        """Whether to try again. An answer to a whole recording may well be longer than it was allowed to be."""
        again = {"repetition", "low confidence"} | (set() if self._question.whole else {"length"})
        return not again.isdisjoint(segment.flags)

    def _best(self, tried: list[Segment]) -> Segment:
        """The last attempt if it passed, else the most confident one that does not repeat itself."""
        if not self._doubtful(tried[-1]):
            return tried[-1]
        return max(tried, key=lambda segment: ("repetition" not in segment.flags, segment.avg_logprob))


class _Slot:
    """An item's place in the order of results; ``media`` keeps a piece's embeddings from one attempt to the next."""

    def __init__(self, key: Any, item: Any):
        from ..generation.media_cache import MediaCache

        self.key, self.item = key, item
        self.result = None if isinstance(item, AudioChunk) else item
        self.attempts: list[Segment] = []
        self.media: MediaCache | None = MediaCache()

    def finish(self, result: "Segment | Exception") -> None:
        """Keep a result until its turn comes, and nothing that led to it."""
        self.result, self.item, self.media = result, None, None


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of its zlib form, as Whisper computes it; above 2.4 it probably repeats itself."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))
