"""A transcript as a picture: the wave, its segments and how sure the model was, through matplotlib (extra ``plot``)."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audio.reader import open_recording
from ..errors import Phi4Error
from ..files import expanded, write_whole
from .transcript import Segment, Transcript

if TYPE_CHECKING:  # imported where used, so that --help is instant
    import numpy as np
    from matplotlib.figure import Figure

COLUMNS = 2000  # of the wave: its lowest and highest sample in each stretch
WIDEST, INCH_SECONDS = 40.0, 2.0  # inches of a picture, and seconds on each
NARROWEST, HIGH = 8.0, 4.0  # inches
LABELS = 60  # segments whose texts still have room
LETTERS_SECOND = 9  # of a text, that fit over a second of it
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def plot_transcript(transcript: Transcript, source: Any, path: str | Path) -> Path:
    """Draw a transcript over its recording.

    Args:
        source: the recording, as ``audio.reader.open_recording`` takes it; it is read in blocks.
        path: where to write, a name that ends in .png, .svg or .pdf.

    Raises:
        Phi4Error: matplotlib is missing, the name says no such format, or the file cannot be written.
    """
    path = check_plot(path)
    return save_figure(_figure(transcript, *envelope(source, transcript.duration)), path)


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure of matplotlib, whole or not at all. Raises Phi4Error."""
    try:
        with write_whole(path) as partial:
            figure.savefig(partial, format=path.suffix[1:].lower())
    except OSError as error:
        raise Phi4Error(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def check_plot(path: str | Path) -> Path:
    """Find out before any work whether a plot can be drawn there. Raises Phi4Error."""
    path = expanded(path)
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise Phi4Error(f"{path}: a plot's name ends in {', '.join(PLOT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise Phi4Error(f"{path.parent}: no such folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Phi4Error('a plot needs matplotlib: pip install "mlx_phi4[plot]"') from None
    return path


def envelope(source: Any, duration: float) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """The lowest and the highest sample of each of ``COLUMNS`` stretches, and the seconds of their middles."""
    import numpy as np

    with open_recording(source, partial=True) as recording:
        count = max(1, math.ceil(duration * recording.rate))
        stretch = max(1, math.ceil(count / COLUMNS))
        columns = math.ceil(count / stretch)
        low, high, at = np.zeros(columns), np.zeros(columns), 0
        for block in recording.blocks():
            places = np.minimum((at + np.arange(len(block))) // stretch, columns - 1)
            np.minimum.at(low, places, block)
            np.maximum.at(high, places, block)
            at += len(block)
        return (np.arange(columns) + 0.5) * stretch / recording.rate, low, high


def _figure(transcript: Transcript, times: "np.ndarray", low: "np.ndarray", high: "np.ndarray") -> "Figure":
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    width = min(max(transcript.duration / INCH_SECONDS, NARROWEST), WIDEST)
    figure = Figure(figsize=(width, HIGH), layout="constrained")
    wave, sure = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    wave.fill_between(times, low, high, linewidth=0.5, color="0.35")
    top = max(1e-3, float(max(high.max(), -low.min())))
    wave.set(ylim=(-1.1 * top, 1.6 * top), ylabel="sound", xlim=(0, max(transcript.duration, 1e-3)))
    heard = [segment for segment in transcript.segments if segment.text]
    for index, segment in enumerate(heard):
        colour = "tab:red" if segment.flags else f"C{index % 2}"
        wave.axvspan(segment.start, segment.end, alpha=0.25, color=colour, linewidth=0)
        if len(heard) <= LABELS:
            wave.text(segment.start, 1.2 * top, _label(segment), fontsize=8, clip_on=True, parse_math=False)
        sure.bar(segment.start, confidence(segment), segment.end - segment.start, align="edge", color=colour, alpha=0.6)
    sure.set(ylim=(0, 1), ylabel="confidence", xlabel="seconds")
    if transcript.source:
        figure.suptitle(Path(transcript.source).name, fontsize=10, parse_math=False)
    return figure


def confidence(segment: Segment) -> float:
    """The geometric mean of the probabilities of a segment's tokens, 0 to 1; 0 where it is not known."""
    known = segment.avg_logprob is not None and not math.isnan(segment.avg_logprob)
    return min(1.0, math.exp(segment.avg_logprob)) if known else 0.0


def _label(segment: Segment) -> str:
    """As much of a text as fits over it."""
    letters = max(3, int(LETTERS_SECOND * (segment.end - segment.start)))
    return segment.text if len(segment.text) <= letters else segment.text[: letters - 1] + "…"
