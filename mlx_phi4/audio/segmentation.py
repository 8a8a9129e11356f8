"""A long recording as pieces to transcribe: cut in silence, or where it is quietest, in constant memory.

Loudness is measured in frames of 10 ms. A frame is sound if it is louder than a threshold that follows
the noise around it; in doubt it is sound, as a dropped word is worse than a piece of noise. Sounds with
less than ``pause`` of silence between them make one piece, which keeps a little of the silence around it.
A piece that would become too long is cut at its quietest point, and the next one starts at that sample.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..config import WINDOW_SECONDS
from ..errors import MediaError, Phi4Error
from .preprocess import FRAME, SAMPLE_RATE
from .reader import Recording, rechunk

SHORTEST_PIECE = 1.0  # s, the least that may be asked for as the longest
PAUSES = 0.05, 60.0  # s, the shortest and the longest that may be asked for
PADDING = 0.2  # s of silence kept before and after a sound
STEP = 100  # frames, 1 s: the threshold changes once in each
PAST, AHEAD = 3000, 1500  # frames before and after a step that its threshold is made of
OVERLAP = 500  # frames around the step that count as before and as after it
SMOOTHING = 3  # frames over which loudness is averaged
ABSOLUTE = -66.0  # dBFS, always silence below
RANGE = 45.0  # dB below the loud parts of the whole recording, always silence
CONTRAST = 10.0  # dB between loud and quiet that tell noise from a sound without pauses
MARGIN = 6.0  # dB above the noise that make a sound, at most
FLOOR, LOUD = 10, 99  # percentiles of loudness that stand for the noise and for what is loud
CLICK = 5  # frames; a sound shorter than this, with silence around it, is none
CUT_FROM = 2 / 3  # of the longest piece: a cut is looked for after it, and
CUT_UNTIL = 10  # frames before its end, so that what is left is never shorter than one frame of features
CUT_WIDTH = 21  # frames over which a cut should be quiet


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
        segmenter = _Segmenter(rate, first, longest, pause)
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


class _Segmenter:
    """Takes one stretch in steps of a second and gives its pieces.

    Positions are frames of 10 ms from the start of the stretch, but for those named samples.
    """

    def __init__(self, rate: int, offset: int, longest: float, pause: float):
        self.rate, self.offset, self.hop = rate, offset, rate // 100
        self.longest = math.floor(longest * 100 + 1e-6)
        self.pause, self.padding = round(pause * 100), round(PADDING * 100)
        self.held: list[np.ndarray] = []  # steps of samples, the first at step held_from
        self.held_from = 0
        self.total = 0  # samples so far
        self.loudness = _Loudness(self.hop)
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
        while self.known + (1 if last else STEP + AHEAD) <= self.loudness.frames:
            self._find_runs(self.loudness.sound(self.known, min(self.known + STEP, self.loudness.frames)))
        yield from self._cut_runs(last)
        self._forget()

    def _find_runs(self, sound: np.ndarray) -> None:
        """Frames of the next step, True where there is sound, to runs."""
        for start, end in ((self.known + first, self.known + last) for first, last in _runs(sound)):
            if self.runs and start - self.runs[-1][1] < self.pause:
                self.runs[-1][1:] = end, self.runs[-1][2] + end - start
            else:
                self.runs.append([start, end, end - start])
        self.known += len(sound)

    def _cut_runs(self, last: bool) -> Iterator[Piece]:
        while self.runs:
            start, end, count = self.runs[0]
            closed = last or len(self.runs) > 1 or self.known - end >= max(self.pause, 2 * self.padding)
            if closed and self.begin is None and count < CLICK:
                del self.runs[0]
                continue
            if self.begin is None:
                self.begin = start - min(self.padding, (start - self.end) // 2 if self.end else start)
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

    def _piece(self, begin: int, end: int) -> Piece:
        first, stop = begin * self.hop, min(end * self.hop, self.total)
        skipped = self.held_from * STEP * self.hop
        joined = np.concatenate(self.held[: -(-stop // (STEP * self.hop)) - self.held_from])
        return Piece(self.offset + first, joined[first - skipped : stop - skipped].copy(), self.rate)

    def _forget(self) -> None:
        """Drop the steps and the loudness that are needed no more."""
        begin = self.begin
        if begin is None:
            begin = (self.runs[0][0] if self.runs else self.known) - self.padding
        step = max(0, begin // STEP)
        if step > self.held_from:
            del self.held[: step - self.held_from]
            self.held_from = step
        self.loudness.forget(min(begin, self.known - PAST))


class _Loudness:
    """Loudness of the frames of one stretch, and which of them are sound."""

    def __init__(self, hop: int):
        self.hop = hop
        self.frames = 0
        self.power = np.zeros(0)  # of the latest frames
        self.counts = np.zeros(128, np.int64)  # frames of each level from -128 dBFS up, of the whole stretch
        self.noise = -np.inf  # dBFS, where it last could be told from sound

    def add(self, samples: np.ndarray) -> None:
        """Measure the next whole frames; only the last of a stretch may be shorter."""
        whole = len(samples) - len(samples) % self.hop
        parts = [samples[:whole].reshape(-1, self.hop), samples[None, whole:]]
        power = np.concatenate([part.var(axis=1, dtype=np.float64) for part in parts if part.size])
        self.power = np.concatenate([self.power, power])
        self.frames += len(power)
        levels = _decibels(power)
        self.counts += np.bincount(np.clip(levels[levels > ABSOLUTE], -128, -1).astype(int) + 128, minlength=128)

    def levels(self, start: int, end: int, width: int) -> np.ndarray:
        """Mean level over ``width`` frames around each from ``start`` to ``end``, in dBFS."""
        first = self.frames - len(self.power)
        from_, until = max(start - width // 2, first), min(end + width // 2 + 1, self.frames)
        power, kernel = self.power[from_ - first : until - first], np.ones(width)
        mean = np.convolve(power, kernel)[width // 2 :] / np.convolve(np.ones(len(power)), kernel)[width // 2 :]
        return _decibels(mean[max(start, first) - from_ : min(end, self.frames) - from_])

    def sound(self, start: int, end: int) -> np.ndarray:
        """Which of the frames from ``start`` to ``end`` are sound (True): those above the threshold.

        The noise is the quieter of what was before and what comes, lest a change of noise hide a voice.
        """
        near = self.levels(start - PAST, end + AHEAD, SMOOTHING)
        now = max(0, start - max(0, start - PAST, self.frames - len(self.power)))
        before, coming = near[: now + OVERLAP], near[max(0, now - OVERLAP) :]
        floor, loud = min(np.percentile(before, FLOOR), np.percentile(coming, FLOOR)), np.percentile(near, LOUD)
        threshold = max(ABSOLUTE, self._loudest() - RANGE)
        if loud - floor >= CONTRAST:
            self.noise = floor
            threshold = max(threshold, floor + np.clip((loud - floor) / 5, 3.0, MARGIN))
        else:  # one sound, or noise alone: it is noise if it is as quiet as noise was
            threshold = max(threshold, self.noise + MARGIN)
        return near[now : now + end - start] > threshold

    def _loudest(self) -> float:
        """What the loud parts of the whole stretch reach, in dBFS."""
        upto = np.cumsum(self.counts)
        return float(np.searchsorted(upto, upto[-1] * LOUD / 100)) - 128 if upto[-1] else -np.inf

    def quietest(self, start: int, end: int) -> int:
        """The middle of the longest quietest stretch from ``start`` to ``end``."""
        levels = self.levels(start, end, CUT_WIDTH)
        runs = _runs(levels <= levels.min() + 0.5)
        first, last = max(runs, key=lambda run: run[1] - run[0])
        return start + (first + last) // 2

    def forget(self, before: int) -> None:
        """Drop the frames before one."""
        self.power = self.power[max(0, before - (self.frames - len(self.power))) :]


def _decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(power + 1e-12)


def _runs(flags: np.ndarray) -> list[list[int]]:
    """Start and end of each run of True."""
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    return np.flatnonzero(edges).reshape(-1, 2).tolist()
