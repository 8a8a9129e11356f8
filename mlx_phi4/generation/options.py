"""All that can be asked of an answer, typed once and passed whole."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from ..arguments.kinds import Kind, Unfit, choice, flag, function, integer, of_class, settle, text
from ..arguments.names import check_names
from ..decoder.kv_cache import CacheOptions
from ..errors import Phi4Error
from ..inputs.tools import ToolChoice, tool_choice
from .draft_model import DraftModel
from .grammars import GRAMMAR_KINDS, Grammar
from .media_cache import MediaCache
from .prompt_cache import PromptCache
from .sampling import SAMPLING_KINDS, Sampling

Function = TypeVar("Function", bound=Callable)


def _stop(value):
    """A string, or a list of them, none empty."""
    stops = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(stops, (list, tuple)) or not all(isinstance(each, str) and each for each in stops):
        raise Unfit("strings that are not empty")
    return value


def _speculation(value):
    """How drafts are made."""
    if isinstance(value, str) and value in ("lookup", "none"):
        return str(value)
    return DraftModel.of(value)


ENGINE_KINDS = {
    "max_tokens": integer(1),
    "stop": Kind(_stop),
    "prefill_step_size": integer(1),
    "rope": choice("auto", "long"),
    "kv_bits": integer(among=(4, 8)) | None,
    "kv_group_size": integer(1),
    "quantized_kv_start": integer(0),
    "max_kv_size": integer(16) | None,
    "speculation": Kind(_speculation) | None,
    "prediction": text | None,
    "prompt_cache": of_class("PromptCache", "a PromptCache") | None,
    "media_cache": of_class("MediaCache", "a MediaCache") | None,
    "progress": function | None,
    "tool_choice": Kind(tool_choice) | None,
    "parallel_tool_calls": flag,
    "think_first": flag,
}


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
        speculation: tokens are drafted and verified side by side, which changes the answer's speed alone: "lookup"
            drafts from where prompt or answer went on alike before, a loaded model of the same vocabulary (or the pair
            that ``load`` gives) by itself. None or "none": not.
        prediction: a text that most of the answer is expected to be, from which it is drafted.
        prompt_cache: begin with what it shares with the prompt, and leave the sequence in it.
        media_cache: embeddings of pictures and clips that were seen already.
        progress: called with (prompt tokens done, of how many).
        tool_choice: "auto" (with tools, the default), "none", "required", or a tool's name, also in OpenAI's form.
        parallel_tool_calls: whether an answer may have several calls.
        schema: a JSON schema, or a pydantic model: the answer is JSON that it describes. At most one of this and
            ``regex``, which the answer matches as a whole, ``choice``, texts of which it is one, and ``lark``, a
            grammar in llguidance's dialect. Each is kept as a ``Grammar``.
        think_first: whether a ``<think>`` block may come before what they ask for.
    """

    max_tokens: int = 256
    stop: str | list[str] | tuple[str, ...] | None = None
    prefill_step_size: int = 2048
    rope: str = "auto"
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0
    max_kv_size: int | None = None
    speculation: str | DraftModel | None = None
    prediction: str | None = None
    prompt_cache: PromptCache | None = None
    media_cache: MediaCache | None = None
    progress: Callable[[int, int], None] | None = None
    tool_choice: ToolChoice | str | dict | None = None
    parallel_tool_calls: bool = True
    schema: dict | type | Grammar | None = None
    regex: str | Grammar | None = None
    choice: list[str] | tuple[str, ...] | Grammar | None = None
    lark: str | Grammar | None = None
    think_first: bool = False

    def __post_init__(self):
        """Name every value that is not of its kind, all at once. Raises Phi4Error."""
        settle(self, SAMPLING_KINDS | ENGINE_KINDS | GRAMMAR_KINDS)
        given = [name for name in GRAMMAR_KINDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise Phi4Error(f"{' and '.join(given)} cannot be combined: an answer keeps to one of them")
        required = self.tool_choice is not None and self.tool_choice.mode == "required"
        if self.think_first and not given and not required:
            raise Phi4Error(f"think_first needs one of {', '.join(GRAMMAR_KINDS)} or a tool_choice that requires calls")

    @property
    def grammar(self) -> Grammar | None:
        """What the answer keeps to."""
        given = next((name for name in GRAMMAR_KINDS if getattr(self, name) is not None), None)
        return None if given is None else replace(getattr(self, given), thoughts=self.think_first)

    @property
    def kv(self) -> CacheOptions:
        """How keys and values are kept."""
        return CacheOptions(self.kv_bits, self.kv_group_size, self.quantized_kv_start, self.max_kv_size)


def make_options(given: dict, own: dict | None = None, also: Iterable[str] = ()) -> GenerationOptions:
    """Options from keywords; a request's ``own`` go before them, and its own form in place of theirs.

    Raises Phi4Error, and TypeError for an unknown one; ``also`` are arguments beside them that may have been meant.
    """
    if own and any(own.get(name) is not None for name in GRAMMAR_KINDS):
        given = {name: value for name, value in given.items() if name not in GRAMMAR_KINDS}
    named = given | (own or {})
    check_names(named, [each.name for each in fields(GenerationOptions)], also=also)
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
