"""The model as lm-eval-harness asks for it, registered there as ``mlx_phi4`` when this module is imported.

Needs the extra ``lm-eval``. Special tokens count in the texts that the harness gives, as they do in its own models:
that is how a chat template gets through.
"""

from typing import TYPE_CHECKING

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..distributed import join
from ..errors import Phi4Error
from ..generation.options import make_options
from ..inputs.processor import Request
from ..inputs.prompt import render_messages
from ..inputs.tokenizer import END_OF_TEXT
from ..loading import model_and_processor
from ..modalities import Mode, chosen_adapter
from ..ranks.together import check_same
from .shared_requests import SharedRequests

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from ..inputs.processor import Processor
    from ..model import Phi4

# of a task's generation_kwargs, under the names that batch_generate has for them
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@register_model("mlx_phi4")
class Phi4LM(TemplateLM):
    """A Phi-4 model that answers in text mode.

    Args:
        pretrained: a folder or a hub id, or a loaded model with its ``processor``.
        batch_size: continuations or answers computed together.
        max_length: most tokens of a text that are looked at, at most (and by default) the context window; longer
            contexts lose their beginning, longer documents are read in windows.
        max_gen_toks: most tokens of an answer where the task does not say.
        seed: of tasks that sample; each request adds its number.
        adapter: that all texts pass; None is the base alone.

    Raises:
        Phi4Error: a bad value or model.
    """

    def __init__(
        self,
        pretrained: "str | Phi4",
        processor: "Processor | None" = None,
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
        adapter: str | None = None,
    ):
        super().__init__()
        try:
            self.batch_size = int(batch_size)
        except ValueError:
            raise Phi4Error(f"batch_size is {batch_size!r}, expected a number") from None
        if device is not None or max_batch_size is not None:
            raise Phi4Error("device and max_batch_size are not options of mlx_phi4")
        ranks = join("data")
        check_same(ranks, pretrained)
        model, self._processor = ranks.settle(lambda: model_and_processor(pretrained, processor))
        chosen = chosen_adapter(adapter, Mode.TEXT, self._processor.adapters)
        self.shared = SharedRequests(ranks, model, self._processor, self.batch_size, chosen)
        name = pretrained if processor is None else "mlx_phi4"
        self._name = name if chosen is None else f"{name}:{chosen}"
        window = self._processor.config.decoder.max_position_embeddings
        self.max_length, self.max_gen_toks, self.seed = int(max_length or window), int(max_gen_toks), int(seed)
        if not 1 <= self.max_length <= window:
            raise Phi4Error(f"max_length is {max_length}, expected 1 to {window}")

    @property
    def eot_token_id(self) -> int:
        """``<|endoftext|>``, which also stands before a text without context."""
        return self._processor.tokenizer.pad_id

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's caches of requests apart."""
        return str(self._name).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """A question in the model's template, for the harness's records; None where none is applied."""
        return self.apply_chat_template([{"role": "user", "content": "..."}]) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """Messages as one string; without ``add_generation_prompt`` the last one is left open, to be continued."""
        return render_messages(self._processor.tokenizer, chat_history, answer=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Token ids of a string; there is no token that would be added."""
        return self._processor.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """Requests ((context, continuation), context ids, continuation ids) -> (log-probability, greedy)."""
        pairs = [self._fitted(context, continuation) for _, context, continuation in requests]
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="Log-likelihoods") as bar:
            answers = self.shared.score(pairs, bar.update)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Without the context's beginning where both together are too long; never without any context."""
        if len(continuation) > self.max_length:
            raise Phi4Error(f"a continuation of {len(continuation)} tokens; max_length is {self.max_length}")
        room = self.max_length + 1 - len(continuation)  # the last token is predicted, never read
        return (context or [self.prefix_token_id])[-room:], continuation

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole documents, in windows of ``max_length`` where they are longer."""
        windows = [
            (index, make_disjoint_window(window))
            for index, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
        ]
        scores = self._loglikelihood_tokens([(None, *window) for _, window in windows], disable_tqdm)
        totals = [0.0] * len(requests)
        for (index, _), (logprob, _) in zip(windows, scores, strict=True):
            totals[index] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Answers, without the stop string that ended them."""
        asked = [self._request(index, *request.args) for index, request in enumerate(requests)]
        answers = [""] * len(asked)
        with tqdm(total=len(asked), disable=disable_tqdm, desc="Answers") as bar:
            for row, text in self.shared.answer(asked):
                answers[row] = text
                self.cache_hook.add_partial("generate_until", requests[row].args, text)
                bar.update()
        return answers

    def _request(self, index: int, context: str, kwargs: dict) -> dict:
        """A prompt with its own options. All are made before the first answer, so that a bad one costs no time."""
        kwargs = dict(normalize_gen_kwargs(kwargs, self.max_gen_toks))
        options = {name: kwargs.pop(name) for name in SAMPLING if kwargs.get(name) is not None}
        options |= {"max_tokens": int(kwargs.pop("max_gen_toks")), "seed": self.seed + index}
        options["stop"] = [stop for stop in kwargs.pop("until") if stop]
        kwargs.pop("do_sample", None)  # has become the temperature
        if kwargs:
            raise Phi4Error(f"the task's generation_kwargs have {', '.join(kwargs)}, which mlx_phi4 does not know")
        asked = {"prompt": context or END_OF_TEXT, "options": options}
        Request(asked["prompt"], raw=True, options=options)
        make_options(options)
        return asked
