"""Many requests, a few rows: each is admitted when its caller has room, and answered when it ends."""

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import Phi4Error
from ..inputs.processor import Processor, Request
from ..model import Phi4
from .batch import Batch
from .options import make_options
from .responses import Answer, GenerationResponse
from .sequence import Sequence


class AnswerPool:
    """Requests that are being answered in one batch, known by the keys that the caller gave them.

    A context manager: what has not ended when it closes is dropped.
    """

    def __init__(self, model: Phi4, processor: Processor):
        self._processor, self._batch = processor, Batch(model)
        self._asked: dict[Sequence, tuple[Any, Answer]] = {}

    def __enter__(self) -> "AnswerPool":
        return self

    def __exit__(self, *exception) -> None:
        self._batch.close()

    def __len__(self) -> int:
        """Requests without an answer yet."""
        return len(self._asked)

    @property
    def steps(self) -> int:
        """Steps of the decoder so far."""
        return self._batch.steps

    def ask(self, key: Any, request: Request, **options) -> None:
        """Admit a request. Options as in ``stream_generate``. Raises Phi4Error; the others go on."""
        chosen = make_options(options, request.options)
        sequence = Sequence(self._processor.row(request), chosen, self._processor.tokenizer)
        self._batch.admit(sequence)
        self._asked[sequence] = key, Answer()

    def step(self) -> list[tuple[Any, GenerationResponse]]:
        """One step for all; the answers that ended with it. One that failed alone says so in ``error``."""
        ended = []
        for token in self._batch.step():
            key, answer = self._asked[token.sequence]
            response = answer.add(token)
            if response is not None:
                ended.append((key, response))
                del self._asked[token.sequence]
        return ended


def answer_each(
    model: Phi4, processor: Processor, requests: Iterable[tuple[Any, Request]], *, rows: int, **options
) -> Iterator[tuple[Any, GenerationResponse | Exception]]:
    """Answer pairs (key, request), ``rows`` of them at a time -> (key, answer) as they end.

    A request that cannot be answered gives what is wrong with it in its answer's place; the others go on.
    """
    waiting, more = iter(requests), True
    with AnswerPool(model, processor) as pool:
        while more or len(pool):
            while more and len(pool) < rows:
                pair = next(waiting, None)
                more = pair is not None
                if more:
                    try:
                        pool.ask(*pair, **options)
                    except Phi4Error as error:
                        yield pair[0], error
            for key, answer in pool.step() if len(pool) else ():
                yield key, answer if answer.error is None else answer.error
