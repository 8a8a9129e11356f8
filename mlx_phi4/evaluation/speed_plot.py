"""The figures of a benchmark as a picture, through matplotlib (extra ``plot``)."""

from collections.abc import Sequence
from pathlib import Path

from ..transcription.plot import check_plot, save_figure
from .speed import Measured

PANELS = {
    "prompt, tokens a second": "prompt_tps",
    "answer, tokens a second": "generation_tps",
    "first token, seconds": "first_token_seconds",
    "peak memory, GB": "peak_memory",
}


def plot_speed(found: Sequence[Measured], where: dict, path: str | Path) -> Path:
    """Draw what ``benchmark`` measured, a bar for each mode, under what ``machine`` says of this one.

    Raises Phi4Error as ``transcription.plot.plot_transcript``.
    """
    path = check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(PANELS), 3.5), layout="constrained")
    for axes, (title, name) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        bars = axes.barh([measured.mode for measured in found], [getattr(measured, name) for measured in found])
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.2)
        axes.invert_yaxis()
    figure.suptitle(f"{where['name']} ({where['device']}), mlx {where['mlx']}", fontsize=10, parse_math=False)
    return save_figure(figure, path)
