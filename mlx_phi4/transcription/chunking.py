"""From recordings to pieces with log-mel features, read in threads a little ahead of the model."""

import math
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..arguments.kinds import flag, real, settle
from ..config import WINDOW_SECONDS
from ..errors import Phi4Error
from .decoding import AudioChunk

if TYPE_CHECKING:  # imported where used, so that --help is instant
    import numpy as np

    from ..audio.reader import Recording
    from ..audio.segmentation import Piece
    from ..config import Config

SEGMENT_SECONDS, PAUSE = 30.0, 0.5
WHOLE_SECONDS = 1800.0  # the longest recordings that the model was trained to summarize


@dataclass(frozen=True)
class ChunkingOptions:
    """How a recording is cut.

    ``segment_seconds`` is the longest piece, ``pause`` the least silence in seconds that is left out, ``clips`` the
    parts to read as pairs of seconds (None: all), ``whole`` takes everything as one piece, up to 30 minutes,
    ``partial`` takes what a truncated recording still holds, with a warning.
    """

    segment_seconds: float | None = None
    pause: float | None = None
    clips: list[tuple[float, float]] | None = None
    whole: bool = False
    partial: bool = False

    def __post_init__(self):
        settle(self, {"segment_seconds": real() | None, "pause": real() | None, "partial": flag})
        from ..audio.segmentation import check_limits

        check_limits(
            SEGMENT_SECONDS if self.segment_seconds is None else self.segment_seconds,
            PAUSE if self.pause is None else self.pause,
        )

    def suited_to(self, config: "Config") -> "ChunkingOptions":
        """With what the model's ``config.json`` says, or the usual, where nothing was asked for."""
        usual = {"segment_seconds": SEGMENT_SECONDS, "pause": PAUSE} | config.transcription
        open_fields = [name for name in ("segment_seconds", "pause") if getattr(self, name) is None]
        return replace(self, **{name: usual[name] for name in open_fields})


@dataclass(frozen=True)
class RecordingEnd:
    """Follows the last piece: the recording's seconds, and what a person should know about it."""

    duration: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Stands for the rest of a recording that cannot be read."""

    error: Exception

    def line(self, name: str) -> str:
        """What is wrong with the recording of this name."""
        if isinstance(self.error, Phi4Error):
            return re.sub("^audio bytes", lambda _: name, str(self.error))  # standard input, for one
        if isinstance(self.error, OSError):
            return f"{name}: {self.error.strerror or self.error}"
        return f"{name}: {type(self.error).__name__}: {self.error}"


def readable(path: str | os.PathLike) -> str:
    """A path as Unicode, which names of files need not be."""
    try:
        return os.fsencode(path).decode("utf-8", "replace")
    except UnicodeEncodeError:  # half a surrogate pair that stands for no byte
        return str(path).encode("utf-8", "replace").decode()


def read_chunks(source: Any, options: ChunkingOptions) -> Iterator[AudioChunk | RecordingEnd]:
    """Yield a recording's pieces and then its ``RecordingEnd``, in constant memory.

    Raises:
        MediaError: it cannot be read.
    """
    from ..audio.reader import open_recording

    with open_recording(source, partial=options.partial) as recording:
        for item in _read_whole(recording, options) if options.whole else _read_segments(recording, options):
            if isinstance(item, RecordingEnd) and recording.lost:
                # without the recording's name, which the warning is shown with
                lost = recording.lost.removeprefix(f"{recording.name}: ")
                item = replace(item, warnings=(*item.warnings, f"{lost}; what it still holds was heard"))
            yield item


def chunk_of(piece: "Piece") -> AudioChunk:
    """A piece of sound as the model takes it."""
    from ..audio.preprocess import prepare_clip

    return AudioChunk(piece.start_seconds, piece.end_seconds, prepare_clip((piece.samples, piece.rate)))


def _read_segments(recording: "Recording", options: ChunkingOptions) -> Iterator[AudioChunk | RecordingEnd]:
    from ..audio.segmentation import pieces

    part, found = _Part(recording), False
    for piece in pieces(part, longest=options.segment_seconds, pause=options.pause, clips=options.clips):
        found = True
        yield chunk_of(piece)
    where = "" if options.clips is None else " in the given part"
    yield RecordingEnd(part.duration, () if found else (f"no speech found{where}",))


def _read_whole(recording: "Recording", options: ChunkingOptions) -> Iterator[AudioChunk | RecordingEnd]:
    import numpy as np

    from ..audio.preprocess import Clip, feature_blocks
    from ..audio.segmentation import check_clips

    check_clips(options.clips, recording)
    part = _Part(recording, options.clips, WHOLE_SECONDS)
    features = np.concatenate(list(feature_blocks(part)))
    yield AudioChunk(options.clips[0][0] if options.clips else 0.0, part.end, Clip(features))
    minutes = f"{WHOLE_SECONDS / 60:g} minutes"
    advice = f"only its first {minutes} were heard, the longest the model was trained on; --clip-timestamps chooses"
    yield RecordingEnd(part.duration, (advice,) if part.cut else ())


class _Part:
    """A recording, or some parts of it one after another, counted while it is read; read like a ``Recording``."""

    def __init__(
        self, recording: "Recording", clips: list[tuple[float, float]] | None = None, seconds: float = math.inf
    ):
        self.name, self.rate = recording.name, recording.rate
        self._recording, self._clips, self._seconds = recording, clips, seconds
        self._read = 0  # samples
        self._complete = False
        self.end = 0.0  # seconds, where the last sample that was given out ends
        self.cut = False  # whether there was more than ``seconds``

    @property
    def duration(self) -> float:
        """Seconds: counted if all was read, else as the container says."""
        read = self._read / self.rate
        return read if self._complete or self._recording.duration is None else max(read, self._recording.duration)

    def blocks(self) -> "Iterator[np.ndarray]":
        """Mono float32 (n,), as ``Recording.blocks``."""
        clips = [(0.0, math.inf)] if self._clips is None else self._clips
        parts = [(self._samples(start), self._samples(end)) for start, end in clips]
        left = self._samples(self._seconds)
        for block in self._recording.blocks():
            first = self._read
            self._read += len(block)
            for start, end in parts:
                kept = block[max(start - first, 0) : max(end - first, 0)]
                self.cut = len(kept) > left
                kept = kept[:left]
                left -= len(kept)
                if len(kept):
                    self.end = (max(first, start) + len(kept)) / self.rate
                    yield kept
                if self.cut:
                    return
            if parts[-1][1] <= self._read:
                return
        self._complete = True

    def _samples(self, seconds: float) -> int:
        return sys.maxsize if seconds == math.inf else math.ceil(seconds * self.rate)


def read_ahead(
    streams: list[Callable[[], Iterator]],
    jobs: int = 1,
    seconds: float = 8 * WINDOW_SECONDS,
    order: Iterable[int] | None = None,
) -> Iterator[tuple[int, Any]]:
    """The items of all streams, one stream after the other, as pairs (index, item).

    ``order`` gives the indices of the streams that are to be read, one by one as a thread is free; None is all of them.

    ``jobs`` threads read, so that the model need not wait; no more than about ``seconds`` of sound lie ready at any
    time. What a stream raises becomes a ``Failure`` in its place. Close the generator to end the threads.
    """
    buffer = _ReadAheadBuffer(streams, seconds, range(len(streams)) if order is None else order)
    threads = [threading.Thread(target=buffer.fill, daemon=True) for _ in range(min(jobs, len(streams)))]
    for thread in threads:
        thread.start()
    try:
        yield from buffer
    finally:
        buffer.close()
        for thread in threads:
            thread.join(timeout=5)


class _ReadAheadBuffer:
    """Where threads put what they have read, and one consumer takes it in order."""

    def __init__(self, streams: list[Callable[[], Iterator]], seconds: float, order: Iterable[int]):
        self._streams, self._limit = streams, seconds
        self._changed = threading.Condition()
        self._order = iter(order)
        self._taken: deque[int] = deque()  # streams that were begun and not given out yet
        self._ready: dict[int, deque] = {}
        self._all_taken = False
        self._held = 0.0  # seconds
        self._closed = False

    def fill(self) -> None:
        """Read one stream after another; the work of each thread."""
        while (index := self._take_up()) is not None:
            try:
                for item in self._streams[index]():
                    if not self._put(index, item):
                        return
            # libraries have surprises for damaged files; one file must not end the work on the others
            except Exception as error:
                self._put(index, Failure(error))
            self._put(index, None)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._taken or self._all_taken)
                if not self._taken:
                    return
                index = self._taken.popleft()
            while True:
                with self._changed:
                    self._changed.wait_for(lambda index=index: self._ready[index])
                    item = self._ready[index].popleft()
                    self._held -= _seconds(item)
                    self._changed.notify_all()
                if item is None:
                    del self._ready[index]
                    break
                yield index, item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take_up(self) -> int | None:
        with self._changed:
            index = None if self._closed or self._all_taken else next(self._order, None)
            if index is None:
                self._all_taken = True
            else:
                self._ready[index] = deque()
                self._taken.append(index)
            self._changed.notify_all()
            return index

    def _put(self, index: int, item: Any) -> bool:
        """False if nobody takes it any more. A stream with nothing ready may always put, lest all wait for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._held < self._limit or not self._ready[index])
            self._ready[index].append(item)
            self._held += _seconds(item)
            self._changed.notify_all()
            return not self._closed


def _seconds(item: Any) -> float:
    return item.seconds if isinstance(item, AudioChunk) else 0.0
