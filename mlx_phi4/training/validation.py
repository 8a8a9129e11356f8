"""How good what is trained is: by the loss of examples, and by whether questions are answered right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..decoder.adapter_set import BASE
from ..errors import Phi4Error
from ..evaluation.answers import same_answer
from ..evaluation.word_errors import Normalizer, error_rates
from ..generation.media_cache import MediaCache
from ..generation.pool import answer_each
from ..inputs.processor import Processor
from .data import DataSet
from .examples import Example
from .packing import Parameters
from .parts import place
from .step import Learner, Sums

ASKED = 32  # examples whose questions are asked in a validation
LONGEST_ANSWER = 64  # tokens of an answer that can be asked for word by word


@dataclass(frozen=True)
class Validation:
    """Of a set of examples: loss of a token, share of right answers, word error rate; None where it was not asked."""

    loss: float
    exact: float | None = None
    wer: float | None = None

    @property
    def figures(self) -> list[float]:
        """Smaller is better, the first one that differs counts: errors of the task, then the loss."""
        errors = [] if self.exact is None else [1 - self.exact]
        errors += [] if self.wer is None else [self.wer]
        return [round(sum(errors) / len(errors), 9) if errors else 0.0, self.loss]

    def __str__(self):
        told = [f"loss {self.loss:.4g}"]
        told += [] if self.exact is None else [f"right answers {100 * self.exact:.1f} %"]
        told += [] if self.wer is None else [f"word errors {100 * self.wer:.1f} %"]
        return ", ".join(told)


def validate(
    learner: Learner,
    processor: Processor,
    parameters: Parameters,
    data: DataSet,
    *,
    batch_size: int,
    batches: int = -1,
    task: bool = True,
    everything: bool = False,
) -> Validation:
    """Losses of the set's first batches, and answers to its first questions; ``everything`` asks all of them."""
    sums, units = Sums(), data.units[: batches * batch_size] if batches >= 0 else data.units
    for start in range(0, len(units), batch_size):
        some = units[start : start + batch_size]
        sums = sums + learner.losses(parameters, [each for unit in some for each in unit])
    place(learner.model, learner.cast(parameters))
    asked = [each for each in data.examples if each.pair is None and _askable(each)] if task else []
    asked = asked if everything else asked[:ASKED]
    return Validation(sums.mean, *_answered(learner, processor, asked))


def _askable(example: Example) -> bool:
    last = example.positions[-1]
    answer = (example.positions > last - LONGEST_ANSWER).sum()
    return example.line.ask is not None and answer < LONGEST_ANSWER and len(example.line.answers) > 0


def _answered(learner: Learner, processor: Processor, asked: Sequence[Example]) -> tuple[float | None, float | None]:
    """Share of right answers, and word error rate of transcripts."""
    if not asked:
        return None, None
    requests = [(number, replace(each.line.ask, adapter=each.row.adapter or BASE)) for number, each in enumerate(asked)]
    answers = dict(
        answer_each(learner.model, processor, requests, rows=8, max_tokens=2 * LONGEST_ANSWER, media_cache=MediaCache())
    )
    right, heard = [], []
    for number, each in enumerate(asked):
        answer = answers[number]
        if isinstance(answer, Exception):
            raise Phi4Error(f"{each.line.where}: {answer}")
        if each.line.task == "transcript":
            heard.append((each, answer.text))
        else:
            right.append(any(same_answer(answer.text, wanted) for wanted in each.line.answers))
    return (sum(right) / len(right) if right else None), _word_errors(heard)


def _word_errors(heard: list[tuple[Example, str]]) -> float | None:
    if not heard:
        return None
    normalize = Normalizer()
    texts = [
        (normalize(each.line.answers[0], each.line.language), normalize(text, each.line.language))
        for each, text in heard
    ]
    texts = [(said, text) for said, text in texts if said]
    return error_rates([said for said, _ in texts], [text for _, text in texts]).wer if texts else None
