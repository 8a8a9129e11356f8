"""An argument has one name: other libraries' names for it are refused with a word about ours."""

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import TypeVar

from .kinds import Kind, settled

Function = TypeVar("Function", bound=Callable)

# names that other libraries have for the same thing; those that a function has are proposed
OTHER_NAMES = {
    "adapter_path": ("adapter",),
    "audio": ("audios", "source"),
    "audio_file": ("audios", "source"),
    "bits": ("quantize", "q_bits", "kv_bits"),
    "cache": ("prompt_cache",),
    "callback": ("progress",),
    "device": ("dtype",),
    "draft_model": ("speculation",),
    "group_size": ("q_group_size", "kv_group_size"),
    "hf_path": ("model", "path_or_hub_id"),
    "image": ("images",),
    "initial_prompt": ("context", "prompt"),
    "language": ("to",),
    "max_new_tokens": ("max_tokens",),
    "max_length": ("max_tokens",),
    "messages": ("prompt",),
    "model_path": ("model", "path_or_hub_id"),
    "no_repeat": ("repetition_penalty",),
    "num_return_sequences": ("n",),
    "path": ("path_or_hub_id", "source", "manifest", "mlx_path"),
    "path_or_hf_repo": ("path_or_hub_id", "model"),
    "stop_strings": ("stop",),
    "stop_words": ("stop",),
    "stream": ("progress",),
    "system_prompt": ("system",),
    "temp": ("temperature", "temperatures"),
    "temperature": ("temperatures",),
    "verbose": ("quiet",),
}
WITHOUT_COUNTERPART = {
    "verbose": "nothing is printed here",
    "sampler": "temperature, top_p and the others are arguments of their own",
    "num_draft_tokens": "drafts are as long as they pay on this machine",
    "stream": "stream_generate gives the text as it comes",
}


def check_names(given: Iterable[str], known: Iterable[str], where: str = "", also: Iterable[str] = ()) -> None:
    """Raise TypeError for a keyword that is not known, with the one among these and ``also`` that is probably meant."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        names = [*known, *also]
        close = [] if name in WITHOUT_COUNTERPART else get_close_matches(name, names, n=1)
        meant = [each for each in OTHER_NAMES.get(name, ()) if each in names] or close
        advice = f"is {meant[0]!r} meant?" if meant else WITHOUT_COUNTERPART.get(name)
        raise TypeError(f"{where}unknown option {name!r}" + (f"; {advice}" if advice else ""))


def takes(**kinds: Kind) -> Callable[[Function], Function]:
    """Check a function's arguments by name before it is called, and refuse unknown keywords with a word about ours.

    Those that are not named here pass as they are. The function sees plain values.
    """

    def decorate(decorated: Function) -> Function:
        signature = inspect.signature(decorated)
        parameters = signature.parameters.values()
        names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
        is_open = any(each.kind is each.VAR_KEYWORD for each in parameters)
        where = decorated.__qualname__.removesuffix(".__init__").rpartition(".")[2]

        @wraps(decorated)
        def checked(*args, **given):
            if not is_open:
                check_names(given, names, f"{where}: ")
            try:
                bound = signature.bind(*args, **given)
            except TypeError:  # Python says itself what is missing or too much
                return decorated(*args, **given)
            bound.arguments.update(settled(kinds, bound.arguments))
            return decorated(*bound.args, **bound.kwargs)

        return checked

    return decorate


def checked_fields(**kinds: Kind) -> Callable[[type], type]:
    """``takes`` for a dataclass, which makes its own ``__init__``."""

    def decorate(decorated: type) -> type:
        decorated.__init__ = takes(**kinds)(decorated.__init__)
        return decorated

    return decorate
