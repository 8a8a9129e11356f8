"""A run on disk, so that it can go on: what is trained, the optimizer, how far it came; written whole or not at all.

``DIR/checkpoints/0000100`` is the state after 100 iterations, ``best-0000100`` the best that was validated.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError, Phi4Error
from ..files import read_json, write_whole_folder
from .packing import Parameters

CHECKPOINTS, STATE = "checkpoints", "state.json"
PARAMETERS, OPTIMIZER = "parameters.safetensors", "optimizer.safetensors"
BEST = "best-"
STATE_FORMAT = 1


@dataclass
class Progress:
    """How far a run came.

    Args:
        iteration: how many are done.
        updates: of the parameters.
        trained_tokens: whose loss was learnt from.
        losses: of the updates so far.
        history: what was reported: training and validation losses, by iteration.
        best: of the best validation its iteration and its figures, which are compared in order.
        worse: validations since.
    """

    iteration: int = 0
    updates: int = 0
    trained_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    best: dict | None = None
    worse: int = 0


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: the run's.
        fixed: what a run that goes on must have alike.
        keep: how many of the last ones.
    """

    def __init__(self, folder: Path, fixed: dict, keep: int):
        self.folder, self.fixed, self.keep = folder / CHECKPOINTS, fixed, keep

    def save(self, progress: Progress, parameters: Parameters, optimizer: Parameters) -> None:
        """Write the state, and remove what is older than the last few. Raises CheckpointError."""
        place = self.folder / f"{progress.iteration:07d}"
        if place.exists():  # the same state, from before a resumption
            return
        try:
            with write_whole_folder(place) as partial:
                _write_arrays(partial / PARAMETERS, parameters)
                _write_arrays(partial / OPTIMIZER, optimizer)
                state = {"format": STATE_FORMAT, "options": self.fixed, **vars(progress)}
                (partial / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        except OSError as error:
            last = max(self._found(), default=None)
            kept = f"; the last whole checkpoint is that of iteration {int(last.name)}" if last else ""
            raise CheckpointError(f"{place}: cannot be written: {error.strerror or error}{kept}") from None
        for old in sorted(self._found())[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def save_best(self, iteration: int, parameters: Parameters) -> None:
        """Keep the best parameters, instead of those that were it before. Raises CheckpointError."""
        place = self.folder / f"{BEST}{iteration:07d}"
        try:
            if not place.exists():
                with write_whole_folder(place) as partial:
                    _write_arrays(partial / PARAMETERS, parameters)
        except OSError as error:
            raise CheckpointError(f"{place}: cannot be written: {error.strerror or error}") from None
        for old in self.folder.glob(f"{BEST}*"):
            if old != place:
                shutil.rmtree(old, ignore_errors=True)

    def best(self, progress: Progress) -> Parameters | None:
        """The best parameters, if any were validated."""
        if progress.best is None:
            return None
        return _read_arrays(self.folder / f"{BEST}{progress.best['iteration']:07d}" / PARAMETERS)

    def resume(self) -> tuple[Progress, Parameters, Parameters]:
        """The last state: progress, parameters, optimizer. Raises Phi4Error if there is none, or of other options."""
        last = max(self._found(), default=None)
        if last is None:
            raise Phi4Error(f"{self.folder.parent}: holds no checkpoint to go on from; leave out --resume")
        state = read_json(last / STATE, most=1 << 30)
        if state.pop("format", None) != STATE_FORMAT:
            raise CheckpointError(f"{last}: is not a checkpoint of this version")
        before = state.pop("options", {})
        differing = [name for name in sorted({*before, *self.fixed}) if before.get(name) != self.fixed.get(name)]
        if differing:
            told = "; ".join(f"{name} was {before.get(name)!r}, now {self.fixed.get(name)!r}" for name in differing)
            raise Phi4Error(f"{self.folder.parent}: was begun with other options: {told}")
        try:
            progress = Progress(**state)
        except TypeError as error:
            raise CheckpointError(f"{last / STATE}: is damaged: {error}") from None
        return progress, _read_arrays(last / PARAMETERS), _read_arrays(last / OPTIMIZER)

    def _found(self) -> list[Path]:
        return [path for path in self.folder.glob("[0-9]*") if path.name.isdigit() and (path / STATE).exists()]


def _write_arrays(path: Path, arrays: Parameters) -> None:
    """Raises OSError: of a full disk MLX says nothing where it is given a name."""
    with path.open("wb") as file:
        try:
            mx.save_safetensors(file, {name: mx.contiguous(array) for name, array in arrays.items()})
        except RuntimeError as error:
            raise OSError(str(error)) from None


def _read_arrays(path: Path) -> Parameters:
    try:
        arrays = mx.load(str(path))
        mx.eval(arrays)
        return arrays
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
