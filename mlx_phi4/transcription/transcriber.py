"""From recordings to transcripts: what is asked, how recordings are cut, how pieces are decoded, in one object."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial as with_arguments
from typing import TYPE_CHECKING, Any

from ..arguments import kinds
from ..arguments.names import takes
from ..config import WINDOW_SECONDS
from .chunking import ChunkingOptions, Failure, RecordingEnd, read_ahead, read_chunks, readable
from .decoding import TEMPERATURES, DecodingOptions, SegmentDecoder
from .tasks import make_question, parse_clips
from .transcript import Segment, Transcript

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..generation.pool import AnswerPool
    from ..inputs.processor import Processor
    from ..model import Phi4


class Transcriber:
    """Transcribes one recording or many with the same settings, which are checked before a model is loaded.

    Args:
        task: transcribe, translate, transcribe+translate (answers to each piece), summarize or ask (one answer to the
            whole recording, up to 30 minutes).
        to: language of a translation by English name or code; None is English.
        prompt: used instead of the task's own.
        context: names and terms that may occur, added to the prompt.
        segment_seconds: longest piece, at most 40; None is the model's own limit, usually 30.
        pause: least silence in seconds that is left out between pieces; None is the model's own, usually 0.5.
        clip_timestamps: parts of the recording, see ``tasks.parse_clips``; None is all.
        partial: take what a truncated recording still holds, with a warning in the transcript.
        batch_size, max_tokens, temperatures, compression_ratio_threshold, logprob_threshold, seed, adapter: see
            ``decoding.DecodingOptions``.

    Raises:
        Phi4Error: a bad value.
    """

    @takes()
    def __init__(
        self,
        *,
        task: str = "transcribe",
        to: str | None = None,
        prompt: str | None = None,
        context: str | None = None,
        segment_seconds: float | None = None,
        pause: float | None = None,
        clip_timestamps: str | list | None = None,
        batch_size: int = 8,
        max_tokens: int | None = None,
        temperatures: float | Sequence[float] = TEMPERATURES,
        compression_ratio_threshold: float | None = 2.4,
        logprob_threshold: float | None = -1.0,
        seed: int = 0,
        partial: bool = False,
        adapter: str | None = None,
    ):
        self.question = make_question(task, to, prompt, context)
        clips = parse_clips(clip_timestamps)
        self.chunking = ChunkingOptions(segment_seconds, pause, clips, self.question.whole, partial)
        self.decoding = DecodingOptions(
            batch_size=batch_size,
            max_tokens=max_tokens,
            temperatures=temperatures,
            compression_ratio_threshold=compression_ratio_threshold,
            logprob_threshold=logprob_threshold,
            seed=seed,
            adapter=adapter,
        )

    @takes(processor=kinds.processor, jobs=kinds.integer(1), progress=kinds.function)
    def __call__(
        self,
        model: "Phi4 | None",
        processor: "Processor",
        sources: Sequence[Any],
        *,
        jobs: int = 1,
        order: Iterable[int] | None = None,
        progress: Callable[[int, float], None] = lambda index, seconds: None,
        heard: "Callable[[int, Segment], None] | None" = None,
        pool: "Callable[[], AnswerPool] | None" = None,
    ) -> Iterator[tuple[int, Transcript | Failure]]:
        """Yield each source's transcript, or why there is none, as soon as its last piece is decoded, in order.

        Pieces of several recordings share batches. Close the generator to end the threads that read.

        Args:
            sources: as ``audio.reader.open_recording`` takes them.
            jobs: recordings that are read at once.
            order: indices of the sources to be done, asked for one by one; None is all of them.
            progress: told a source's index and the seconds of it that are decoded.
            heard: told a source's index and each segment, in order.
            pool: see ``SegmentDecoder``.
        """
        if pool is None:
            kinds.settled({"model": kinds.model}, {"model": model})
        decoder = SegmentDecoder(model, processor, self.question, self.decoding, pool)
        chunking = self.chunking.suited_to(processor.config)
        streams = [with_arguments(read_chunks, source, chunking) for source in sources]
        segments: dict[int, list[Segment]] = {}
        failed: set[int] = set()
        with closing(read_ahead(streams, jobs, self.decoding.batch_size * WINDOW_SECONDS, order)) as chunks:
            for index, item in decoder(chunks):
                if index in failed:
                    continue  # the rest of a recording whose failure was told
                if isinstance(item, Segment):
                    segments.setdefault(index, []).append(item)
                    progress(index, item.end)
                    if heard is not None:
                        heard(index, item)
                elif isinstance(item, (Failure, Exception)):
                    failed.add(index)
                    segments.pop(index, None)
                    yield index, item if isinstance(item, Failure) else Failure(item)
                else:
                    yield index, self._transcript(sources[index], segments.pop(index, []), item)

    def _transcript(self, source: Any, segments: list[Segment], end: RecordingEnd) -> Transcript:
        return Transcript(
            segments=segments,
            duration=round(end.duration, 3),
            language=self.question.language,
            task=self.question.task,
            source=readable(source) if isinstance(source, (str, os.PathLike)) else None,
            warnings=[*self.question.warnings, *end.warnings],
        )
