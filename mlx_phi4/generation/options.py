"""All that can be asked of an answer, typed once and passed whole."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import TypeVar

from ..decoder.kv_cache import CacheOptions
from ..errors import Phi4Error
from .media_cache import MediaCache
from .prompt_cache import PromptCache
from .sampling import Sampling

Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True)
class GenerationOptions(Sampling):
    """How one request is answered: the fields of ``Sampling``, and these.

    Args:
        max_tokens: most tokens of the answer.
        stop: a text that ends the answer, or a list of them.
        prefill_step_size: prompt tokens that go through the decoder at once.
        rope: "auto" begins with the short table and computes a sequence again once it passes the original context;
            "long" uses the long table from the start.
        kv_bits: 8 or 4 keeps keys and values in so many bits, in groups of ``kv_group_size`` along a head, from
            ``quantized_kv_start`` tokens on.
        max_kv_size: keeps the first 4 and the last tokens only, so many in all.
        prompt_cache: begin with what it shares with the prompt, and leave the sequence in it.
        media_cache: embeddings of pictures and clips that were seen already.
        progress: called with (prompt tokens done, of how many).
    """

    max_tokens: int = 256
    stop: str | list[str] | tuple[str, ...] | None = None
    prefill_step_size: int = 2048
    rope: str = "auto"
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0
    max_kv_size: int | None = None
    prompt_cache: PromptCache | None = None
    media_cache: MediaCache | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.max_tokens < 1:
            raise Phi4Error(f"max_tokens is {self.max_tokens}, expected at least 1")
        if self.prefill_step_size < 1:
            raise Phi4Error(f"prefill_step_size is {self.prefill_step_size}, expected at least 1")
        if self.rope not in ("auto", "long"):
            raise Phi4Error(f"rope is {self.rope!r}, expected auto or long")

    @property
    def kv(self) -> CacheOptions:
        """How keys and values are kept."""
        return CacheOptions(self.kv_bits, self.kv_group_size, self.quantized_kv_start, self.max_kv_size)


def make_options(given: dict, own: dict | None = None) -> GenerationOptions:
    """Options from keywords; a request's ``own`` go before them. Raises TypeError for an unknown one."""
    named = given | (own or {})
    names = [each.name for each in fields(GenerationOptions)]
    for name in named:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            raise TypeError(f"unknown option {name!r}" + (f"; is {close[0]!r} meant?" if close else ""))
    return GenerationOptions(**named)


def answer_number(options: GenerationOptions, number: int) -> GenerationOptions:
    """The options of one of several answers to a prompt: each has a seed of its own."""
    return options if options.seed is None or not number else replace(options, seed=options.seed + number)


def takes_options(function: Function) -> Function:
    """Show every option in the signature of a function with ``**options``."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in inspect.signature(GenerationOptions).parameters.values()
    ]
    known = {each.name for each in own}
    function.__signature__ = signature.replace(parameters=[*own, *(each for each in more if each.name not in known)])
    return function
