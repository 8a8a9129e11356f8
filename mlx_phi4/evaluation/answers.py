"""Right and wrong answers to questions about pictures, spoken questions and plain ones."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import kinds
from ..arguments.names import takes
from ..distributed import join
from ..ranks.together import check_same
from ..ranks.work import Lost, share_out
from .manifest import read_questions

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4


@dataclass
class AnswerScore:
    """One question: the model's answer (None: there was none, see ``error``) and whether it is one of ``accepted``."""

    id: str
    question: str
    accepted: list[str]
    answer: str | None = None
    correct: bool = False
    error: str | None = None


@dataclass
class AnswerScores:
    """All questions: ``accuracy`` is the share of right answers among those that were given, None if none was."""

    accuracy: float | None
    correct: int
    answered: int
    failed: int
    wall_seconds: float
    items: list[AnswerScore] = field(repr=False)


@takes(
    manifest=kinds.path,
    model=kinds.model_or_name,
    processor=kinds.processor | None,
    limit=kinds.integer(1) | None,
    batch_size=kinds.integer(1),
    max_tokens=kinds.integer(1),
    system=kinds.text | None,
    adapter=kinds.text | None,
    progress=kinds.function | None,
)
def evaluate_pictures(
    manifest: str | Path,
    model: "str | Path | Phi4",
    *,
    processor: "Processor | None" = None,
    limit: int | None = None,
    batch_size: int = 4,
    max_tokens: int = 64,
    system: str | None = None,
    adapter: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AnswerScores:
    """The share of answers that are right: equal to an accepted one but for case, outer white space and a last period.

    Each question is asked as it stands in the manifest, greedily, in the mode that its media ask for; without media it
    is a text question.

    Args:
        manifest: JSON lines with ``question``, ``answer`` and optionally ``image``, ``audio`` and ``id``; see
            ``manifest``.
        model: a folder or a hub id, or a loaded model with its ``processor``.
        limit: only so many of the first lines.
        batch_size: questions answered together.
        max_tokens: of an answer.
        system: a system message in front of each question, such as "Answer with one word.".
        adapter: that all questions pass instead of their mode's own; "base" is none.
        progress: told how many questions are done, of how many.

    Raises:
        Phi4Error: a bad manifest, value or model. A picture that cannot be read does not raise: its score says so.
    """
    from ..generation.pool import answer_each
    from ..inputs.processor import Request
    from ..loading import model_and_processor
    from ..modalities import Mode, chosen_adapter

    items = read_questions(manifest, limit)
    ranks = join("data")
    check_same(ranks, model)
    model, processor = ranks.settle(lambda: model_and_processor(model, processor))
    chosen_adapter(adapter, Mode.TEXT, processor.adapters)
    if any(item.images for item in items):
        processor.config.check_sees()
    if any(item.audios for item in items):
        processor.config.check_hears()
    scores = [AnswerScore(item.id, item.question, list(item.answers)) for item in items]
    began = time.perf_counter()
    requests = [Request(item.question, list(item.images), list(item.audios), system, adapter=adapter) for item in items]

    def answer(order: Iterable[int]) -> Iterator[tuple[int, list]]:
        asked = ((index, requests[index]) for index in order)
        for index, found in answer_each(model, processor, asked, rows=batch_size, max_tokens=max_tokens):
            yield index, [None, str(found)] if isinstance(found, Exception) else [found.text, None]

    for done, (index, found) in enumerate(share_out(ranks, [1] * len(items), answer), start=1):
        _score(scores[index], *([None, str(found)] if isinstance(found, Lost) else found))
        if progress is not None:
            progress(done, len(items))
    return _totals(scores, time.perf_counter() - began)


def _score(score: AnswerScore, text: str | None, error: str | None) -> None:
    """Judge a text, or say why there is none."""
    if error is not None:
        score.error = error
    else:
        score.answer = text.strip()
        score.correct = any(same_answer(score.answer, accepted) for accepted in score.accepted)


def _totals(scores: list[AnswerScore], wall: float) -> AnswerScores:
    correct, answered = sum(score.correct for score in scores), sum(score.error is None for score in scores)
    return AnswerScores(
        accuracy=correct / answered if answered else None,
        correct=correct,
        answered=answered,
        failed=len(scores) - answered,
        wall_seconds=round(wall, 3),
        items=scores,
    )


def same_answer(answer: str, accepted: str) -> bool:
    """Whether two answers are equal but for case, outer white space and a last period."""
    return _plain(answer) == _plain(accepted)


def _plain(answer: str) -> str:
    return answer.strip().casefold().removesuffix(".").rstrip()
