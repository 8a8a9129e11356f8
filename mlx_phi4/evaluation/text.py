"""Tasks of lm-eval-harness, in text mode."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import kinds
from ..arguments.names import takes
from ..distributed import join
from ..errors import Phi4Error

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4


@takes(
    model=kinds.model_or_name,
    tasks=kinds.one_or_several(kinds.text, least=1),
    processor=kinds.processor | None,
    limit=kinds.integer(1) | None,
    batch_size=kinds.integer(1),
    num_fewshot=kinds.integer(0) | None,
    apply_chat_template=kinds.flag,
    max_length=kinds.integer(1) | None,
    include_path=kinds.path | None,
    adapter=kinds.text | None,
    seed=kinds.integer(0),
)
def evaluate_text(
    model: "str | Path | Phi4",
    tasks: str | Sequence[str],
    *,
    processor: "Processor | None" = None,
    limit: int | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    max_length: int | None = None,
    include_path: str | None = None,
    adapter: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Results of lm-eval-harness, as its ``simple_evaluate`` returns them; empty on other ranks than 0, which help.

    Args:
        model: a folder or a hub id, or a loaded model with its ``processor``.
        tasks: name or names of tasks, groups or tags of lm-eval, also with ``*``.
        limit: only so many examples of each task.
        batch_size: continuations or answers computed together.
        num_fewshot: examples in front of each question; None for what the task says.
        apply_chat_template: put each question into the model's chat template.
        max_length: most tokens of a context; None for the whole window.
        include_path: a folder with tasks of one's own.
        adapter: that all texts pass; None is the base alone.
        seed: of tasks that sample.

    Raises:
        Phi4Error: the extra ``lm-eval`` is not installed; an unknown task; a bad value or model.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from .lm_eval_model import Phi4LM
    except ModuleNotFoundError as error:
        raise Phi4Error(f'lm-eval-harness needs {error.name}: pip install "mlx_phi4[lm-eval]"') from None
    manager = TaskManager(include_path=include_path)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise Phi4Error(f"lm-eval has no task called {', '.join(unknown)}; lm-eval ls tasks lists them")
    lm = Phi4LM(model, processor, batch_size=batch_size, max_length=max_length, seed=seed, adapter=adapter)
    if join("data").rank:
        lm.shared.serve()
        return {}
    try:
        return lm_eval.simple_evaluate(
            lm,
            tasks=manager.match_tasks(list(tasks)),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
            apply_chat_template=apply_chat_template,
            log_samples=False,
        )
    except Phi4Error:
        raise
    except ValueError as error:  # a task that runs code, or one with pictures
        raise Phi4Error(f"lm-eval: {error}") from error
