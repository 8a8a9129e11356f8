"""What a person sees while somebody speaks: final text on standard output as it grows, the rest on standard error."""

import shutil
import sys
from dataclasses import asdict

from ..errors import Phi4Error
from ..terminal import say, say_error, shown
from .json_form import dumps
from .live_events import Behind, Event, Failed, Heard, Provisional
from .transcript import Segment, Transcript

LIVE_FORMATS = ("txt", "srt", "vtt", "tsv", "jsonl")
CLEAR = "\r\x1b[K"  # the line that the cursor is in


class LiveOutput:
    """Writes each segment whole as soon as it is heard; ``failed`` counts pieces that could not be computed."""

    def __init__(self, format: str, max_line_width: int | None = None, quiet: bool = False):
        """Raises Phi4Error: a bad value."""
        if format not in LIVE_FORMATS:
            raise Phi4Error(f"format is {format!r}, with --live expected {', '.join(LIVE_FORMATS)}")
        if max_line_width is not None and (format not in ("srt", "vtt") or max_line_width < 1):
            raise Phi4Error("--max-line-width goes with the formats srt and vtt, and is at least 1")
        self._format, self._width, self._quiet = format, max_line_width, quiet
        self._line = not quiet and sys.stderr.isatty()  # whether what is provisional has a line that is written over
        self._cues = self.segments = self.failed = 0

    def begin(self) -> None:
        """What stands before all segments."""
        if self._format == "vtt":
            self._write("WEBVTT\n")
        elif self._format == "tsv":
            self._write("start\tend\ttext\n")

    def told(self, event: Event) -> None:
        """Show an event of ``live``."""
        if isinstance(event, Heard):
            self.segments += 1
            self._clear()
            self._write(self.rendered(event.segment))
        elif isinstance(event, Failed):
            self.failed += 1
            self._clear()
            say_error(f"{event.start:.1f} to {event.end:.1f} s could not be heard: {event.error}")
        elif self._quiet:
            return
        elif isinstance(event, Provisional):
            self._provisional(event.text)
        elif isinstance(event, Behind):
            self._clear()
            say(f"[{event.seconds:.1f} s behind]" if event.seconds else "[caught up]")

    def rendered(self, segment: Segment) -> str:
        """A segment in the format; empty where it holds nothing that the format shows."""
        if self._format == "jsonl":
            return dumps(asdict(segment)) + "\n"
        whole = Transcript([segment], segment.end)
        if self._format == "tsv":
            return whole.to_tsv().partition("\n")[2]
        if self._format == "txt":
            return " ".join(whole.to_txt().split()) + "\n" if whole.to_txt() else ""
        cue = whole.render(self._format, self._width)
        if self._format == "vtt":
            return cue.removeprefix("WEBVTT\n")
        self._cues += bool(cue)
        return f"{self._cues}\n{cue.partition(chr(10))[2]}" if cue else ""

    def note(self, line: str) -> None:
        """A line for a person."""
        if not self._quiet:
            self._clear()
            say(line)

    def finish(self) -> None:
        """Leave the terminal as it was."""
        self._clear()

    def _provisional(self, text: str) -> None:
        if not self._line:
            say(f"... {text}")
            return
        width = shutil.get_terminal_size().columns - 5
        text = shown(text).replace("\n", " ")
        sys.stderr.write(f"{CLEAR}... {text if len(text) <= width else '…' + text[1 - width :]}")
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._line:
            sys.stderr.write(CLEAR)
            sys.stderr.flush()

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(shown(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()
