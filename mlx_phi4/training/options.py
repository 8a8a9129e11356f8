"""All that can be asked of a training run, typed once."""

from dataclasses import dataclass, fields
from pathlib import Path

from ..arguments import kinds
from ..arguments.names import checked_fields
from ..errors import Phi4Error
from .parts import FINE_TUNE_TYPES, LoraOptions
from .schedule import SCHEDULES

TRACKERS = ("tensorboard", "trackio", "wandb")
OPTIMIZERS = ("adamw", "adam")
# what may differ between a run and the one that goes on with it: it changes no number of the training
FREE = frozenset({
    "adapter_path", "resume", "overwrite", "report_to", "project_name", "plot", "quiet", "steps_per_report",
    "save_every", "keep_checkpoints", "grad_checkpoint", "cache_features", "clear_cache_threshold", "iters",
})  # fmt: skip


def _schedule(value):
    if isinstance(value, dict):
        return value
    return kinds.choice(*SCHEDULES).read(value)


@checked_fields(
    adapter_path=kinds.path,
    tune=kinds.one_or_several(kinds.text),
    fine_tune_type=kinds.choice(*FINE_TUNE_TYPES),
    rank=kinds.integer(1, 4096),
    alpha=kinds.real(above=0) | None,
    scale=kinds.real(above=0) | None,
    rslora=kinds.flag,
    keys=kinds.one_or_several(kinds.text) | None,
    num_layers=kinds.integer(-1),
    batch_size=kinds.integer(1),
    iters=kinds.integer(1),
    learning_rate=kinds.real(above=0),
    lr_schedule=kinds.Kind(_schedule),
    warmup=kinds.integer(0) | None,
    optimizer=kinds.choice(*OPTIMIZERS),
    weight_decay=kinds.real(0),
    max_grad_norm=kinds.real(0),
    grad_accumulation_steps=kinds.integer(1),
    grad_checkpoint=kinds.flag,
    max_seq_length=kinds.integer(2),
    long_answers=kinds.choice("skip", "refuse"),
    mask_prompt=kinds.flag,
    held_out=kinds.real(0, 0.5),
    val_batches=kinds.integer(-1),
    steps_per_eval=kinds.integer(1),
    val_task=kinds.flag,
    early_stop=kinds.integer(0),
    test_batches=kinds.integer(-1),
    beta=kinds.real(above=0),
    stop_hopeless=kinds.flag,
    seed=kinds.integer(0),
    save_every=kinds.integer(1),
    keep_checkpoints=kinds.integer(1),
    resume=kinds.flag,
    overwrite=kinds.flag,
    resume_adapter_file=kinds.path | None,
    steps_per_report=kinds.integer(1),
    report_to=kinds.one_or_several(kinds.choice(*TRACKERS)),
    project_name=kinds.text | None,
    plot=kinds.flag | None,
    cache_features=kinds.flag,
    clear_cache_threshold=kinds.integer(0),
    quiet=kinds.flag,
)
@dataclass(frozen=True)
class TrainingOptions:
    """Options of a run; names are mlx_lm.lora's wherever the meaning is the same.

    Args:
        adapter_path: the folder that the adapter is written to, with the run's checkpoints.
        tune: what is trained, see ``parts``: adapters' names, with ``=new`` to begin afresh, and encoders and
            projectors by name; empty is what the data asks for.
        fine_tune_type, rank, alpha, scale, rslora, keys, num_layers: of new adapters, see ``parts.LoraOptions``.
        batch_size: examples of an iteration.
        iters: iterations.
        learning_rate: the highest one.
        lr_schedule: constant, cosine or linear (both to zero), or a table as mlx_lm.lora's configurations have it.
        warmup: updates in which the rate rises from zero; None is a twentieth of all, at most 100.
        optimizer: adamw, or adam: the same without weight decay.
        max_grad_norm: of the mean loss's gradient; 0 for no limit.
        grad_accumulation_steps: iterations of an update.
        grad_checkpoint: less memory, a third more time.
        max_seq_length: tokens of an example.
        long_answers: what becomes of an example whose answer does not fit.
        mask_prompt: learn the assistant's turns only; False learns prompts, too.
        held_out: the share of train.jsonl that validates where there is no valid.jsonl.
        val_batches, test_batches: batches of a validation, of a test; -1 for all. No validation for 0.
        steps_per_eval: iterations between validations.
        val_task: validate by right answers and word errors, too.
        early_stop: end after so many validations without a better one; 0 for never.
        beta: of preferences: how dear it is to leave the reference.
        stop_hopeless: end where nothing is learnt.
        save_every: iterations between checkpoints, of which the last ``keep_checkpoints`` are kept.
        resume: go on with the run in ``adapter_path``.
        overwrite: replace the adapter there.
        resume_adapter_file: a folder with an adapter to begin with.
        report_to: tensorboard, trackio, wandb.
        plot: the losses as losses.png; None where matplotlib is installed.
        cache_features: keep what frozen encoders compute in the user's cache folder.
        clear_cache_threshold: bytes of freed buffers to keep between iterations.
        quiet: no progress.
    """

    adapter_path: str | Path = "adapters"
    tune: tuple[str, ...] = ()
    fine_tune_type: str = "lora"
    rank: int = LoraOptions.rank
    alpha: float | None = None
    scale: float | None = None
    rslora: bool = False
    keys: tuple[str, ...] | None = None
    num_layers: int = -1
    batch_size: int = 4
    iters: int = 1000
    learning_rate: float = 1e-5
    lr_schedule: str | dict = "cosine"
    warmup: int | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    grad_accumulation_steps: int = 1
    grad_checkpoint: bool = False
    max_seq_length: int = 2048
    long_answers: str = "skip"
    mask_prompt: bool = True
    held_out: float = 0.05
    val_batches: int = 25
    steps_per_eval: int = 200
    val_task: bool = True
    early_stop: int = 0
    test_batches: int = -1
    beta: float = 0.1
    stop_hopeless: bool = True
    seed: int = 0
    save_every: int = 100
    keep_checkpoints: int = 2
    resume: bool = False
    overwrite: bool = False
    resume_adapter_file: str | Path | None = None
    steps_per_report: int = 10
    report_to: tuple[str, ...] = ()
    project_name: str | None = None
    plot: bool | None = None
    cache_features: bool = True
    clear_cache_threshold: int = 0
    quiet: bool = False

    def __post_init__(self):
        if self.resume and self.overwrite:
            raise Phi4Error("resume and overwrite contradict each other")
        if self.resume and self.resume_adapter_file is not None:
            raise Phi4Error("resume goes on with a run of its own; resume_adapter_file begins one with another adapter")
        if self.grad_accumulation_steps > self.iters:
            raise Phi4Error(
                f"grad_accumulation_steps is {self.grad_accumulation_steps}, more than the {self.iters} iters"
            )
        self.lora  # noqa: B018 - refuses what contradicts

    @property
    def lora(self) -> LoraOptions:
        """Of new adapters."""
        return LoraOptions(
            self.fine_tune_type, self.rank, self.scale, self.alpha, self.rslora, self.num_layers, self.keys
        )

    @property
    def updates(self) -> int:
        """How often the parameters change."""
        return -(-self.iters // self.grad_accumulation_steps)

    @property
    def warmup_updates(self) -> int:
        """Of which the first so many have a rising rate."""
        return min(self.updates // 20, 100) if self.warmup is None else self.warmup

    def fixed(self) -> dict:
        """What a run that goes on must have alike, as JSON has it."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in FREE}
        own |= {"resume_adapter_file": self.resume_adapter_file and str(self.resume_adapter_file)}
        if self.lr_schedule != "constant" or self.warmup is None:
            own["iters"] = self.iters  # the rate follows from it
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
