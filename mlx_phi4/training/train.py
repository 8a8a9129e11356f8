"""From a data set to an adapter's folder; what that would take; and how good an adapter is."""

import os
from pathlib import Path

from ..arguments import kinds
from ..arguments.names import takes
from ..checkpoint.dense import make_dense, wants_dense
from ..decoder.adapters import Adapter
from ..distributed import join
from ..errors import Phi4Error
from ..files import expanded
from ..inputs.processor import Processor
from ..loading import load
from ..model import Phi4
from ..ranks.star import Ranks
from ..ranks.together import check_same
from .data import load_data
from .dry_run import Forecast, forecast
from .features import Media
from .options import TrainingOptions
from .parts import TRAINED, Parts
from .result import find_adapters
from .run import TrainingResult, TrainingRun, check_folder, feature_folder
from .slots import Chosen, routed
from .step import Learner
from .together import Together
from .validation import Validation, validate


@takes(model=kinds.model_or_name, data=kinds.path, processor=kinds.processor | None, revision=kinds.text | None)
def train_adapter(
    model: str | Path | Phi4,
    data: str | Path,
    *,
    processor: Processor | None = None,
    revision: str | None = None,
    **options,
) -> TrainingResult:
    """Train adapters, projectors or encoders over a base that stays as it is, and write them to ``adapter_path``.

    Under ``mlx.launch`` each process learns from its part of every batch, and rank 0 writes.

    Args:
        model: a folder or a hub id as ``load`` has it; or a loaded model with its ``processor``, which belongs to the
            run from then on.
        data: a folder with train.jsonl and perhaps valid.jsonl, one such file, or a data set of the hub; what a line
            may hold is told in ``lines.LINE_FORMS``.
        options: see ``options.TrainingOptions``.

    Raises:
        Phi4Error: what does not fit, with file and line; in one line.
        KeyboardInterrupt: after Ctrl-C; ``resume=True`` goes on.
    """
    return _run(model, data, processor, revision, TrainingOptions(**options), join("data")).train()


@takes(model=kinds.model_or_name, data=kinds.path, processor=kinds.processor | None, revision=kinds.text | None)
def predict_training(
    model: str | Path | Phi4,
    data: str | Path,
    *,
    processor: Processor | None = None,
    revision: str | None = None,
    **options,
) -> Forecast:
    """What such a run would take: memory and time, from a few small steps; nothing is written. As ``train_adapter``."""
    run = _run(model, data, processor, revision, TrainingOptions(**options))
    return forecast(run.learner, run.parts.parameters(run.model), run.data, run.options)


@takes(model=kinds.model_or_name, data=kinds.path, processor=kinds.processor | None, revision=kinds.text | None)
def test_adapter(
    model: str | Path | Phi4,
    data: str | Path,
    *,
    processor: Processor | None = None,
    revision: str | None = None,
    base: bool = False,
    **options,
) -> Validation:
    """Loss of test.jsonl, and its questions answered, with the adapters in ``adapter_path``; ``base``: without them.

    Raises:
        Phi4Error: as ``train_adapter``.
    """
    chosen = TrainingOptions(**options)
    found, processor = _loaded(model, processor, revision, chosen)
    test = load_data(data, processor, wanted=("test",), longest=chosen.max_seq_length).test
    slots = list(dict.fromkeys(each.slot for each in test.examples))
    adapters = {} if base else find_adapters(expanded(chosen.adapter_path), slots)
    for slot, folder in adapters.items():
        found.add_adapter(f"{TRAINED}{slot}", folder)
    if wants_dense():
        make_dense(found)
    test.examples = routed(test.examples, found, Chosen(dict.fromkeys(adapters, Adapter({})), ()))
    learner = Learner(found, Media(found, processor, (), feature_folder(chosen)), Parts())
    return validate(
        learner, processor, {}, test, batch_size=chosen.batch_size, batches=chosen.test_batches, everything=True
    )


def _run(model, data, processor, revision, options: TrainingOptions, ranks: Ranks | None = None) -> TrainingRun:
    ranks = ranks or Ranks()
    if ranks.rank == 0:
        check_folder(expanded(options.adapter_path), options.resume, options.overwrite)
    check_same(ranks, model, revision)
    loaded = ranks.settle(lambda: _loaded(model, processor, revision, options))
    return TrainingRun(*loaded, data, options, Together(ranks))


def _loaded(model, processor, revision, options: TrainingOptions) -> tuple[Phi4, Processor]:
    """A model that belongs to the run: one by name is loaded afresh."""
    if isinstance(model, (str, os.PathLike)):
        if processor is not None:
            raise Phi4Error(f"a processor goes with a loaded model, not with {str(model)!r}")
        return load(model, revision=revision, quiet=options.quiet)
    if processor is None or revision is not None:
        raise Phi4Error("a loaded model needs its processor, and no revision")
    return model, processor
