"""The loop: batches, updates, and at times a report, a validation, a checkpoint; ended by its count or by a reason."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import mlx.core as mx

from ..errors import Phi4Error
from ..inputs.processor import Processor
from .checkpoints import Checkpoints, Progress
from .data import Data
from .options import TrainingOptions
from .order import Order
from .packing import Parameters
from .parts import place
from .report import Report
from .result import has_result
from .schedule import make_schedule
from .step import Learner, Sums, Updater
from .together import Together
from .validation import Validation, validate
from .watch import Watch, guessing_loss


class Stopped(Phi4Error):
    """A run that ended before its time because going on is no use; its last checkpoint is kept."""


@dataclass
class Outcome:
    """What a run came to: the best parameters (without a validation the last ones), and how far it was."""

    parameters: Parameters
    progress: Progress
    stopped_early: bool = False


class Trainer:
    """One run.

    Args:
        learner: losses and gradients.
        parameters: what it begins with.
        report, checkpoints: where figures and states go.
        together: the processes that learn from a batch; rank 0 validates, reports and writes.
    """

    def __init__(
        self,
        learner: Learner,
        parameters: Parameters,
        data: Data,
        processor: Processor,
        options: TrainingOptions,
        report: Report,
        checkpoints: Checkpoints,
        together: Together | None = None,
    ):
        self.learner, self.data, self.processor, self.options = learner, data, processor, options
        self.report, self.checkpoints = report, checkpoints
        self.parameters, self.progress = parameters, Progress()
        self.together = together or Together()
        self.together.check_equal(parameters)
        decay = options.weight_decay if options.optimizer == "adamw" else 0.0
        rate = make_schedule(options.lr_schedule, options.learning_rate, options.updates, options.warmup_updates)
        self.updater = Updater(parameters, rate, decay, options.max_grad_norm)
        self.order = Order(len(data.train), options.batch_size, options.seed)
        guess = guessing_loss(data.train.examples) if learner.counts_tokens else 0.0
        self.watch = Watch(guess, options.updates, options.warmup_updates)

    def resume(self) -> None:
        """Go on from the last checkpoint. Raises Phi4Error."""
        progress, parameters, optimizer = self._last_state()
        if parameters.keys() != self.parameters.keys():
            raise Phi4Error(f"{self.checkpoints.folder}: its checkpoint trains other parts of the model")
        folder = self.checkpoints.folder.parent
        if self.together.of_first(progress.iteration >= self.options.iters and has_result(folder)):
            raise Phi4Error(f"{folder}: all {progress.iteration} iterations are done; there is nothing to go on with")
        # in their order from the beginning, not the file's: the gradient's norm is a sum, whose last bit knows it
        self.progress, self.parameters = progress, {name: parameters[name] for name in self.parameters}
        self.updater.restore(optimizer, progress.updates)
        self.watch.losses = list(progress.losses)
        place(self.learner.model, self.learner.cast(parameters))

    def _last_state(self) -> tuple[Progress, Parameters, Parameters]:
        """The last checkpoint, which rank 0 has."""
        together, state = self.together, None
        if together.first:
            state = self.checkpoints.resume()
        if together.ranks.size == 1:
            return state
        own = self.updater.state()
        step = together.of_first(None if state is None else [vars(state[0]), int(state[2]["step"].item())])
        parameters = together.arrays_of_first(self.parameters if state is None else state[1])
        moments = {name: array for name, array in (own if state is None else state[2]).items() if name != "step"}
        optimizer = together.arrays_of_first(moments) | {"step": mx.array(step[1], own["step"].dtype)}
        return Progress(**step[0]), parameters, optimizer

    def run(self) -> Outcome:
        """Train to the end. Raises KeyboardInterrupt after Ctrl-C, ``Stopped``; a checkpoint is there then."""
        options, units = self.options, self.data.train.units
        if not self.progress.iteration:
            self._validate()
        early, stop, sums, seconds, last_saved = False, False, Sums(), 0.0, self.progress.iteration
        reported = self.progress.iteration
        with _interruptions() as interrupted:
            for iteration in range(self.progress.iteration, options.iters):
                began = time.perf_counter()
                mine = self.together.share(self.order.batch(iteration))
                examples = [each for unit in mine for each in units[unit]]
                batch = self.learner.gradients(self.parameters, examples)
                sums = sums + batch
                done = iteration + 1
                settled = done % options.grad_accumulation_steps == 0 or done == options.iters
                seconds += time.perf_counter() - began
                if settled:
                    sums, stop = self.together.add_up(sums, interrupted())
                    self._update(sums, done)
                    self.report.add(sums.loss.item(), sums.count, seconds, done - reported)
                    sums, seconds, reported = Sums(), 0.0, done
                if mx.get_cache_memory() > options.clear_cache_threshold:
                    mx.clear_cache()
                if done % options.steps_per_report == 0 or done == options.iters:
                    self._tell(done)
                if settled and (done % options.steps_per_eval == 0 or done == options.iters):
                    early = self._validate()
                due = done - last_saved >= options.save_every or done == options.iters or early or stop
                if settled and due:
                    self._save()
                    last_saved = done
                if settled and stop and done < options.iters:
                    self.report.note(f"stopped after iteration {done}; --resume goes on from there")
                    raise KeyboardInterrupt
                if settled and options.stop_hopeless and (reason := self.watch.hopeless()):
                    self._save()
                    raise Stopped(f"stopped after iteration {done}: {reason}")
                if early:
                    break
        self.together.check_equal(self.parameters)
        best = self.checkpoints.best(self.progress) if self.together.first else None
        return Outcome(self.parameters if best is None else best, self.progress, early)

    def _update(self, sums: Sums, done: int) -> None:
        self.watch.add(sums.mean)
        parameters, norm = self.updater.update(self.parameters, sums)
        if reason := self.watch.broken(norm):
            self._save()
            raise Stopped(f"stopped in iteration {done}: {reason}")
        self.parameters = parameters
        place(self.learner.model, self.learner.cast(parameters))
        self.progress.iteration, self.progress.updates = done, self.updater.updates
        self.progress.trained_tokens += sums.count
        self.progress.losses.append(sums.mean)

    def _tell(self, done: int) -> None:
        rate = self.updater.rate(max(self.updater.updates - 1, 0))
        figures = self.report.progress(done, self.options.iters, rate, self.progress.trained_tokens)
        self.progress.history.append({name: figures[name] for name in ("iteration", "train_loss")})

    def _validate(self) -> bool:
        """Validate, keep the best, and say whether it is time to stop."""
        options, progress = self.options, self.progress
        if not self.data.valid.examples or not options.val_batches:
            return False
        found = self._validated() if self.together.first else None
        found = Validation(*self.together.of_first(None if found is None else [found.loss, found.exact, found.wer]))
        figures = {"val_loss": found.loss, "val_exact": found.exact, "val_wer": found.wer}
        progress.history.append(self.report.validated(progress.iteration, figures, str(found)))
        if progress.best is None or found.figures < progress.best["figures"]:
            if self.together.first:
                self.checkpoints.save_best(progress.iteration, self.parameters)
            progress.best, progress.worse = {"iteration": progress.iteration, **asdict(found)}, 0
            progress.best["figures"] = found.figures
        else:
            progress.worse += 1
        if options.early_stop and progress.worse >= options.early_stop:
            self.report.note(
                f"stopped early: {progress.worse} validations without a better one than that of iteration "
                f"{progress.best['iteration']} ({Validation(found.loss, found.exact, found.wer)} now)"
            )
            return True
        return False

    def _validated(self) -> Validation:
        options = self.options
        return validate(
            self.learner,
            self.processor,
            self.parameters,
            self.data.valid,
            batch_size=options.batch_size,
            batches=options.val_batches,
            task=options.val_task,
        )

    def _save(self) -> None:
        self.together.check_equal(self.parameters)
        if self.together.first:
            self.checkpoints.save(self.progress, self.parameters, self.updater.state())


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: the iteration is finished first. The second time it ends what is under way."""
    pressed = threading.Event()

    def handler(number, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
