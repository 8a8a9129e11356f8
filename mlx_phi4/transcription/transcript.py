"""What was heard in a recording: segments with times, as text, subtitles or JSON.

Subtitles are put together here: pysubs2 clamps times at 100 hours, takes ``{...}`` and backslashes out of texts and
does not escape those of WebVTT.
"""

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..arguments.kinds import choice, figure, flag, integer, of_class, real, settle, several, shown
from ..arguments.kinds import text as string
from ..arguments.names import checked_fields, takes
from ..errors import Phi4Error
from ..files import expanded, write_whole
from .json_form import checked, dumps, refuse_constant
from .tasks import WHOLE

FORMATS = ("txt", "srt", "vtt", "tsv", "json")
# no-break and ideographic spaces belong to the text: French has one before "!"
_SPACE = re.compile(r"[^\S\u00a0\u2007\u202f\u3000]+")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")  # neither seen nor allowed in subtitles
# ideographs, kana and their punctuation, which are written without spaces; not Hangul
_CJK = re.compile(r"[\u2e80-\u30ff\u3190-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff]")


SEGMENT_KINDS = {
    "start": figure,
    "end": figure,
    "text": string,
    "translation": string | None,
    "avg_logprob": figure | None,
    "compression_ratio": figure | None,
    "temperature": figure,
    "no_speech": flag,
    "flags": several(string),
    "tokens": several(integer(0)) | None,
}
TRANSCRIPT_KINDS = {
    "segments": several(of_class("Segment", "a Segment")),
    "duration": real(0),
    "language": string | None,
    "task": string,
    "source": string | None,
    "warnings": several(string),
}


@checked_fields()
@dataclass
class Segment:
    """A stretch of a recording and what was heard in it.

    Args:
        start, end: seconds from the recording's start.
        text: the answer; empty where nothing was heard.
        translation: the second part of the answer of task transcribe+translate.
        avg_logprob: mean natural log-probability of the answer's tokens, the end token included.
        compression_ratio: of the text with zlib, as Whisper computes it; high where it repeats itself.
        temperature: of the attempt that was kept.
        no_speech: judged to hold no speech.
        flags: doubts that remain, such as "repetition".
        tokens: the answer's token ids.

    Raises:
        Phi4Error: ``start`` and ``end`` are not finite seconds in order.
    """

    start: float
    end: float
    text: str
    translation: str | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    temperature: float = 0.0
    no_speech: bool = False
    flags: tuple[str, ...] = ()
    tokens: list[int] | None = field(default=None, repr=False)

    def __post_init__(self):
        settle(self, SEGMENT_KINDS)
        self.start, self.end = float(self.start), float(self.end)
        self.tokens = None if self.tokens is None else list(self.tokens)
        if not 0 <= self.start <= self.end < math.inf:
            raise Phi4Error(f"a segment from {self.start:g} to {self.end:g} s, expected 0 <= start <= end")


@checked_fields()
@dataclass
class Transcript:
    """The segments of one recording, in order, and the formats that they can be written in.

    Args:
        segments: all of them, those without speech, too.
        duration: of the recording, in seconds.
        language: of the text, where the task says it.
        task: what was asked, one of ``transcription.tasks.TASKS``.
        source: the recording's name.
        warnings: what a person should know about the whole.

    Raises:
        Phi4Error: ``duration`` is not a finite number of seconds.
    """

    segments: list[Segment]
    duration: float
    language: str | None = None
    task: str = "transcribe"
    source: str | None = None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self):
        settle(self, TRANSCRIPT_KINDS)
        self.segments, self.warnings = list(self.segments), list(self.warnings)

    def __repr__(self):
        return f"Transcript({len(self.segments)} segments, {self.duration} s, text={shown(self.text)})"

    @property
    def text(self) -> str:
        """All that was said: segments joined by a space, or by nothing between Chinese or Japanese characters."""
        return _stitch(segment.text for segment in self.segments)

    @property
    def translation(self) -> str | None:
        """The translation that goes with the text, joined as ``text`` is; None where there is none."""
        found = [segment.translation for segment in self.segments if segment.translation is not None]
        return _stitch(found) if found else None

    def to_txt(self) -> str:
        """A line for each segment with text; after an empty line, the same of the translation.

        The answer of a task that takes the recording as a whole (summarize, ask) keeps its own lines.
        """
        line = str.strip if self.task in WHOLE else _one_line
        texts = [line(segment.text) for segment in self.segments]
        translations = [line(segment.translation or "") for segment in self.segments]
        blocks = ["".join(f"{text}\n" for text in block if text) for block in (texts, translations)]
        return "\n".join(block for block in blocks if block)

    @takes(max_line_width=integer(1) | None)
    def to_srt(self, max_line_width: int | None = None) -> str:
        """SubRip: a cue for each segment with text; a translation stands below its text.

        Args:
            max_line_width: most characters of a line; longer ones are wrapped at words, or anywhere in a text
                without spaces.
        """
        cues = enumerate(self._cues(max_line_width), start=1)
        return "".join(
            f"{number}\n{_timestamp(start, ',')} --> {_timestamp(end, ',')}\n{text}\n\n"
            for number, (start, end, text) in cues
        )

    @takes(max_line_width=integer(1) | None)
    def to_vtt(self, max_line_width: int | None = None) -> str:
        """WebVTT: as ``to_srt``, with ``&``, ``<`` and ``>`` escaped."""
        cues = (
            f"\n{_timestamp(start, '.')} --> {_timestamp(end, '.')}\n{_escaped(text)}\n"
            for start, end, text in self._cues(max_line_width)
        )
        return "WEBVTT\n" + "".join(cues)

    def to_tsv(self) -> str:
        """A table of all segments: start and end in milliseconds, text, and the translation if there is any."""
        translated = self.translation is not None
        rows = ["start\tend\ttext\ttranslation" if translated else "start\tend\ttext"]
        for segment in self.segments:
            row = [str(_milliseconds(segment.start)), str(_milliseconds(segment.end)), _one_line(segment.text)]
            rows.append("\t".join([*row, _one_line(segment.translation or "")] if translated else row))
        return "\n".join(rows) + "\n"

    def to_json(self) -> str:
        """Everything, as one JSON object; a segment a line. Numbers that are not finite are null."""
        whole = {"text": self.text}
        whole |= {} if self.translation is None else {"translation": self.translation}
        whole |= {each.name: getattr(self, each.name) for each in fields(self) if each.name != "segments"}
        rows = ",\n".join(dumps(asdict(segment)) for segment in self.segments)
        return f'{dumps(whole)[:-1]}, "segments": [\n{rows}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Transcript":
        """Read what ``to_json`` wrote. Keys that it does not know are ignored.

        Raises:
            Phi4Error: it is not such JSON.
        """
        try:
            whole = json.loads(text, parse_constant=refuse_constant)
        except (TypeError, ValueError, RecursionError) as error:
            raise Phi4Error(f"a transcript that is not JSON: {error}") from None
        values = checked(cls, whole, ("segments", "duration"), "a transcript")
        given = enumerate(values["segments"])
        rows = [
            checked(Segment, segment, ("start", "end", "text"), f"segment {index} of a transcript")
            for index, segment in given
        ]
        values["segments"] = [Segment(**row | {"flags": tuple(row.get("flags", ()))}) for row in rows]
        return cls(**values)

    @takes(format=choice(*FORMATS))
    def render(self, format: str, max_line_width: int | None = None) -> str:
        """The transcript in one of ``FORMATS``; ``max_line_width`` is for srt and vtt. Raises Phi4Error."""
        write: Callable[..., str] = getattr(self, f"to_{format}")
        return write(max_line_width) if format in ("srt", "vtt") else write()

    def save(self, path: str | Path, max_line_width: int | None = None) -> Path:
        """Write the transcript in the format that the name ends in: .txt, .srt, .vtt, .tsv or .json.

        ``max_line_width`` is for srt and vtt. Raises Phi4Error.
        """
        path = expanded(path)
        format = path.suffix.lower().removeprefix(".")
        if format not in FORMATS:
            raise Phi4Error(f"{path}: the name says no format, expected one that ends in .{', .'.join(FORMATS)}")
        text = self.render(format, max_line_width)
        try:
            with write_whole(path) as partial:
                partial.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
            raise Phi4Error(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
        return path

    def _cues(self, max_line_width: int | None) -> Iterator[tuple[int, int, str]]:
        """Start and end in milliseconds, and lines. No cue is empty, and none begins before the last one ends."""
        end = 0
        for segment in sorted(self.segments, key=lambda segment: segment.start):
            parts = [_one_line(part) for part in (segment.text, segment.translation or "")]
            lines = [line for part in parts if part for line in _wrapped(part, max_line_width)]
            if not lines:
                continue
            start = max(_milliseconds(segment.start), end)
            end = max(_milliseconds(segment.end), start + 1)
            yield start, end, "\n".join(lines)


def _stitch(texts: Iterable[str]) -> str:
    whole = ""
    for text in filter(None, map(str.strip, texts)):
        joined = not whole or (_CJK.match(whole[-1]) and _CJK.match(text[0]))
        whole += text if joined else f" {text}"
    return whole


def _one_line(text: str) -> str:
    return _SPACE.sub(" ", _CONTROL.sub("", text)).strip()


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _timestamp(milliseconds: int, mark: str) -> str:
    """hh:mm:ss,mmm with any number of hours."""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{mark}{milliseconds:03d}"
