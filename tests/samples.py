"""Requests of every mode that several test files share."""

import dataclasses

from cases import clip, picture

from mlx_phi4 import Request, stream_generate

PICTURE, OTHER = picture(90, 90), picture(90, 90, seed=3)
SOUND = (clip(0.6), 16_000)
MODES = {
    "text": Request("Tell me of the sea."),
    "vision": Request("What?", images=[PICTURE]),
    "speech": Request("Transcribe.", audios=[SOUND]),
    "vision-speech": Request("Answer.", images=[PICTURE], audios=[SOUND]),
}


def tokens_of(model, processor, request, **options):
    """The tokens of a request alone, and its last response."""
    named = dataclasses.asdict(request)
    named.pop("options")
    responses = list(stream_generate(model, processor, **named, **options))
    return [response.token for response in responses], responses[-1]
