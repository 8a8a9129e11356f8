"""What a person sees of many files: a bar on a terminal, a line for each file elsewhere, and what went wrong."""

import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from ..terminal import say, say_error, shown
from .outputs import Job
from .transcript import Transcript

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from tqdm import tqdm

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} s of audio [{elapsed}, {remaining} left]"


class Progress:
    """Everything goes to standard error. ``quiet`` leaves failures only."""

    def __init__(self, quiet: bool, verbose: bool = False):
        self._quiet, self._verbose = quiet, verbose
        self._bar: tqdm | None = None
        self._heard: list[float] = []  # seconds of each file
        self._lengths: list[float] | None = None  # seconds of each file, once all are known
        self._files = self._count = 0  # that are through, of how many
        self._closed = False

    def start(self, jobs: list[Job], wanted: list[int]) -> None:
        """Show a bar for the wanted ones of these jobs, if there is someone to see it."""
        if self._quiet or not sys.stderr.isatty():
            return
        from tqdm import tqdm  # huggingface-hub's own

        self._heard, self._count = [0.0] * len(jobs), len(wanted)
        self._bar = tqdm(desc=f"0/{len(wanted)} files", bar_format=BAR, file=sys.stderr, leave=False)
        threading.Thread(target=self._measure, args=(jobs, wanted), daemon=True).start()

    def advance(self, index: int, seconds: float) -> None:
        """A file was heard up to here."""
        if self._bar is not None:
            self._heard[index] = max(self._heard[index], seconds)
            self._draw()

    def finish(self, index: int, seconds: float | None) -> None:
        """A file is through, and so long; None where it could not be read."""
        if self._bar is None:
            return
        self._files += 1
        self._heard[index] = seconds or 0.0
        if self._lengths is not None:
            self._lengths[index] = self._heard[index]
        self._bar.set_description(f"{self._files}/{self._count} files", refresh=False)
        self._draw()

    def report(self, job: Job, transcript: Transcript, warnings: list[str], again: bool = False) -> None:
        """A finished file's lines; ``again``: its outputs replaced those of another job."""
        name = job.found.name
        for warning in warnings:
            self.warn(f"{name}: {warning}")
        alone = self._bar is not None and self._count == 1
        if job.outputs and not self._quiet and (alone or self._verbose):
            self._say(transcript.to_txt().rstrip("\n"))
        count, doubtful = len(transcript.segments), sum(bool(segment.flags) for segment in transcript.segments)
        doubts = f", {doubtful} of them doubtful" if doubtful else ""
        pieces = f"{count} segment{'s' * (count != 1)}"
        where = f"; written to {_where(job)}{', which another job had made' if again else ''}" if job.outputs else ""
        self.note(f"{name}: done, {transcript.duration:.1f} s of audio in {pieces}{doubts}{where}")

    def note(self, line: str) -> None:
        """A file's line."""
        if not self._quiet:
            self._say(line)

    def warn(self, line: str) -> None:
        """What a person should know."""
        if not self._quiet:
            self._say(f"warning: {line}")

    def fail(self, line: str) -> None:
        """What went wrong with one file, in one line."""
        if self._bar is not None:
            self._bar.clear()
        say_error(line)

    def print(self, text: str) -> None:
        """A text for standard output."""
        if self._bar is not None:
            self._bar.clear()
        text = text if text.endswith("\n") else f"{text}\n"
        sys.stdout.write(shown(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def close(self) -> None:
        self._closed = True
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        say(line)

    def _draw(self) -> None:
        self._bar.total = None if self._lengths is None else round(sum(self._lengths))
        self._bar.update(round(sum(self._heard)) - self._bar.n)

    def _measure(self, jobs: list[Job], wanted: list[int]) -> None:
        """Seconds of all files as their headers tell, beside the work: time left is known when it is through."""
        from ..audio.reader import open_recording

        lengths = [0.0] * len(jobs)
        for index in wanted:
            if self._closed:
                return
            if jobs[index].found.is_file:
                # whoever transcribes the file says what is wrong with it
                with suppress(Exception), open_recording(jobs[index].found.path) as recording:
                    lengths[index] = recording.duration or 0.0
        self._lengths = lengths


def _where(job: Job) -> str:
    """The outputs of a recording in a few words: out/talk.txt, .srt."""
    first, *more = job.outputs.values()
    return ", ".join([str(first), *(path.suffix for path in more)])
