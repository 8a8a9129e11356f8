"""Generation for people: text as it comes, whole answers, batches, and prompts computed ahead."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..arguments import kinds
from ..arguments.names import takes
from ..inputs.processor import Processor, Request, as_requests
from ..inputs.tools import spelled
from ..model import Phi4
from ..vision.preprocess import crops_kind
from .batch import Batch
from .options import answer_number, make_options, takes_options
from .prompt_cache import PromptCache
from .responses import Answer, GenerationResponse, response_of
from .sequence import Sequence

_asked = takes(
    model=kinds.model,
    processor=kinds.processor,
    prompt=kinds.prompt,
    system=kinds.text | None,
    raw=kinds.flag,
    adapter=kinds.text | None,
    max_crops=crops_kind | None,
)  # what all that take one request are asked with


@_asked
@takes_options
def generate(
    model: Phi4,
    processor: Processor,
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    adapter: str | None = None,
    videos: list | None = None,
    max_crops: int | None = None,
    tools: list[dict] | str | None = None,
    **options,
) -> str:
    """The whole answer as a string, calls of tools at its end as JSON. Arguments as in ``stream_generate``."""
    request = {"system": system, "raw": raw, "adapter": adapter, "tools": tools}
    request |= {"videos": videos, "max_crops": max_crops}
    text, calls = "", []
    for response in stream_generate(model, processor, prompt, images, audios, **request, **options):
        text += response.text
        calls += response.tool_calls
    return text + (spelled(calls) if calls else "")


@_asked
@takes_options
def stream_generate(
    model: Phi4,
    processor: Processor,
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    adapter: str | None = None,
    videos: list | None = None,
    max_crops: int | None = None,
    tools: list[dict] | str | None = None,
    **options,
) -> Iterator[GenerationResponse]:
    """Yield one response per generated token, the end token included.

    A prompt cache gets the sequence back at the end or when the caller closes the generator, never after an exception.

    Args:
        prompt, images, audios, system, raw, adapter, videos, max_crops, tools: see ``Processor.__call__``.
        options: the fields of ``options.GenerationOptions``: how tokens are chosen, ``max_tokens`` and ``stop``, and
            how the prompt is computed and kept.

    Raises:
        Phi4Error: a bad argument, prompt or medium, before the first token.
    """
    chosen = make_options(options)
    more = {"adapter": adapter, "videos": videos, "max_crops": max_crops, "tools": tools}
    row = processor.row(Request(prompt, images, audios, system, raw, **more))
    batch = Batch(model)
    batch.admit(Sequence(row, chosen, processor.tokenizer))
    try:
        while batch.active:
            for token in batch.step():
                if token.error is not None:
                    raise token.error
                yield response_of(token)
    finally:
        batch.close()


@takes(model=kinds.model, processor=kinds.processor, n=kinds.integer(1))
@takes_options
def batch_generate(
    model: Phi4,
    processor: Processor,
    requests: Iterable[Request | str],
    *,
    n: int = 1,
    tools: list[dict] | str | None = None,
    **options,
) -> list[GenerationResponse]:
    """Whole answers to several requests of any modes and lengths, in one batch.

    Each row gets the tokens that it gets alone, and leaves the batch when it ends. What goes wrong in one row only (its
    medium cannot be encoded) is its response's ``error``.

    Args:
        requests: a list, or anything else that gives them one by one; a string is a request of that prompt.
        n: answers to each request, with one prefill; with a ``seed`` answer i of a request has seed + i.
        tools: what all answers may call whose requests bring no tools of their own.
        options: as in ``stream_generate``; a request's own ``options`` go before these. A prompt cache serves all rows
            and then keeps the first.

    Returns:
        ``n`` responses for each request, in order.

    Raises:
        Phi4Error: a bad request, before anything is computed.
    """
    requests = as_requests(requests)
    if tools is not None:
        requests = [replace(request, tools=request.tools or tools) for request in requests]
    chosen = [make_options(options, request.options) for request in requests]
    rows = [processor.row(request) for request in requests]
    caches = [id(own.prompt_cache) for own in chosen]
    first = [caches.index(cache) == index for index, cache in enumerate(caches)]
    groups = [
        [
            Sequence(row, answer_number(own, i), processor.tokenizer, shares_cache=i > 0 or not first[index])
            for i in range(n)
        ]
        for index, (row, own) in enumerate(zip(rows, chosen, strict=True))
    ]
    batch = Batch(model)
    # the first user of a prompt cache takes its state away, so the others look first
    for index in sorted(range(len(groups)), key=first.__getitem__):
        batch.admit(*groups[index])
    answers = {sequence: Answer() for group in groups for sequence in group}
    found: dict[Sequence, GenerationResponse] = {}
    try:
        while batch.active:
            for token in batch.step():
                response = answers[token.sequence].add(token)
                if response is not None:
                    found[token.sequence] = response
    finally:
        batch.close()
    return [found[sequence] for group in groups for sequence in group]


@_asked
@takes_options
def cache_prompt(
    model: Phi4,
    processor: Processor,
    prompt: str | list[dict],
    images: list | None = None,
    audios: list | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    adapter: str | None = None,
    videos: list | None = None,
    max_crops: int | None = None,
    tools: list[dict] | str | None = None,
    **options,
) -> PromptCache:
    """The cache of a prompt, to be saved with ``PromptCache.save`` or given to ``stream_generate``.

    Later prompts reuse it as far as they begin with the same tokens and the same media in the same mode. Options as in
    ``stream_generate``; those about sampling have no effect.
    """
    cache = PromptCache()
    options |= {"prompt_cache": cache, "max_tokens": 1}
    request = {"system": system, "raw": raw, "adapter": adapter, "tools": tools}
    request |= {"videos": videos, "max_crops": max_crops}
    for _ in stream_generate(model, processor, prompt, images, audios, **request, **options):
        pass
    return cache
