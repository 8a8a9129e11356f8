"""A long recording as pieces to transcribe: cut in silence, or where it is quietest, in constant memory.

Loudness is measured in frames of 10 ms. Sounds with
less than ``pause`` of silence between them make one piece, which keeps a little of the silence around it.
A piece that would become too long is cut at its quietest point, and the next one starts at that sample.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..config import WINDOW_SECONDS
from ..errors import MediaError, Phi4Error
from .loudness import AHEAD, PAST, Loudness, runs_of
from .preprocess import FRAME, SAMPLE_RATE
from .reader import Recording, rechunk

SHORTEST_PIECE = 1.0  # s, the least that may be asked for as the longest
PAUSES = 0.05, 60.0  # s, the shortest and the longest that may be asked for
PADDING = 0.2  # s of silence kept before and after a sound
STEP = 100  # frames, 1 s: the threshold changes once in each
LIVE_STEP, LIVE_AHEAD = 10, 1  # frames: of sound that is still arriving, whose future nobody knows
CLICK = 5  # frames; a sound shorter than this, with silence around it, is none
CUT_FROM = 2 / 3  # of the longest piece: a cut is looked for after it, and
CUT_UNTIL = 10  # frames before its end, so that what is left is never shorter than one frame of features


@dataclass(frozen=True)
class Piece:
    """A part of a recording: samples (n,) float32 at ``rate`` Hz, the first being number ``start`` of the whole."""

    start: int
    samples: np.ndarray
    rate: int

    @property
    def start_seconds(self) -> float:
        return self.start / self.rate

    @property
    def end_seconds(self) -> float:
        return (self.start + len(self.samples)) / self.rate


def pieces(
    recording: Recording,
    *,
    longest: float = 30.0,
    pause: float = 0.5,
    clips: list[tuple[float, float]] | None = None,
) -> Iterator[Piece]:
    """Yield the parts of a recording that hold sound, in order, none overlapping; none if all is silence.

    Args:
        longest: of a piece, in seconds, 1 to 40.
        pause: silence that ends a piece, in seconds.
        clips: only these stretches, each (start, end) in seconds, in order; a piece lies within one.

    Raises:
        Phi4Error: a bad argument, before the first piece.
        MediaError: as ``Recording.blocks``; it is shorter than one frame; a clip starts after its end.
    """
    check_limits(longest, pause)
    check_clips(clips, recording)
    return _pieces(recording, longest, pause, clips)


def check_limits(longest: float, pause: float) -> None:
    """Raise as ``pieces`` does for seconds that are out of range."""
    if not SHORTEST_PIECE <= longest <= WINDOW_SECONDS:
        limits = f"{SHORTEST_PIECE:g} to {WINDOW_SECONDS:g} (the encoder's own window)"
        raise Phi4Error(f"segment_seconds is {longest:g}, expected {limits}")
    if not PAUSES[0] <= pause <= PAUSES[1]:
        raise Phi4Error(f"pause is {pause:g}, expected {PAUSES[0]:g} to {PAUSES[1]:g} seconds")


def check_clips(clips: list[tuple[float, float]] | None, recording: Recording) -> None:
    """Raise as ``pieces`` does for clips, as far as the recording's header tells."""
    before = 0.0
    for start, end in clips or ():
        if not 0 <= start < end:
            raise Phi4Error(f"a clip goes from {start:g} to {end:g} s, expected 0 <= start < end")
        if end - start < FRAME / SAMPLE_RATE:
            raise Phi4Error(f"a clip goes from {start:g} to {end:g} s, which is shorter than one frame (0.025 s)")
        if start < before:
            raise Phi4Error(f"a clip starts at {start:g} s, before the end of the one in front, {before:g} s")
        if recording.duration is not None and start >= recording.duration:
            raise _beyond(recording, start, recording.duration)
        before = end


def _beyond(recording: Recording, start: float, duration: float) -> MediaError:
    return MediaError(f"{recording.name}: a clip starts at {start:g} s, but the recording ends at {duration:.2f} s")


def _pieces(recording: Recording, longest: float, pause: float, clips: list | None) -> Iterator[Piece]:
    rate = recording.rate
    samples = _Stream(recording.blocks())
    for start, end in clips or [(0.0, math.inf)]:
        first = round(start * rate)
        segmenter = Segmenter(rate, first, longest, pause)
        stretch = samples.stretch(first, None if math.isinf(end) else round(end * rate))
        for block in rechunk(stretch, STEP * rate // 100):
            segmenter.add(block)
            yield from segmenter.finished()
        if clips and samples.position <= first:
            raise _beyond(recording, start, samples.position / rate)
        if clips is None and samples.position < FRAME * rate // SAMPLE_RATE:
            needed, at = FRAME * rate // SAMPLE_RATE, f"{samples.position} samples at {rate} Hz"
            raise MediaError(f"{recording.name}: {at} are shorter than one frame ({needed})")
        yield from segmenter.finished(last=True)


class _Stream:
    """Blocks of a recording, read once from its beginning."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self.blocks = blocks
        self.held = np.zeros(0, np.float32)
        self.position = 0  # of the first sample in held

    def stretch(self, start: int, end: int | None) -> Iterator[np.ndarray]:
        """The samples from ``start`` (not before the end of the stretch in front) to ``end`` or the last."""
        while end is None or self.position < end:
            if len(self.held) == 0:
                self.held = next(self.blocks, self.held)
                if len(self.held) == 0:
                    return
            skipped = max(0, start - self.position)
            taken = self.held[: None if end is None else end - self.position]
            self.held, self.position = self.held[len(taken) :], self.position + len(taken)
            if skipped < len(taken):
                yield taken[skipped:]


class Segmenter:
    """Takes one stretch in steps of a second, or while it arrives (``live``) of 0.1 s, and gives its pieces.

    Positions are frames of 10 ms from the start of the stretch, but for those named samples. What arrives is judged
    without the seconds behind it, and at first held back until there was something quieter to compare it with.
    """

    def __init__(self, rate: int, offset: int, longest: float, pause: float, live: bool = False):
        self.rate, self.offset, self.hop, self.live = rate, offset, rate // 100, live
        self.step, self.ahead = (LIVE_STEP, LIVE_AHEAD) if live else (STEP, AHEAD)
        self.longest = math.floor(longest * 100 + 1e-6)
        self.pause, self.padding = round(pause * 100), round(PADDING * 100)
        self.held: list[np.ndarray] = []  # steps of samples, the first at step held_from
        self.held_from = 0
        self.total = 0  # samples so far
        self.loudness = Loudness(self.hop)
        self.known = 0  # frames that are told to be sound or silence
        self.runs: list[list[int]] = []  # of sound: start, end, number of frames; the last may grow
        self.begin: int | None = None  # of the piece at hand, if it was cut off the one before
        self.end = 0  # of the last sound given

    def add(self, samples: np.ndarray) -> None:
        """Take the next step of samples."""
        self.held.append(samples)
        self.total += len(samples)
        self.loudness.add(samples)

    def finished(self, last: bool = False) -> Iterator[Piece]:
        """The pieces that are complete; with ``last``, all that is left."""
        while self.known + (1 if last else self.step + self.ahead) <= self.loudness.frames:
            if self.live and not last and self._held_back():
                break
            self._find_runs(self.loudness.sound(self.known, min(self.known + self.step, self.loudness.frames)))
        yield from self._cut_runs(last)
        self._forget()

    def _find_runs(self, sound: np.ndarray) -> None:
        """Frames of the next step, True where there is sound, to runs."""
        for start, end in ((self.known + first, self.known + last) for first, last in runs_of(sound)):
            if self.runs and start - self.runs[-1][1] < self.pause:
                self.runs[-1][1:] = end, self.runs[-1][2] + end - start
            else:
                self.runs.append([start, end, end - start])
        self.known += len(sound)

    def _cut_runs(self, last: bool) -> Iterator[Piece]:
        while self.runs:
            _, end, count = self.runs[0]
            closed = last or len(self.runs) > 1 or self.known - end >= max(self.pause, 2 * self.padding)
            if closed and self.begin is None and count < CLICK:
                del self.runs[0]
                continue
            if self.begin is None:
                self.begin = self._beginning()
            if end - self.begin > self.longest:
                cut = self.loudness.quietest(
                    self.begin + int(self.longest * CUT_FROM), self.begin + self.longest - CUT_UNTIL
                )
                yield self._piece(self.begin, cut)
                self.begin = cut
            elif closed:
                following = self.runs[1][0] if len(self.runs) > 1 else max(self.known, end)
                silence = following - end
                kept = min(self.padding, silence - silence // 2 if len(self.runs) > 1 else silence)
                yield self._piece(self.begin, min(end + kept, self.begin + self.longest))
                self.begin, self.end = None, end
                del self.runs[0]
            else:
                return

    def _beginning(self) -> int:
        """Where the piece of the first run begins: a little before it, if that is not within the last one."""
        start = self.runs[0][0]
        return start - min(self.padding, (start - self.end) // 2 if self.end else start)

    def _piece(self, begin: int, end: int) -> Piece:
        first, stop = begin * self.hop, min(end * self.hop, self.total)
        skipped = self.held_from * self.step * self.hop
        joined = np.concatenate(self.held[: -(-stop // (self.step * self.hop)) - self.held_from])
        return Piece(self.offset + first, joined[first - skipped : stop - skipped].copy(), self.rate)

    def _held_back(self) -> bool:
        """Whether what came last may yet turn out to be noise; not for longer than a piece."""
        return self.loudness.frames - self.known < self.longest and self.loudness.undecided(self.known)

    def open(self) -> Piece | None:
        """The piece that is being spoken, as far as it came; None in silence."""
        if not self.runs or (self.begin is None and self.runs[-1][2] < CLICK):
            return None
        end = min(self.runs[-1][1] + self.padding, self.loudness.frames)
        return self._piece(self._beginning() if self.begin is None else self.begin, end)

    def next_stretch(self) -> "Segmenter":
        """A segmenter for what follows, which knows the noise of what was before."""
        following = Segmenter(self.rate, self.offset + self.total, self.longest / 100, self.pause / 100, self.live)
        following.loudness.noise = self.loudness.noise
        return following

    def _forget(self) -> None:
        """Drop the steps and the loudness that are needed no more."""
        begin = self.begin
        if begin is None:
            begin = (self.runs[0][0] if self.runs else self.known) - self.padding
        step = max(0, begin // self.step)
        if step > self.held_from:
            del self.held[: step - self.held_from]
            self.held_from = step
        self.loudness.forget(min(begin, self.known - PAST))
