"""Loudness of a recording in frames of 10 ms, and which of them are sound.

A frame is sound if it is louder than a threshold that follows the noise around it; in doubt it is sound, as a dropped
word is worse than a piece of noise.
"""

import numpy as np

PAST, AHEAD = 3000, 1500  # frames before and after a step that its threshold is made of
OVERLAP = 500  # frames around the step that count as before and as after it
SMOOTHING = 3  # frames over which loudness is averaged
ABSOLUTE = -66.0  # dBFS, always silence below
RANGE = 45.0  # dB below the loud parts of the whole recording, always silence
CONTRAST = 10.0  # dB between loud and quiet that tell noise from a sound without pauses
MARGIN = 6.0  # dB above the noise that make a sound, at most
FLOOR, LOUD = 10, 99  # percentiles of loudness that stand for the noise and for what is loud
CUT_WIDTH = 21  # frames over which a cut should be quiet


class Loudness:
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
        levels = decibels(power)
        self.counts += np.bincount(np.clip(levels[levels > ABSOLUTE], -128, -1).astype(int) + 128, minlength=128)

    def levels(self, start: int, end: int, width: int) -> np.ndarray:
        """Mean level over ``width`` frames around each from ``start`` to ``end``, in dBFS."""
        first = self.frames - len(self.power)
        from_, until = max(start - width // 2, first), min(end + width // 2 + 1, self.frames)
        power, kernel = self.power[from_ - first : until - first], np.ones(width)
        mean = np.convolve(power, kernel)[width // 2 :] / np.convolve(np.ones(len(power)), kernel)[width // 2 :]
        return decibels(mean[max(start, first) - from_ : min(end, self.frames) - from_])

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

    def undecided(self, start: int) -> bool:
        """Whether sound cannot be told from noise yet in the frames from ``start`` on: nothing quieter was heard."""
        if self.noise > -np.inf or self.frames == start:
            return False
        near = self.levels(start - PAST, self.frames, SMOOTHING)
        if near.max() <= ABSOLUTE:
            return False
        return np.percentile(near, LOUD) - np.percentile(near, FLOOR) < CONTRAST

    def _loudest(self) -> float:
        """What the loud parts of the whole stretch reach, in dBFS."""
        upto = np.cumsum(self.counts)
        return float(np.searchsorted(upto, upto[-1] * LOUD / 100)) - 128 if upto[-1] else -np.inf

    def quietest(self, start: int, end: int) -> int:
        """The middle of the longest quietest stretch from ``start`` to ``end``."""
        levels = self.levels(start, end, CUT_WIDTH)
        runs = runs_of(levels <= levels.min() + 0.5)
        first, last = max(runs, key=lambda run: run[1] - run[0])
        return start + (first + last) // 2

    def forget(self, before: int) -> None:
        """Drop the frames before one."""
        self.power = self.power[max(0, before - (self.frames - len(self.power))) :]


def decibels(power: np.ndarray) -> np.ndarray:
    """Of power, 0 dB being full scale."""
    return 10 * np.log10(power + 1e-12)


def runs_of(flags: np.ndarray) -> list[list[int]]:
    """Start and end of each run of True."""
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    return np.flatnonzero(edges).reshape(-1, 2).tolist()
