"""From OpenAI's chat messages to the package's own, media decoded and prepared; runs in worker threads.

Nothing that a client sends is taken for a path or an address: pictures and recordings come as bytes.
"""

import base64
import binascii
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ..audio.preprocess import Clip, prepare_clip
from ..audio.reader import open_recording
from ..errors import MediaError, Phi4Error
from ..generation.thoughts import CLOSE, OPEN
from ..vision.preprocess import MAX_CROPS, Picture, prepare_picture
from ..vision.video import MOST_FRAMES, SeenVideo, Video
from . import fields
from .errors import RequestError, located

PHOTO_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # what a photo has; Pillow knows stranger ones
MOST_PIXELS = 64_000_000
LONGEST_CLIP = 3600  # seconds of a recording inside a message; files of any length go to transcriptions
SOUND_FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "aiff", "m4a", "aac", "mp4", "webm")

Fetch = Callable[[str, str], bytes]  # (address, place in the body) -> what is there
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MESSAGE = {"role": fields.text, "content": lambda value, name: value}
_ASSISTANT = _MESSAGE | {
    "reasoning_content": fields.text,
    "refusal": fields.refused,
    "audio": fields.refused,
    "function_call": fields.refused,
    "tool_calls": fields.listed,
    "annotations": fields.empty,
}
_TOOL = _MESSAGE | {"tool_call_id": fields.text, "name": fields.text}  # the name is the call's, which has it already
_CALL = {"id": fields.text, "type": fields.one_of("function"), "function": fields.mapping, "index": fields.integer(0)}
_FUNCTION = {"name": fields.text, "arguments": fields.text}
_FIELDS = {"assistant": _ASSISTANT, "tool": _TOOL}
_CROPS = {"max_crops": fields.integer(1, MAX_CROPS)}
_URL = {"url": fields.text, "detail": fields.one_of("auto", "high", "low"), **_CROPS}
_VIDEO = {
    "url": fields.text,
    "frames": fields.integer(1, MOST_FRAMES),
    "fps": fields.number(0, 1000, above=True),
    "with_sound": fields.boolean,
    **_CROPS,
}
LOW_DETAIL = 1  # crops of a picture that is to be cheap
_SOUND = {"data": fields.text, "format": fields.one_of(*SOUND_FORMATS)}


def read_messages(given: Any, fetch: Fetch | None = None) -> list[dict]:
    """Messages as ``inputs.prompt`` takes them; ``fetch`` gets pictures from http(s) addresses, None: none are taken.

    Raises RequestError with the place of what is wrong.
    """
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", given, "an array of at least one message")
    found = [_message(each, f"messages[{index}]", fetch) for index, each in enumerate(given)]
    called = False
    for index, message in enumerate(found):
        called = called or bool(message.get("tool_calls"))
        if message["role"] == "tool" and not called:
            where = f"messages[{index}]"
            raise RequestError(f"{where} is a result, but no message before it calls tools (tool_calls)", param=where)
    return found


def _message(given: Any, where: str, fetch: Fetch | None) -> dict:
    role = given.get("role") if isinstance(given, dict) else None
    if not isinstance(given, dict):
        raise fields.wrong(where, given, "an object")
    if role == "function":
        raise fields.unsupported(f"{where}.role", "is 'function', which is the older form of 'tool': use tools")
    if not isinstance(role, str) or role not in _ROLES:
        raise fields.wrong(f"{where}.role", role, ", ".join(_ROLES))
    message = fields.read_fields(_FIELDS.get(role, _MESSAGE), given, f"{where}.")
    content = message.get("content")
    if content is None and role != "assistant":
        raise RequestError(f"{where}.content is missing", param=f"{where}.content", code="missing_parameter")
    if isinstance(content, list):
        content = [_part(part, role, f"{where}.content[{index}]", fetch) for index, part in enumerate(content)]
    elif content is not None and not isinstance(content, str):
        raise fields.wrong(f"{where}.content", content, "a string or an array of parts")
    if "reasoning_content" in message:
        thought = {"type": "text", "text": f"{OPEN}{message['reasoning_content']}{CLOSE}"}
        content = [thought, *([{"type": "text", "text": content}] if isinstance(content, str) else content or [])]
    more = {}
    if role == "tool":
        more["tool_call_id"] = fields.required(message, "tool_call_id", f"{where}.")
    if "tool_calls" in message:
        calls = enumerate(message["tool_calls"])
        more["tool_calls"] = [_call(each, f"{where}.tool_calls[{index}]") for index, each in calls]
    return {"role": _ROLES[role], "content": content} | more


def _call(given: Any, where: str) -> dict:
    """A call of an earlier turn; what it calls is looked at with the rest of the prompt."""
    found = fields.read_fields(_CALL, fields.mapping(given, where), f"{where}.")
    function = fields.required(found, "function", f"{where}.")
    function = fields.read_fields(_FUNCTION, function, f"{where}.function.")
    for name in _FUNCTION:
        fields.required(function, name, f"{where}.function.")
    return {"id": fields.required(found, "id", f"{where}."), "type": "function", "function": function}


def _part(given: Any, role: str, where: str, fetch: Fetch | None) -> dict:
    if not isinstance(given, dict):
        raise fields.wrong(where, given, "an object with a type")
    kind = given.get("type")
    if kind == "text":
        found = fields.read_fields({"type": fields.text, "text": fields.text}, given, f"{where}.")
        return {"type": "text", "text": fields.required(found, "text", f"{where}.")}
    if kind not in ("image_url", "input_audio", "video_url"):
        raise fields.wrong(f"{where}.type", kind, "text, image_url, input_audio or video_url")
    if role != "user":
        raise fields.unsupported(f"{where}.type", f"is {kind} in a message of role {role}; media belong to user's")
    found = fields.read_fields({"type": fields.text, kind: fields.mapping}, given, f"{where}.")
    value, place = fields.required(found, kind, f"{where}."), f"{where}.{kind}"
    if kind == "image_url":
        named = fields.read_fields(_URL, value, f"{place}.")
        data = _from_url(fields.required(named, "url", f"{place}."), f"{place}.url", fetch)
        crops = named.get("max_crops", LOW_DETAIL if named.get("detail") == "low" else MAX_CROPS)
        return {"type": "image", "image": _picture(data, place, crops)}
    if kind == "video_url":
        named = fields.read_fields(_VIDEO, value, f"{place}.")
        data = _from_url(fields.required(named, "url", f"{place}."), f"{place}.url", fetch)
        return {"type": "video", "video": _video(data, named, place)}
    data = fields.required(fields.read_fields(_SOUND, value, f"{place}."), "data", f"{place}.")
    return {"type": "audio", "audio": _clip(_from_base64(data, f"{place}.data"), place)}


def _from_url(url: str, where: str, fetch: Fetch | None) -> bytes:
    scheme = url[:40].partition(":")[0].lower() if ":" in url[:40] else ""
    if scheme in ("http", "https") and fetch is not None:
        return fetch(url, where)
    if scheme in ("http", "https"):
        raise RequestError(
            f"{where}: {scheme} addresses are not fetched; send the bytes themselves as a data: URL", param=where
        )
    head, comma, data = url.partition(",")
    if scheme != "data" or not comma or not head.lower().endswith(";base64"):
        raise RequestError(
            f"{where} is not of the form data:image/...;base64,...",
            param=where,
            code="invalid_value",
        )
    return _from_base64(data, where)


def _from_base64(data: str, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{where} is not base64", param=where, code="invalid_base64") from None


def _video(data: bytes, named: dict[str, Any], where: str) -> SeenVideo:
    settings = {name: value for name, value in named.items() if name != "url"}
    try:
        return Video(data, **settings).read(most_pixels=MOST_PIXELS)
    except Phi4Error as error:
        raise located(error, where) from None


def _picture(data: bytes, where: str, max_crops: int) -> Picture:
    """Only formats that a photo has are tried, and no more pixels decoded than a photo has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=PHOTO_FORMATS)
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
        expected = ", ".join(PHOTO_FORMATS)
        raise RequestError(f"{where} is not a picture in {expected}", param=where, code="invalid_media") from None
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise RequestError(
            f"{where}: a picture of {width} x {height} pixels; at most {MOST_PIXELS} are taken",
            param=where,
            code="invalid_media",
        )
    try:
        return prepare_picture(image, max_crops)
    except MediaError as error:
        raise located(error, where) from None


def _clip(data: bytes, where: str) -> Clip:
    """A few bytes can hold hours of silence: samples are counted while they are decoded."""
    try:
        with open_recording(data) as recording:
            blocks, left = [], LONGEST_CLIP * recording.rate
            for block in recording.blocks():
                blocks.append(block)
                left -= len(block)
                if left < 0:
                    raise MediaError(f"is longer than {LONGEST_CLIP} s; /v1/audio/transcriptions takes any length")
            return prepare_clip((np.concatenate(blocks), recording.rate))
    except MediaError as error:
        raise located(error, where) from None
