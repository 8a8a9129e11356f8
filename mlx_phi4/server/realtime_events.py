"""Events of a realtime transcription session, in OpenAI's form: settings in, what was heard out."""

import base64
import binascii
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..audio.segmentation import PAUSES
from ..transcription.live_events import (
    Behind,
    Event,
    Failed,
    Heard,
    Provisional,
    SpeechStarted,
    SpeechStopped,
)
from ..transcription.tasks import PROMPTS
from ..transcription.transcriber import Transcriber
from . import fields
from .errors import RequestError, error_body
from .names import ModelNames
from .transcript_fields import finite, language

OPENAI_RATE = 24_000  # Hz, of a session that names none
RATES = 8_000, 192_000  # Hz
LARGEST_MESSAGE = 2_000_000  # bytes: a megabyte of samples in base64, and what is around it
SAMPLE_BYTES = 2
HEARD_EVENT = "conversation.item.input_audio_transcription"

_FORMAT = {"type": fields.one_of("audio/pcm"), "rate": fields.integer(*RATES)}
_ASKED = {"model": fields.text, "prompt": fields.text, "language": language}
_TURNS = {
    "type": fields.one_of("server_vad"),
    "silence_duration_ms": fields.integer(*(round(1000 * seconds) for seconds in PAUSES)),
    **dict.fromkeys(("threshold", "prefix_padding_ms", "idle_timeout_ms", "create_response"), fields.refused),
}
_INPUT = {
    "format": fields.mapping,
    "transcription": fields.mapping,
    "turn_detection": fields.mapping,
    "noise_reduction": fields.refused,
}
_SESSION = {"type": fields.one_of("transcription"), "audio": fields.mapping, "include": fields.empty}


@dataclass(frozen=True)
class SessionSettings:
    """What a session was asked for; ``pause`` in seconds, None is the model's own."""

    model: str
    rate: int = OPENAI_RATE
    prompt: str | None = None
    language: str | None = None
    pause: float | None = None

    def updated(self, given: dict[str, Any], names: ModelNames) -> "SessionSettings":
        """With what a session.update says. Raises RequestError."""
        session = fields.read_fields(_SESSION, given, "session.")
        where = "session.audio.input."
        audio = fields.read_fields({"input": fields.mapping}, session.get("audio", {}), "session.audio.")
        heard = audio.get("input", {})
        if "turn_detection" in heard and heard["turn_detection"] is None:
            raise fields.unsupported(f"{where}turn_detection", "null is not supported: pauses end segments")
        heard = fields.read_fields(_INPUT, heard, where)
        sound = fields.read_fields(_FORMAT, heard.get("format", {}), f"{where}format.")
        asked = fields.read_fields(_ASKED, heard.get("transcription", {}), f"{where}transcription.")
        turns = fields.read_fields(_TURNS, heard.get("turn_detection", {}), f"{where}turn_detection.")
        if "model" in asked:
            check_model(asked["model"], names)
        pause = turns["silence_duration_ms"] / 1000 if "silence_duration_ms" in turns else self.pause
        rate = sound.get("rate", self.rate)
        return replace(self, **asked, rate=rate, pause=pause)

    def shown(self, usual_pause: float) -> dict[str, Any]:
        """As a session of OpenAI's form, with all defaults."""
        pause = usual_pause if self.pause is None else self.pause
        heard = {
            "format": {"type": "audio/pcm", "rate": self.rate},
            "transcription": {"model": self.model, "prompt": self.prompt or "", "language": self.language},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": round(1000 * pause)},
            "noise_reduction": None,
        }
        return {"type": "transcription", "audio": {"input": heard}}

    def transcriber(self, rows: int) -> Transcriber:
        """The settings as the transcriber takes them."""
        prompt = None if self.language is None else f"{PROMPTS['transcribe']} The speech is in {self.language}."
        return Transcriber(prompt=prompt, context=self.prompt, pause=self.pause, batch_size=rows)


def check_model(name: str, names: ModelNames) -> None:
    """Raises RequestError for any name but the served model's own."""
    if names.adapter(name) is not None:
        raise fields.unsupported("model", "with an adapter is not supported here: transcriptions choose their own")


def samples_of(data: bytes) -> np.ndarray:
    """16-bit samples (n,). Raises RequestError."""
    if len(data) % SAMPLE_BYTES:
        raise RequestError(
            f"audio has {len(data)} bytes, expected 16-bit samples, two bytes each", param="audio", code="invalid_value"
        )
    return np.frombuffer(data, "<i2")


def decoded(given: Any) -> bytes:
    """The bytes of an append's ``audio``. Raises RequestError."""
    try:
        return base64.b64decode(fields.text(given, "audio"), validate=True)
    except (binascii.Error, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError("audio is not base64", param="audio", code="invalid_base64") from None


class Told:
    """What happened to a session, as events; items are numbered through the whole session.

    ``item`` and ``seconds`` are what came before the ears that now hear: others may have been cleared away.
    """

    def __init__(self):
        self._ids = itertools.count(1)
        self.item, self.seconds = 0, 0.0
        self._last = 0  # the number of the latest item

    def event(self, kind: str, **rest: Any) -> dict[str, Any]:
        """An event with an id of its own."""
        return {"event_id": f"event_{next(self._ids)}", "type": kind} | rest

    def error(self, error: Exception, event_id: str | None = None) -> dict[str, Any]:
        """What was wrong with a client's event."""
        return self.event("error", error=error_body(error)["error"] | {"event_id": event_id})

    def begin_anew(self, seconds: float) -> None:
        """Other ears hear from here on."""
        self.item, self.seconds = self._last, self.seconds + seconds

    def events(self, told: Event) -> Iterator[dict[str, Any]]:
        """An event of the ears as those of the protocol."""
        if isinstance(told, Behind):
            yield self.event("mlx_phi4.behind", seconds=round(told.seconds, 2))
            return
        number = self.item + told.number + 1
        self._last, item = max(self._last, number), {"item_id": f"item_{number}"}
        part = item | {"content_index": 0}
        if isinstance(told, SpeechStarted):
            yield self.event("input_audio_buffer.speech_started", **item, audio_start_ms=self._ms(told.start))
        elif isinstance(told, Provisional):
            yield self.event("mlx_phi4.provisional", **item, text=told.text)
        elif isinstance(told, SpeechStopped):
            yield self.event("input_audio_buffer.speech_stopped", **item, audio_end_ms=self._ms(told.end))
            before = f"item_{number - 1}" if number > 1 else None
            yield self.event("input_audio_buffer.committed", **item, previous_item_id=before)
        elif isinstance(told, Failed):
            yield self.event(f"{HEARD_EVENT}.failed", **part, error=error_body(told.error)["error"])
        elif isinstance(told, Heard):
            segment = told.segment
            if segment.text:
                yield self.event(f"{HEARD_EVENT}.delta", **part, delta=segment.text)
            yield self.event(
                f"{HEARD_EVENT}.completed",
                **part,
                transcript=segment.text,
                usage={"type": "duration", "seconds": round(segment.end - segment.start, 3)},
                start=round(self.seconds + segment.start, 3),
                end=round(self.seconds + segment.end, 3),
                avg_logprob=finite(segment.avg_logprob),
                no_speech=segment.no_speech,
                flags=list(segment.flags),
            )

    def _ms(self, seconds: float) -> int:
        return round(1000 * (self.seconds + seconds))
