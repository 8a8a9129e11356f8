"""All that a run is made of, up to its first step, and what becomes of its result."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoint.dense import make_dense, wants_dense
from ..converter.first_use import cache_root
from ..decoder.identity import identify
from ..errors import Phi4Error
from ..files import expanded
from ..inputs.processor import Processor
from ..modalities import MODALITIES
from ..model import Phi4
from .checkpoints import CHECKPOINTS, Checkpoints
from .data import PREFERENCES, load_data
from .digest import mode_digests
from .features import Media
from .options import TrainingOptions
from .parts import kind_of, make_parts, place
from .preferences import PreferenceLearner
from .report import LOG, Report, Unheard, plot
from .result import write_result
from .slots import choose, routed
from .step import Learner
from .together import Together
from .trainer import Outcome, Trainer
from .validation import Validation


@dataclass
class TrainingResult:
    """What a run came to.

    Args:
        folders: what was trained -> the folder that it is in: adapters by their slots, modules by the medium's kind.
        iterations: how many were done.
        train_loss: of the last update.
        best: the best validation's figures with its iteration, or None.
        digests: mode -> digest of its logits, the same before and after.
        history: losses by iteration.
    """

    folders: dict[str, Path]
    iterations: int
    train_loss: float
    best: dict | None
    digests: dict[str, str]
    history: list[dict] = field(repr=False)


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raises Phi4Error if a run's results must not be put there."""
    if folder.exists() and not folder.is_dir():
        raise Phi4Error(f"{folder}: is a file, expected a folder for the adapter")
    if resume and not (folder / CHECKPOINTS).is_dir():
        raise Phi4Error(f"{folder}: holds no checkpoint to go on from; leave out --resume")
    if resume or not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise Phi4Error(f"{folder}: is taken; --resume goes on with a run, --overwrite replaces it")
    if not any((folder / name).exists() for name in (CHECKPOINTS, LOG, "adapter_config.json")):
        raise Phi4Error(f"{folder}: was not written by this command; it is not overwritten")


def feature_folder(options: TrainingOptions) -> Path | None:
    """Where what frozen encoders compute is kept."""
    return cache_root() / "features" if options.cache_features else None


class TrainingRun:
    """A model with what is to be trained in it, and the data; nothing is written before ``train``.

    Args:
        model, processor: as they were loaded; the run changes them.
        data: see ``data.load_data``.
        together: the processes of this run; None is this one alone.

    Raises:
        Phi4Error: what does not fit, with file and line.
    """

    def __init__(
        self,
        model: Phi4,
        processor: Processor,
        data: str | Path,
        options: TrainingOptions,
        together: Together | None = None,
    ):
        self.model, self.processor, self.options = model, processor, options
        self.together = together or Together()
        self.folder = expanded(options.adapter_path)
        self.data = load_data(
            data,
            processor,
            longest=options.max_seq_length,
            refuse_long=options.long_answers == "refuse",
            held_out=options.held_out,
            mask_prompt=options.mask_prompt,
            seed=options.seed,
        )
        self.base = identify(model)
        sets = [self.data.train, self.data.valid]
        chosen = choose(model, sets, options.tune, options.resume_adapter_file, self.base)
        if options.resume_adapter_file is not None:
            for begun in chosen.slots.values():
                options.lora.check_begun(begun)
        if wants_dense():
            make_dense(model)
        self.before = mode_digests(model, processor)
        self.parts = make_parts(model, chosen.slots, chosen.modules, options.lora, options.seed)
        for each in sets:
            each.examples = routed(each.examples, model, chosen)
        media = Media(model, processor, self.parts.modules, feature_folder(options))
        kind = PreferenceLearner if self.data.objective == PREFERENCES else Learner
        self.learner = kind(model, media, self.parts, checkpoint=options.grad_checkpoint)
        if isinstance(self.learner, PreferenceLearner):
            self.learner.beta = options.beta

    def train(self) -> TrainingResult:
        """Train and write. Raises Phi4Error, and KeyboardInterrupt after Ctrl-C."""
        options, folder = self.options, self.folder
        fixed = options.fixed() | {"data": self.data.train.digest, "base": self.base.weights}
        self.together.check_same("options, data or base", fixed)
        checkpoints = Checkpoints(folder, fixed, options.keep_checkpoints)
        report: Report = Unheard(folder)
        if self.together.first:
            self._make_folder()
            report = Report(folder, options.quiet, options.report_to, options.project_name, fixed)
        parameters = self.parts.parameters(self.model)
        trainer = Trainer(
            self.learner, parameters, self.data, self.processor, options, report, checkpoints, self.together
        )
        if options.resume:
            trainer.resume()
        self._introduce(report, sum(array.size for array in parameters.values()), trainer.progress.iteration)
        try:
            outcome = trainer.run()
        finally:
            report.close()
        return self._finish(outcome, report) if self.together.first else self._helped(outcome)

    def _make_folder(self) -> None:
        options, folder = self.options, self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if options.overwrite:
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
                (folder / LOG).unlink(missing_ok=True)
        except OSError as error:
            raise Phi4Error(f"{folder}: {error.strerror or error}") from None

    def _helped(self, outcome: Outcome) -> TrainingResult:
        """What a rank knows that did not write: no folders."""
        place(self.model, self.learner.cast(outcome.parameters))
        progress = outcome.progress
        figures = progress.iteration, progress.losses[-1], progress.best
        return TrainingResult({}, *figures, self.before, progress.history)

    def _introduce(self, report: Report, count: int, done: int) -> None:
        for note in self.data.notes:
            report.note(note)
        parts = ", ".join([*self.parts.adapters, *self.parts.modules])
        valid = f", {len(self.data.valid)} to validate" if self.data.valid.examples else ""
        report.note(f"training {parts}: {count / 1e6:.2f} M numbers, {len(self.data.train)} examples{valid}")
        if done:
            report.note(f"going on after iteration {done}")

    def _finish(self, outcome: Outcome, report: Report) -> TrainingResult:
        progress = outcome.progress
        place(self.model, self.learner.cast(outcome.parameters))
        after = mode_digests(self.model, self.processor)
        kept = [mode for mode in after if after[mode] == self.before[mode]]
        trained = {MODALITIES[kind_of(self.model, name)].label for name in self.parts.modules}
        changed = [mode for mode in after if mode not in kept and trained.isdisjoint(mode.split("-"))]
        if changed:
            raise Phi4Error(f"the logits of {', '.join(changed)} changed, whose weights are frozen")
        about = {
            "iterations": progress.iteration,
            "trained_tokens": progress.trained_tokens,
            "examples": len(self.data.train),
            "train_loss": progress.losses[-1],
            "best": progress.best,
            "options": self.options.fixed(),
            "modes": after,
        }
        folders = write_result(self.folder, self.model, self.parts, outcome.parameters, self.base, about)
        if told := plot(self.folder, progress.history, self.options.plot):
            report.note(told)
        if progress.best is not None:
            best = Validation(*(progress.best[name] for name in ("loss", "exact", "wer")))
            report.note(f"kept: iteration {progress.best['iteration']}, validation {best}")
        told = ", ".join(f"{mode} {after[mode]}" for mode in kept)
        report.note(f"logits before and after, to the bit: {told}")
        for name, where in folders.items():
            report.note(f"{name}: {where}")
        return TrainingResult(folders, progress.iteration, progress.losses[-1], progress.best, after, progress.history)
