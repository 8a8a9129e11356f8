"""Many recordings to many files: batches across files, failures that stop nobody else, several machines."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..distributed import join
from ..errors import Phi4Error
from ..files import expanded
from ..loading import check_adapters, model_and_processor
from ..ranks.star import Ranks
from ..ranks.together import agreed_files, check_same
from ..ranks.work import Lost, share_out
from .chunking import Failure
from .outputs import (
    OUTPUT_TEMPLATE,
    Found,
    Job,
    check_formats,
    find_recordings,
    plan_outputs,
    prepare_folder,
    write_outputs,
)
from .plot import check_plot, plot_transcript
from .progress import Progress
from .records import Standing, job_of, run_of
from .transcriber import Transcriber
from .transcript import Transcript

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4

LOST = {Standing.FOREIGN, Standing.EDITED}  # what nobody could make again


@dataclass
class Summary:
    """What became of the recordings: counts, milliseconds of sound transcribed, milliseconds that it took."""

    done: int = 0
    skipped: int = 0  # their outputs were there already
    failed: int = 0
    audio: int = 0
    elapsed: int = 0

    def __str__(self):
        total = self.done + self.skipped + self.failed
        counts = [f"{total} file{'s' * (total != 1)}", f"{self.done} done"]
        counts += [f"{self.skipped} done before"] if self.skipped else []
        counts += [f"{self.failed} failed"] if self.failed else []
        return f"{', '.join(counts)}; {self.audio / 1000:.1f} s of audio in {self.elapsed / 1000:.1f} s"

    def add(self, milliseconds: int | None) -> None:
        """One recording more: so much sound, or None where it failed."""
        self.done += milliseconds is not None
        self.failed += milliseconds is None
        self.audio += milliseconds or 0


def transcribe_files(
    sources: str | Path | Sequence[str | Path],
    model: "str | Path | Phi4",
    processor: "Processor | None" = None,
    *,
    format: str = "txt",
    revision: str | None = None,
    adapters: dict[str, str | Path] | None = None,
    output_dir: str | Path | None = None,
    output_template: str = OUTPUT_TEMPLATE,
    stdout: bool = False,
    max_line_width: int | None = None,
    overwrite: bool = False,
    recursive: bool = False,
    jobs: int = 2,
    verbose: bool = False,
    quiet: bool = True,
    plot: str | Path | None = None,
    **options,
) -> Summary:
    """Transcribe files and folders, and write each recording's outputs as soon as it is through.

    A recording that cannot be read, or an output that cannot be written, gets a line on standard error, and the rest go
    on. Under ``mlx.launch`` the files are shared out to the processes.

    Args:
        sources: a file or folder or several; "-" is standard input.
        model, processor: as in ``transcribe``; loaded only if there is work.
        revision: branch, tag or commit of a hub id.
        adapters: as in ``load``, of which ``adapter`` among the options may be one.
        format: txt, srt, vtt, tsv, json or all.
        output_dir: None is the current folder.
        output_template: name of the outputs, with {filename}, {parent}, {date} and {index}.
        stdout: print the texts instead of writing files, as is done for standard input alone.
        max_line_width: characters of a line in srt and vtt.
        overwrite: do what was done before again, and replace what was not written here.
        recursive: look into the folders of folders; theirs are made in ``output_dir``, too.
        jobs: recordings that are read at once, ahead of the model.
        verbose: show the texts on standard error, too, as is done on a terminal for a single recording.
        quiet: only failures on standard error.
        plot: where to draw the only recording, see ``plot.plot_transcript``; also where it was done before.
        options: the keywords of ``Transcriber``.

    Raises:
        Phi4Error: a bad value, outputs that would meet, or a model that cannot be loaded; before any work.
    """
    began = time.perf_counter()
    if jobs < 1:
        raise Phi4Error(f"jobs is {jobs}, expected at least 1")
    transcriber = Transcriber(**options)
    formats = check_formats(format, max_line_width)
    found, problems = find_recordings([sources] if isinstance(sources, (str, Path)) else sources, recursive)
    if plot is not None:
        plot = _check_plot(plot, found, problems)
    planned = _planned(found, formats, output_dir, output_template, stdout)
    check_adapters(adapters or {})
    run = run_of(transcriber, model, revision, max_line_width, adapters)
    planned = [replace(job, made_by=job_of(run, job.found.path)) if job.outputs else job for job in planned]
    ranks = join("data")
    sizes, before, refused = _shared(planned, overwrite, ranks)
    show, summary = Progress(quiet, verbose), Summary()
    drawn = plot is not None and bool(before)  # the only recording was done before: it is only drawn
    if drawn:
        sizes, before = [job.found.size for job in before], []

    def deliver(job: Job, transcript: Transcript) -> None:
        if plot is not None:
            plot_transcript(transcript, job.found.path, plot)
        if drawn:
            return
        if job.outputs:
            write_outputs(transcript, job, max_line_width)
        else:
            show.print(transcript.render(formats[0], max_line_width))

    if any(size is not None for size in sizes):
        check_same(ranks, model, revision)
        how = {"revision": revision, "adapters": adapters, "quiet": quiet}
        loaded = ranks.settle(lambda: model_and_processor(model, processor, **how))
    if ranks.rank == 0:
        problems += [_refusal(job) for job in refused]
        _announce(problems, before, transcriber.question.warnings, show)
        summary.failed, summary.skipped = len(problems), len(before)
    mine = [job for job, size in zip(planned, sizes, strict=True) if size is not None]
    if mine:
        show.start(planned, [index for index, size in enumerate(sizes) if size is not None])
        results = share_out(ranks, sizes, lambda order: _run(transcriber, loaded, planned, order, jobs, show, deliver))
        _count(results, planned, summary, show, len(mine))
    summary.elapsed = round(1000 * (time.perf_counter() - began))
    if ranks.rank == 0:
        show.note(str(summary))
    summary = Summary(*ranks.gather(astuple(summary))[0])
    ranks.gather(None)  # mlx.launch ends the others with the first that fails: all say first what they have to say
    return summary


def _check_plot(plot: str | Path, found: list[Found], problems: list[str]) -> Path:
    """Raises Phi4Error: it cannot be drawn, or is not of one file."""
    if len(found) + len(problems) != 1 or (found and not found[0].is_file):
        raise Phi4Error("--plot draws one recording, which is a file")
    return check_plot(plot)


def _planned(
    found: list[Found], formats: tuple[str, ...], output_dir: str | Path | None, template: str, stdout: bool
) -> list[Job]:
    """The jobs, and a folder that their outputs can be written to."""
    if stdout or ([each.path for each in found] == [None] and output_dir is None and template == OUTPUT_TEMPLATE):
        if len(formats) > 1:
            raise Phi4Error("standard output takes one format, not all")
        return [Job(each, {}) for each in found]
    folder = expanded(output_dir or ".")
    jobs = plan_outputs(found, formats, folder, template)
    if jobs:
        prepare_folder(folder)
    return jobs


def _announce(problems: list[str], before: list[Job], warnings: Sequence[str], show: Progress) -> None:
    """What can be said before any work."""
    for line in problems:
        show.fail(line)
    for job in before:
        changed = " and changed since" if Standing.EDITED in job.look().values() else ""
        show.note(f"{job.found.name}: done before{changed} (--overwrite does it again)")
    for warning in warnings:
        show.warn(warning)


def _refusal(job: Job) -> str:
    """Why a job's outputs are not written."""
    path = next((path for path, found in job.look().items() if found in LOST), next(iter(job.outputs.values())))
    return f"{job.found.name}: {path} is there and is not known to be of this program's making; --overwrite replaces it"


def _shared(planned: list[Job], overwrite: bool, ranks: Ranks) -> tuple[list[int | None], list[Job], list[Job]]:
    """The sizes of the jobs that are to be done, None for others: those that were done before, and those whose outputs
    would replace what is not ours.

    All processes decide alike.
    """
    looks = [set() if overwrite else set(job.look().values()) for job in planned]
    finished = [bool(look) and look <= {Standing.SAME, Standing.EDITED} for look in looks]
    refused = [bool(look & LOST) and not done for look, done in zip(looks, finished, strict=True)]
    if ranks.size > 1:
        if any(job.found.path is None for job in planned):
            raise Phi4Error("standard input cannot be shared out to several processes")
        # the same files may lie under another path on another machine
        names = [f"{job.found.folder / job.found.path.name} {job.found.size}" for job in planned]
        finished, refused = agreed_files(ranks, names, [finished, refused])
    before = [job for job, done in zip(planned, finished, strict=True) if done]
    others = [job for job, done, other in zip(planned, finished, refused, strict=True) if other and not done]
    out = [done or other for done, other in zip(finished, refused, strict=True)]
    return [None if left_out else job.found.size for job, left_out in zip(planned, out, strict=True)], before, others


def _run(
    transcriber: Transcriber,
    loaded: tuple,
    planned: list[Job],
    order: Iterable[int],
    jobs: int,
    show: Progress,
    deliver: Callable[[Job, Transcript], None],
) -> Iterator[tuple[int, int | None]]:
    """Transcribe files and hand out each one's transcript -> (index, milliseconds of sound), None where it failed."""
    sources = [sys.stdin.buffer.read() if job.found.path is None else job.found.path for job in planned]
    with closing(transcriber(*loaded, sources, jobs=jobs, order=order, progress=show.advance)) as results:
        for index, result in results:
            job, name = planned[index], planned[index].found.name
            if isinstance(result, Failure):
                show.finish(index, None)
                show.fail(result.line(name))
                yield index, None
                continue
            show.finish(index, result.duration)
            again = Standing.OTHER in job.look().values()
            try:
                deliver(job, result)
            except Phi4Error as error:
                show.fail(f"{name}: {error}")
                yield index, None
            else:
                warnings = list(result.warnings[len(transcriber.question.warnings) :])
                show.report(job, result, warnings, again=again)
                yield index, round(1000 * result.duration)


def _count(
    results: Iterator[tuple[int, "int | Lost | None"]], planned: list[Job], summary: Summary, show: Progress, count: int
) -> None:
    """Add up what became of the files, those of other processes, too."""
    try:
        for index, milliseconds in results:
            if isinstance(milliseconds, Lost):
                show.fail(f"{planned[index].found.name}: {milliseconds}; the same command does it")
                milliseconds = None
            summary.add(milliseconds)
    except KeyboardInterrupt:
        show.close()
        show.note(f"stopped: {summary.done} of {count} files are done, the same command goes on with the rest")
        raise
    finally:
        show.close()
