"""What is asked of the model about a recording: the published prompts, languages, and answers in two parts.

Source of the prompts: the model card of Phi-4-multimodal-instruct. It has none for summaries; that one is ours.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from ..arguments.kinds import Unfit, choice, real, settled, shown, text
from ..errors import Phi4Error

PROMPTS = {
    "transcribe": "Transcribe the audio clip into text.",
    "translate": "Translate the audio to {to}.",
    "transcribe+translate": "Transcribe the audio to text, and then translate the audio to {to}. "
    "Use <sep> as a separator between the original transcript and the translation.",
    "summarize": "Summarize the audio.",
    "ask": "",  # the recording itself is the question
}
TASKS = tuple(PROMPTS)
WHOLE = ("summarize", "ask")  # one answer to the whole recording
TRANSLATIONS = ("translate", "transcribe+translate")
SEPARATOR = "<sep>"
SHORTEST_CLIP = 0.1  # seconds
LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "de": "German",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "es": "Spanish",
    "pt": "Portuguese",
}  # those of the model's speech


@dataclass(frozen=True)
class Question:
    """What is asked about each piece, or about the whole recording.

    ``language`` is the language of the answer where the task says it, ``whole`` whether one answer is given to the
    whole recording, ``two_parts`` whether the answer is a transcript and its translation.
    """

    task: str
    prompt: str
    language: str | None
    whole: bool
    two_parts: bool
    warnings: tuple[str, ...] = ()


def make_question(
    task: str = "transcribe", to: str | None = None, prompt: str | None = None, context: str | None = None
) -> Question:
    """Put the prompt together.

    Args:
        task: one of ``TASKS``.
        to: language of a translation, by its English name or its code; None is English.
        prompt: used instead of the task's own.
        context: names and terms that may occur, added to the prompt.

    Raises:
        Phi4Error: an unknown task, or ``to`` with a task that does not translate.
    """
    settled(
        {"task": choice(*TASKS), "to": text | None, "prompt": text | None, "context": text | None},
        {"task": task, "to": to, "prompt": prompt, "context": context},
    )
    translates = task in TRANSLATIONS
    if to is not None and not translates:
        raise Phi4Error(f"--to goes with {' and '.join(TRANSLATIONS)}, not with task {task}")
    if to is not None and not to.strip():
        raise Phi4Error("--to is empty, expected a language such as French or fr")
    language, warnings = None, ()
    if translates and (to is not None or prompt is None):
        language = language_name(to or "English")
        if language not in LANGUAGES.values():
            warnings = (
                f"{language} is not among the languages of the model's speech: {', '.join(LANGUAGES.values())}",
            )
    asked = PROMPTS[task].format(to=language) if prompt is None else prompt
    if context is not None and context.strip():
        asked = f"{asked} These names and terms may occur: {context.strip().rstrip('.')}.".lstrip()
    return Question(task, asked, language, task in WHOLE, task == "transcribe+translate", warnings)


def language_name(given: str) -> str:
    """The English name of a language, given by name or code (fr, fr-CA); an unknown one as it is."""
    plain = given.strip()
    code = plain.lower().replace("_", "-").partition("-")[0]
    if code in LANGUAGES:
        return LANGUAGES[code]
    return next((name for name in LANGUAGES.values() if name.lower() == plain.lower()), plain)


def split_answer(answer: str) -> tuple[str, str | None]:
    """Transcript and translation of an answer in two parts; None where the separator is missing."""
    transcript, separator, translation = answer.partition(SEPARATOR)
    return transcript.strip(), translation.strip() if separator else None


def parse_clips(given) -> list[tuple[float, float]] | None:
    """Parts of a recording in seconds, the last one open to the end where its end is missing.

    Args:
        given: None for all of it; "start,end,start,end,..." in seconds or as [hh:]mm:ss; the same as a list of
            numbers; a list of pairs; or one number, where to start.

    Raises:
        Phi4Error: not numbers, or not in ascending order.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = [part for part in given.split(",") if part.strip()]
    elif isinstance(given, (bytes, bytearray, Mapping)) or not hasattr(given, "__len__"):
        given = [given]
    times = [_seconds(time) for item in given for time in (item if isinstance(item, (tuple, list)) else (item,))]
    if not times:
        raise Phi4Error("clip_timestamps is empty, expected start,end,...")
    if len(times) % 2:
        times.append(math.inf)
    if times[0] < 0 or times[0] == math.inf or any(a > b for a, b in pairwise(times)):
        raise Phi4Error(f"clip_timestamps are {_listed(times)}, expected start,end,... in ascending order")
    clips = list(zip(times[::2], times[1::2], strict=True))
    if any(end - start < SHORTEST_CLIP for start, end in clips):
        raise Phi4Error(f"clip_timestamps are {_listed(times)}, expected parts of at least {SHORTEST_CLIP} s")
    return clips


def _seconds(given) -> float:
    """A number of seconds, also as mm:ss or hh:mm:ss."""
    try:
        if not isinstance(given, str):
            return real(infinite=True).read(given)
        parts = [float(part) for part in given.split(":")]
    except (Unfit, ValueError):
        parts = []
    if not 1 <= len(parts) <= 3 or math.isnan(sum(parts)) or (len(parts) > 1 and max(parts[1:]) >= 60):
        raise Phi4Error(f"clip_timestamps hold {shown(given)}, expected seconds, mm:ss or hh:mm:ss")
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def _listed(times: list[float]) -> str:
    return ",".join("end" if time == math.inf else f"{time:g}" for time in times)
