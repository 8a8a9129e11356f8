"""Generation for people: text as it comes, whole answers, batches, and prompts computed ahead."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .responses import GenerationResponse, responses, split_options

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor, Request
    from ..model import Phi4
    from .prompt_cache import PromptCache


def generate(
    model: "Phi4",
    processor: "Processor",
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    **options,
) -> str:
    """The whole answer as a string. Arguments as in ``stream_generate``."""
    options |= {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed}
    stream = stream_generate(model, processor, prompt, images, audios, system=system, raw=raw, **options)
    return "".join(response.text for response in stream)


def stream_generate(
    model: "Phi4",
    processor: "Processor",
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    **options,
) -> Iterator[GenerationResponse]:
    """Yield one response per generated token, the end token included.

    Args:
        prompt, images, audios, system, raw: see ``Processor.__call__``.
        max_tokens: most tokens to generate.
        temperature: 0 takes the most likely token.
        top_p, top_k, min_p: keep only likely tokens when sampling; 1, 0 and 0 keep all.
        repetition_penalty: above 1 makes the last 20 tokens less likely.
        seed: the same seed gives the same answer.
        options: ``stop`` (a string or a list of them); the other fields of ``sampling.Sampling``;
            ``prefill_step_size``, ``rope``, ``prompt_cache``, ``media_cache`` and ``progress`` of
            ``batch.EngineOptions``; ``kv_bits``, ``kv_group_size``, ``quantized_kv_start`` and ``max_kv_size``.

    Raises:
        Phi4Error: a bad argument, prompt or medium, before the first token.
    """
    from .text import AnswerText

    options |= {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed}
    rows, stops, engine = split_options(options, [{}])
    text = AnswerText(processor.tokenizer, stops[0])
    inputs = processor(prompt, images, audios, system=system, raw=raw)
    for response, end in responses(model, processor, inputs, rows, engine):
        response.text = text.add(response.token)
        if text.stopped:
            response.finish_reason = "stop"
        if response.finish_reason is not None:
            response.text += text.finish()
            end()
        yield response


def batch_generate(
    model: "Phi4",
    processor: "Processor",
    requests: "list[Request]",
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    **options,
) -> list[GenerationResponse]:
    """Whole answers to several requests of any modes and lengths, in one batch.

    Each row gets the tokens that it gets alone, and leaves the batch when it ends. Options as in ``stream_generate``;
    a request's own ``options`` (sampling, ``stop``, ``max_tokens``) go before these.
    """
    from .text import AnswerText

    options |= {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed}
    rows, stops, engine = split_options(options, [request.options or {} for request in requests])
    texts = [AnswerText(processor.tokenizer, stop) for stop in stops]
    inputs = processor.batch(requests)
    answers: dict[int, GenerationResponse] = {}
    for response, end in responses(model, processor, inputs, rows, engine):
        row, before = end.row, answers.get(end.row)
        response.text = (before.text if before else "") + texts[row].add(response.token)
        response.tokens = [*(before.tokens if before else []), response.token]
        if response.logprob is not None:
            response.logprob = [*(before.logprob if before else []), response.logprob]
            response.top_logprobs = [*(before.top_logprobs if before else []), response.top_logprobs]
        if texts[row].stopped:
            response.finish_reason = "stop"
        if response.finish_reason is not None:
            response.text += texts[row].finish()
            end()
        answers[row] = response
    return [answers[row] for row in range(len(requests))]


def cache_prompt(
    model: "Phi4",
    processor: "Processor",
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    **options,
) -> "PromptCache":
    """The cache of a prompt, to be saved with ``PromptCache.save`` or given to ``stream_generate``.

    Later prompts reuse it as far as they begin with the same tokens and the same media in the same mode. Options as in
    ``stream_generate``; those about sampling have no effect.
    """
    from .prompt_cache import PromptCache

    cache = PromptCache()
    options |= {"prompt_cache": cache, "max_tokens": 1}
    for _ in stream_generate(model, processor, prompt, images, audios, **options):
        pass
    return cache
