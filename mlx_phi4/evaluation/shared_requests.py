"""What a harness asks of a model, shared out to the processes of a run: rank 0 asks, all compute."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import Phi4Error
from ..generation.pool import answer_each
from ..inputs.processor import Request
from ..ranks.star import Ranks
from ..ranks.work import Lost, share_out
from .scoring import score_continuations

if TYPE_CHECKING:
    from ..inputs.processor import Processor
    from ..model import Phi4

Pair = tuple[Sequence[int], Sequence[int]]  # ids of a context, and of what follows it
BATCHES = 4  # batches of continuations that a rank takes at once


class SharedRequests:
    """Continuations to score and prompts to answer, by all processes of a run.

    Args:
        batch_size: continuations or answers computed together by each.
        adapter: that all pass, None for none.
    """

    def __init__(
        self, ranks: Ranks, model: "Phi4", processor: "Processor", batch_size: int, adapter: str | None = None
    ):
        self._ranks, self._model, self._processor, self._batch_size = ranks, model, processor, batch_size
        self._adapter = adapter

    def score(self, pairs: Sequence[Pair], progress: Callable[[int], None]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the likeliest; see ``score_continuations``."""
        self._tell({"do": "score", "pairs": [[list(context), list(rest)] for context, rest in pairs]})
        found: dict[int, list] = {}
        for index, scores in self._scored(pairs):
            found[index] = scores
            progress(len(scores))
        return [(logprob, greedy) for index in sorted(found) for logprob, greedy in found[index]]

    def answer(self, requests: Sequence[dict]) -> Iterator[tuple[int, str]]:
        """Pairs (index, text) of raw prompts: {"prompt": ..., "options": {...}}. Raises what failed."""
        self._tell({"do": "answer", "requests": list(requests)})
        yield from self._answered(requests)

    def serve(self) -> None:
        """The part of the other ranks: compute what rank 0 asks for, until it leaves."""
        while True:
            message, _ = self._ranks.orders.get()
            if message["do"] == "bye":
                return
            work = self._scored(message["pairs"]) if message["do"] == "score" else self._answered(message["requests"])
            for _ in work:
                pass

    def _tell(self, message: dict) -> None:
        if self._ranks.size > 1:
            self._ranks.tell(message)

    def _scored(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, list]]:
        size = BATCHES * self._batch_size

        def work(order: Iterable[int]) -> Iterator[tuple[int, list]]:
            for index in order:
                some = pairs[index * size : (index + 1) * size]
                scores = score_continuations(self._model, some, adapter=self._adapter, batch_size=self._batch_size)
                yield index, [[score.logprob, score.greedy] for score in scores]

        blocks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        sizes = [sum(len(context) + len(rest) for context, rest in block) for block in blocks]
        yield from self._kept(share_out(self._ranks, sizes, work))

    def _answered(self, requests: Sequence[dict]) -> Iterator[tuple[int, str]]:
        def work(order: Iterable[int]) -> Iterator[tuple[int, str]]:
            how = {"raw": True, "adapter": self._adapter}
            asked = ((i, Request(requests[i]["prompt"], options=requests[i]["options"], **how)) for i in order)
            for index, answer in answer_each(self._model, self._processor, asked, rows=self._batch_size):
                if isinstance(answer, Exception):
                    raise answer
                yield index, answer.text

        yield from self._kept(share_out(self._ranks, [len(each["prompt"]) for each in requests], work))

    @staticmethod
    def _kept(results: Iterator[tuple[int, object]]) -> Iterator[tuple[int, object]]:
        for index, result in results:
            if isinstance(result, Lost):
                raise Phi4Error(f"{result}; a harness needs all answers")
            yield index, result
