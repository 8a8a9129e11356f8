"""The media of a request, listed and prepared.

A video becomes its frames as pictures, and its sound as a recording behind them.
"""

import os
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

from ..arguments import kinds
from ..errors import MediaError, PromptError
from ..modalities import MODALITIES, Medium
from ..sources import from_base64
from ..vision.video import SeenVideo, Video, see

VIDEO_PARTS = ("video", "video_url", "input_video")  # types of content parts, and keys under which the video stands
VIDEO_SETTINGS = ("frames", "fps", "max_crops", "with_sound")


def listed(media) -> list:
    """A list of media; one alone may stand without its list."""
    if media is None:
        return []
    if isinstance(media, list):
        return media
    if isinstance(media, tuple):
        pair = len(media) == 2 and isinstance(media[1], Real) and not isinstance(media[0], Real)
        return [media] if pair else list(media)
    return list(media) if isinstance(media, Iterator) and not hasattr(media, "read") else [media]


def prepared(kind: str, index: int, source, max_crops: int | None) -> Medium:
    """A prepared medium. What is wrong with one that is no path is told with its place."""
    modality = MODALITIES[kind]
    settings = {} if kind != "image" or max_crops is None else {"max_crops": max_crops}
    try:
        return modality.prepare(source, **settings)
    except MediaError as error:
        if isinstance(source, (str, os.PathLike)) and os.fspath(source):
            raise
        place = f"{modality.argument}[{index}]" if modality.argument else f"{kind} {index}"
        raise type(error)(f"{place}: {error}") from None


def all_prepared(media: dict[str, list], max_crops: int | None, context: int) -> dict[str, Iterator[Medium]]:
    """All media by kind, in order; not one more than ``context`` tokens can hold. Raises PromptError, MediaError."""
    ready: dict[str, list[Medium]] = {kind: [] for kind in media}
    tokens = 0
    for kind, sources in media.items():
        for index, source in enumerate(sources):
            ready[kind].append(prepared(kind, index, source, max_crops))
            tokens += ready[kind][-1].tokens
            if tokens > context:
                raise PromptError(f"the prompt's media have {tokens} tokens or more; the context holds {context}")
    return {kind: iter(items) for kind, items in ready.items()}


def see_all(videos: list, max_crops: int | None) -> list[SeenVideo]:
    """What is seen of each; what is wrong with one that is no path is told with its place. Raises MediaError."""
    found = []
    for index, each in enumerate(videos):
        try:
            found.append(see(each, max_crops))
        except MediaError as error:
            source = each.source if isinstance(each, Video) else each
            if isinstance(source, (str, os.PathLike)) and os.fspath(source):
                raise
            raise MediaError(f"videos[{index}]: {error}") from None
    return found


def with_frames(prompt: Any, max_crops: int | None) -> Any:
    """A prompt whose messages hold pictures and recordings where their contents had videos. Raises Phi4Error."""
    if not isinstance(prompt, list):
        return prompt
    return [_in_message(message, lambda part: see(_video(part), max_crops)) for message in prompt]


def _in_message(message: Any, seen: Callable[[dict], SeenVideo]) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not any(map(_is_video, content)):
        return message
    parts = [[part] if not _is_video(part) else seen(part).parts() for part in content]
    return message | {"content": [part for several in parts for part in several]}


def _is_video(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in VIDEO_PARTS


def _video(part: dict) -> SeenVideo | Video:
    """The video of a content part; how it is to be seen stands beside it, or with its address."""
    value = next((part[key] for key in (*VIDEO_PARTS, "path", "url") if part.get(key) is not None), None)
    settings = {name: part[name] for name in VIDEO_SETTINGS if name in part}
    if isinstance(value, dict) and not isinstance(value, (SeenVideo, Video)):
        settings = {name: value[name] for name in VIDEO_SETTINGS if name in value} | settings
        value = from_base64(value["data"]) if "data" in value else value.get("url") or value.get("path")
    if value is None:
        raise PromptError("a content part of a video brings none: its frames' places cannot be marked alone")
    if isinstance(value, (SeenVideo, Video)):
        return value
    return Video(value, **settings)


def brief(value) -> str:
    """A value for a repr: what is long is told by its type and size."""
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, list) and len(value) <= 8:
        return f"[{', '.join(map(brief, value))}]"
    if isinstance(value, tuple) and len(value) <= 8:
        return f"({', '.join(map(brief, value))})"
    if hasattr(value, "shape"):
        return f"<{kinds.shown(value).removeprefix('an ')}>"
    return repr(value) if any(isinstance(value, each.item) for each in MODALITIES.values()) else kinds.shown(value)
