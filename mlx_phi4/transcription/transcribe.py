"""Speech to text, subtitles and translations: from any recording, and the command for many of them."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..commands import cli
from ..errors import MediaError, Phi4Error
from .tasks import TASKS
from .transcript import FORMATS

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4
    from .transcript import Transcript

MODEL = "microsoft/Phi-4-multimodal-instruct"


def transcribe(
    source: Any,
    model: "str | Path | Phi4" = MODEL,
    *,
    processor: "Processor | None" = None,
    task: str = "transcribe",
    to: str | None = None,
    prompt: str | None = None,
    context: str | None = None,
    segment_seconds: float | None = None,
    batch_size: int = 8,
    clip_timestamps: str | list | None = None,
    progress: Callable[[float], None] | None = None,
    **options,
) -> "Transcript":
    """Transcribe, translate, summarize or answer a recording of any length.

    Args:
        source: a path, bytes, (array, rate in Hz), or an array (samples,) at 16 kHz.
        model: a folder or a hub id, which stays loaded for the next call; or a loaded model, with its ``processor``.
        task: transcribe, translate, transcribe+translate, summarize or ask.
        to: language of a translation by English name or code; None is English.
        prompt: used instead of the task's own.
        context: names and terms that may occur.
        segment_seconds: longest piece that is decoded at once, at most 40; None is the model's own limit, usually 30.
        batch_size: pieces decoded together; it changes the speed, not the text.
        clip_timestamps: parts of the recording: "start,end,..." in seconds or mm:ss, or a list of numbers or pairs.
        progress: told the seconds of the recording that are decoded.
        options: the other keywords of ``Transcriber``: ``pause``, ``max_tokens``, ``temperatures``,
            ``compression_ratio_threshold``, ``logprob_threshold``, ``seed``.

    Raises:
        Phi4Error: a bad value, recording or model, in one line.
    """
    from ..kept_model import model_and_processor
    from .chunking import Failure
    from .transcriber import Transcriber

    options |= {"task": task, "to": to, "prompt": prompt, "context": context, "clip_timestamps": clip_timestamps}
    transcriber = Transcriber(segment_seconds=segment_seconds, batch_size=batch_size, **options)
    source = _with_rate(source)
    loaded = model_and_processor(model, processor)
    told = (lambda index, seconds: None) if progress is None else (lambda index, seconds: progress(seconds))
    with closing(transcriber(*loaded, [source], progress=told)) as results:
        [(_, result)] = results
    if isinstance(result, Failure):
        raise result.error
    return result


def _with_rate(source: Any) -> Any:
    """A bare array is taken for 16 kHz."""
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, tuple, list)):
        return source
    import numpy as np

    from ..audio.reader import SAMPLE_RATE

    array = np.asarray(source)
    if array.ndim != 1:
        raise MediaError(f"audio of type {type(source).__name__}: expected a path, bytes, (array, rate) or (samples,)")
    return array, SAMPLE_RATE


def _numbers(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError:
        raise Phi4Error(f"temperatures are {given!r}, expected numbers such as 0,0.2,0.4") from None


@click.command(name="mlx_phi4.transcribe")
@click.argument("sources", nargs=-1, required=True, metavar="FILE|FOLDER|-...")
@click.option("--model", default=MODEL, show_default=True, help="Checkpoint folder or hub id.")
@click.option("--task", type=click.Choice(TASKS), default="transcribe", show_default=True, help="What to do.")
@click.option("--to", metavar="LANGUAGE", help="Language of a translation, French or fr.  [default: English]")
@click.option("--prompt", "-p", help="Asked instead of the task's own prompt.")
@click.option("--context", metavar="TEXT", help="Names and jargon that may occur.")
@click.option(
    "--format", "-f", type=click.Choice([*FORMATS, "all"]), default="txt", show_default=True, help="Of the outputs."
)
@click.option("--output-dir", "-o", help="Folder of the outputs.  [default: the current one]")
@click.option(
    "--output-template",
    default="{filename}",
    show_default=True,
    help="Name of the outputs; {filename}, {parent}, {date} and {index} are filled in.",
)
@click.option("--stdout", is_flag=True, help="Print the texts instead of writing files.")
@click.option("--max-line-width", type=int, help="Characters of a line in srt and vtt.")
@click.option("--overwrite", is_flag=True, help="Do again what was done before.")
@click.option("--recursive", "-r", is_flag=True, help="Look into the folders of folders.")
@click.option("--segment-seconds", type=float, help="Longest piece, at most 40.  [default: usually 30]")
@click.option("--pause", type=float, help="Least silence in seconds between pieces.  [default: usually 0.5]")
@click.option("--clip-timestamps", metavar="START,END,...", help="Parts to hear, in seconds or mm:ss.")
@click.option("--batch-size", default=8, show_default=True, help="Pieces decoded together, of all files.")
@click.option("--max-tokens", "-m", type=int, help="Most tokens of an answer.  [default: by the piece's length]")
@click.option(
    "--temperatures",
    default="0,0.2,0.4,0.6,0.8,1",
    show_default=True,
    help="One attempt each, until an answer passes the guards.",
)
@click.option("--compression-ratio-threshold", default=2.4, show_default=True, help="Above it: repetition.")
@click.option("--logprob-threshold", default=-1.0, show_default=True, help="Mean log-probability below it: doubt.")
@click.option("--seed", default=0, show_default=True, help="Of the attempts above temperature 0.")
@click.option("--jobs", default=2, show_default=True, help="Files read at once, ahead of the model.")
@click.option("--quiet", is_flag=True, help="Only errors on standard error.")
def main(sources, temperatures, **options):
    """Transcribe or translate recordings, or ask about them, with Phi-4-multimodal."""
    from .files import transcribe_files

    summary = transcribe_files(sources, temperatures=_numbers(temperatures), **options)
    if summary.failed:
        raise click.exceptions.Exit(1)


def command() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    command()
