"""What is told while somebody speaks. ``number`` counts pieces from 0; times are seconds from the first sample."""

from dataclasses import dataclass

from .transcript import Segment


@dataclass(frozen=True)
class SpeechStarted:
    """A piece began."""

    number: int
    start: float


@dataclass(frozen=True)
class Provisional:
    """All that is heard of a piece so far; the next one, or the segment, goes in its place."""

    number: int
    start: float
    text: str


@dataclass(frozen=True)
class SpeechStopped:
    """A piece ended, in a pause or because it became too long; it is being decoded."""

    number: int
    start: float
    end: float


@dataclass(frozen=True)
class Heard:
    """A piece's segment, which is final. Segments come in order."""

    number: int
    segment: Segment


@dataclass(frozen=True)
class Failed:
    """A piece that could not be computed; the others go on."""

    number: int
    start: float
    end: float
    error: Exception


@dataclass(frozen=True)
class Behind:
    """Segments come so many seconds after they ended; 0 when that is over."""

    seconds: float


Event = SpeechStarted | Provisional | SpeechStopped | Heard | Failed | Behind
