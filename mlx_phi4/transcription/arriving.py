"""Sound as it arrives, at any rate and in blocks of any length, to pieces that end in pauses."""

from collections.abc import Iterator

import numpy as np

from ..audio.reader import NARROW_RATE, SAMPLE_RATE
from ..audio.segmentation import Piece, Segmenter


class ArrivingPieces:
    """Cuts sound of ``given_rate`` Hz, mono float32; ``longest`` and ``pause`` as in ``audio.segmentation.pieces``."""

    def __init__(self, given_rate: int, longest: float, pause: float):
        self._given_rate = given_rate
        self.rate = given_rate if given_rate in (SAMPLE_RATE, NARROW_RATE) else SAMPLE_RATE
        self._segmenter = Segmenter(self.rate, 0, longest, pause, live=True)
        self._resampler = None
        self._rest = np.zeros(0, np.float32)  # samples of a step that is not whole yet

    @property
    def seconds(self) -> float:
        """Of sound that was cut."""
        return (self._segmenter.offset + self._segmenter.total) / self.rate

    @property
    def open(self) -> Piece | None:
        """The piece that is being spoken, as far as it came; None in silence."""
        return self._segmenter.open()

    def add(self, block: np.ndarray) -> Iterator[Piece]:
        """Take samples (n,); the pieces that ended in them."""
        return self._cut(block if self._given_rate == self.rate else self._resampled(block))

    def end_piece(self) -> Iterator[Piece]:
        """What is open ends here, and others may follow."""
        if len(self._rest):
            self._segmenter.add(self._rest)
            self._rest = self._rest[:0]
        yield from self._segmenter.finished(last=True)
        self._segmenter = self._segmenter.next_stretch()

    def end(self) -> Iterator[Piece]:
        """There is no more."""
        if self._resampler is not None:
            yield from self._cut(self._resampled(np.zeros(0, np.float32), last=True))
        yield from self.end_piece()

    def _cut(self, block: np.ndarray) -> Iterator[Piece]:
        step = self._segmenter.step * self._segmenter.hop
        joined = np.concatenate([self._rest, block])
        whole = len(joined) - len(joined) % step
        self._rest = joined[whole:]
        for start in range(0, whole, step):
            self._segmenter.add(joined[start : start + step])
            yield from self._segmenter.finished()

    def _resampled(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        import soxr

        if self._resampler is None:
            self._resampler = soxr.ResampleStream(self._given_rate, self.rate, 1, dtype="float32")
        return self._resampler.resample_chunk(np.ascontiguousarray(block), last=last)
