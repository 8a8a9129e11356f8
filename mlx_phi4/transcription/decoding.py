"""From pieces of recordings to texts: batches, and a second try at a higher temperature where an answer looks wrong.

The guards are Whisper's (``whisper/transcribe.py``): text that repeats itself compresses too well, and a model that
does not understand what it hears gives its own answer a low probability.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import WINDOW_SECONDS
from ..errors import Phi4Error
from .tasks import Question, split_answer
from .transcript import Segment

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..audio.preprocess import Clip
    from ..generation.generate import GenerationResponse
    from ..generation.media_cache import MediaCache
    from ..inputs.processor import Processor
    from ..model import Phi4

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TOKENS_PER_SECOND = 12  # fast speech has 5 to 7; a loop is cut off before it costs much
SPARE_TOKENS = 32
ANSWER_TOKENS = 1024  # of an answer to a whole recording


@dataclass(frozen=True)
class DecodingOptions:
    """How pieces are decoded and when an answer is tried again.

    ``batch_size`` pieces at once; ``max_tokens`` of an answer, None for a number that grows with the piece;
    ``temperatures`` one attempt each, until an answer passes; ``compression_ratio_threshold`` and
    ``logprob_threshold`` that an answer must keep to, None for no such guard; ``seed`` of the attempts above
    temperature 0.
    """

    batch_size: int = 8
    max_tokens: int | None = None
    temperatures: tuple[float, ...] = TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1:
            raise Phi4Error(f"batch_size is {self.batch_size}, expected at least 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise Phi4Error(f"max_tokens is {self.max_tokens}, expected at least 1")
        if self.seed < 0:
            raise Phi4Error(f"seed is {self.seed}, expected at least 0")
        if not self.temperatures or not all(0 <= temperature <= 10 for temperature in self.temperatures):
            raise Phi4Error(f"temperatures are {self.temperatures}, expected one or more, each from 0 to 10")


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
    """Turns a stream of pieces, of one recording or of many, into segments."""

    def __init__(self, model: "Phi4", processor: "Processor", question: Question, options: DecodingOptions):
        processor.config.check_multimodal()
        self._model, self._processor = model, processor
        self._question, self._options = question, options

    def __call__(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Pairs (key, AudioChunk) -> (key, Segment), in the same order; what is not ``AudioChunk`` passes in its place.

        Pieces are pulled as they are needed, one batch at a time. A batch of long pieces is smaller, so that it holds
        no more sound than ``batch_size`` windows of the encoder.
        """
        waiting: list[tuple[Any, Any]] = []
        longest = count = 0
        for key, item in items:
            if isinstance(item, AudioChunk):
                if count and self._too_much(max(longest, item.seconds), count + 1):
                    yield from self._decoded(waiting)
                    waiting, longest, count = [], 0, 0
                longest, count = max(longest, item.seconds), count + 1
            waiting.append((key, item))
            if count in (0, self._options.batch_size):
                yield from self._decoded(waiting)
                waiting, longest, count = [], 0, 0
        yield from self._decoded(waiting)

    def _too_much(self, longest: float, count: int) -> bool:
        return longest * count > self._options.batch_size * WINDOW_SECONDS

    def _decoded(self, items: list[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        segments = iter(self.segments([item for _, item in items if isinstance(item, AudioChunk)]))
        for key, item in items:
            yield key, next(segments) if isinstance(item, AudioChunk) else item

    def segments(self, pieces: list[AudioChunk]) -> list[Segment]:
        """Decode one batch; the rows that fail a guard go through together again, a temperature higher."""
        import mlx.core as mx

        from ..generation.media_cache import MediaCache

        media = MediaCache()  # so that an attempt more does not encode the sound again
        attempts: list[list[Segment]] = [[] for _ in pieces]
        left = list(range(len(pieces)))
        for number, temperature in enumerate(self._options.temperatures):
            if not left:
                break
            answers = self._answers([pieces[row] for row in left], temperature, number, media)
            for row, answer in zip(left, answers, strict=True):
                attempts[row].append(self._segment(pieces[row], answer, temperature))
            left = [row for row in left if self._doubtful(attempts[row][-1])]
        mx.clear_cache()  # batches differ in shape, so freed buffers would pile up over a long recording
        return [self._best(tried) for tried in attempts]

    def _answers(
        self, pieces: list[AudioChunk], temperature: float, number: int, media: "MediaCache"
    ) -> "list[GenerationResponse]":
        from ..generation.generate import batch_generate
        from ..inputs.processor import Request

        requests = [
            Request(self._question.prompt, audios=[piece.clip], options={"max_tokens": self._limit(piece)})
            for piece in pieces
        ]
        seed = self._options.seed + number
        options = {"temperature": temperature, "seed": seed, "logprobs": 0, "media_cache": media}
        return batch_generate(self._model, self._processor, requests, **options)

    def _limit(self, piece: AudioChunk) -> int:
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


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of its zlib form, as Whisper computes it; above 2.4 it probably repeats itself."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))
