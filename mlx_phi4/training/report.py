"""What a run tells: lines for a person, a line of JSON for each in log.jsonl, trackers, and a picture of the losses."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import mlx.core as mx

from ..errors import Phi4Error
from ..files import write_whole
from ..terminal import say

LOG, PLOT = "log.jsonl", "losses.png"


class Report:
    """Where figures go.

    Args:
        folder: the run's; it is there.
        quiet: nothing on standard error.
        trackers: tensorboard, trackio, wandb.
        project: their name for the project, None is the folder's name.
        options: what they show beside the figures.

    Raises:
        Phi4Error: a tracker that is not installed.
    """

    def __init__(self, folder: Path, quiet: bool, trackers: Sequence[str], project: str | None, options: dict):
        self.folder, self.quiet = folder, quiet
        self._trackers = [_tracker(name, folder, project or folder.resolve().name, options) for name in trackers]
        self._seconds, self._iterations, self._count, self._loss = 0.0, 0, 0, 0.0

    def note(self, text: str) -> None:
        """A line for the person."""
        if not self.quiet:
            say(text)

    def add(self, loss: float, count: int, seconds: float, iterations: int = 1) -> None:
        """Iterations: loss and number of the tokens that were learnt, and how long they took."""
        self._loss, self._count, self._seconds = self._loss + loss, self._count + count, self._seconds + seconds
        self._iterations += iterations

    def progress(self, iteration: int, iters: int, rate: float, trained: int) -> dict:
        """The figures since the last call, told."""
        seconds = max(self._seconds, 1e-9)
        found = {
            "iteration": iteration,
            "train_loss": self._loss / max(self._count, 1),
            "learning_rate": rate,
            "iterations_per_second": self._iterations / seconds,
            "tokens_per_second": self._count / seconds,
            "trained_tokens": trained,
            "peak_memory_gb": mx.get_peak_memory() / 1e9,
        }
        self._seconds, self._iterations, self._count, self._loss = 0.0, 0, 0, 0.0
        left = (iters - iteration) / max(found["iterations_per_second"], 1e-9)
        self.note(
            f"iteration {iteration} of {iters}: loss {found['train_loss']:.4g}, rate {rate:.2e}, "
            f"{found['tokens_per_second']:.0f} tokens a second, {trained} in all, "
            f"peak memory {found['peak_memory_gb']:.2f} GB, {_duration(left)} left"
        )
        self._write(found)
        return found

    def validated(self, iteration: int, figures: dict, text: str) -> dict:
        """The figures of a validation, told."""
        found = {"iteration": iteration} | {name: value for name, value in figures.items() if value is not None}
        self.note(f"iteration {iteration}: validation {text}")
        self._write(found)
        return found

    def _write(self, figures: dict) -> None:
        # a full disk ends a run where a checkpoint is written
        with suppress(OSError), (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        for tracker in self._trackers:
            tracker.log(figures)

    def close(self) -> None:
        """End the trackers' runs."""
        for tracker in self._trackers:
            tracker.close()


class Unheard(Report):
    """The report of a rank beside rank 0: it is made, and goes nowhere."""

    def __init__(self, folder: Path):
        super().__init__(folder, True, (), None, {})

    def _write(self, figures: dict) -> None:
        pass


def plot(folder: Path, history: Sequence[dict], wanted: bool | None) -> str | None:
    """Draw the losses; why there is no picture, or None.

    Raises Phi4Error where one was ``wanted`` and matplotlib is missing.
    """
    if wanted is False:
        return None
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        if wanted:
            raise Phi4Error('a plot needs matplotlib: pip install "mlx_phi4[train]"') from None
        return f'no {PLOT}: it needs matplotlib, pip install "mlx_phi4[train]"'
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        points = [(each["iteration"], each[name]) for each in history if name in each]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
    axes.set(xlabel="iteration", ylabel="loss of a token")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        with write_whole(folder / PLOT) as partial:
            figure.savefig(partial, format="png", dpi=120)
    except OSError as error:
        return f"no {PLOT}: {error.strerror or error}"
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _TensorBoard:
    def __init__(self, folder: Path, project: str, options: dict):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            from tensorboardX import SummaryWriter
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, figures: dict) -> None:
        for name, value in figures.items():
            if name != "iteration":
                self._writer.add_scalar(name, value, figures["iteration"])

    def close(self) -> None:
        self._writer.close()


class _Tracked:
    """trackio and wandb, which are used alike."""

    def __init__(self, library, folder: Path, project: str, options: dict):
        self._library = library
        library.init(project=project, config=options)

    def log(self, figures: dict) -> None:
        self._library.log({k: v for k, v in figures.items() if k != "iteration"}, step=figures["iteration"])

    def close(self) -> None:
        self._library.finish()


def _tracker(name: str, folder: Path, project: str, options: dict):
    try:
        if name == "tensorboard":
            return _TensorBoard(folder, project, options)
        if name == "trackio":
            import trackio as library
        else:
            import wandb as library
    except ModuleNotFoundError as error:
        package = "tensorboardX" if name == "tensorboard" else name
        raise Phi4Error(f"report_to {name} needs {error.name}: pip install {package}") from None
    return _Tracked(library, folder, project, options)
