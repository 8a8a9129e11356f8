"""The command mlx_phi4.transcribe: many recordings to many files."""

import click
from click.core import ParameterSource

from .. import distributed
from ..errors import Phi4Error
from ..transcription.tasks import TASKS
from ..transcription.transcript import FORMATS
from . import cli, ranks
from .adapters import adapter_options, check_adapters

OF_FILES = (
    "output_dir", "output_template", "stdout", "overwrite", "recursive", "clip_timestamps", "partial", "jobs",
    "verbose", "plot",
)  # fmt: skip
OF_LIVE = ("rate", "channels", "device")


class _Command(click.Command):
    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """mlx_whisper's --verbose has True or False behind it; any other word there is a file's name."""
        plain = []
        for index, word in enumerate(args):
            before = args[index - 1] if index else ""
            if before == "--verbose" and word.lower() in ("true", "false"):
                plain = plain if word.lower() == "true" else plain[:-1]
            else:
                plain.append(word)
        return super().parse_args(context, plain)


@cli.command("mlx_phi4.transcribe", cls=_Command)
@click.argument("sources", nargs=-1, metavar="FILE|FOLDER|-...")
@cli.model_option()
@adapter_options
@click.option("--task", type=click.Choice(TASKS), default="transcribe", show_default=True, help="What to do.")
@click.option("--to", metavar="LANGUAGE", help="Language of a translation, French or fr.  [default: English]")
@click.option("--prompt", "-p", help="Asked instead of the task's own prompt.")
@click.option("--context", metavar="TEXT", help="Names and jargon that may occur.")
@click.option(
    "--format",
    "--output-format",
    "-f",
    type=click.Choice([*FORMATS, "jsonl", "all"]),
    default="txt",
    show_default=True,
    help="Of the outputs; jsonl with --live, json and all without.",
)
@click.option("--output-dir", "-o", help="Folder of the outputs.  [default: the current one]")
@click.option(
    "--output-template",
    "--output-name",
    default="{filename}",
    show_default=True,
    help="Name of the outputs; {filename}, {parent}, {date} and {index} are filled in.",
)
@click.option("--stdout", is_flag=True, help="Print the texts instead of writing files.")
@click.option("--max-line-width", type=int, help="Characters of a line in srt and vtt.")
@click.option("--overwrite", is_flag=True, help="Do again what was done before; replace what others wrote.")
@click.option("--recursive", "-r", is_flag=True, help="Look into the folders of folders.")
@click.option("--segment-seconds", type=float, help="Longest piece, at most 40.  [default: usually 30]")
@click.option("--pause", type=float, help="Least silence in seconds between pieces.  [default: usually 0.5]")
@click.option("--clip-timestamps", metavar="START,END,...", help="Parts to hear, in seconds or mm:ss.")
@click.option("--partial", is_flag=True, help="Take what a truncated recording still holds, with a warning.")
@click.option("--batch-size", default=8, show_default=True, help="Pieces decoded together, of all files.")
@click.option("--max-tokens", "-m", type=int, help="Most tokens of an answer.  [default: by the piece's length]")
@click.option(
    "--temperatures",
    "--temperature",
    default="0,0.2,0.4,0.6,0.8,1",
    show_default=True,
    help="One attempt each, until an answer passes the guards.",
)
@click.option("--compression-ratio-threshold", default=2.4, show_default=True, help="Above it: repetition.")
@click.option("--logprob-threshold", default=-1.0, show_default=True, help="Mean log-probability below it: doubt.")
@click.option("--seed", default=0, show_default=True, help="Of the attempts above temperature 0.")
@click.option("--jobs", default=2, show_default=True, help="Files read at once, ahead of the model.")
@click.option("--plot", metavar="FILE.png", help="Draw the only recording: wave, segments, confidence.")
@click.option("--live", is_flag=True, help="Hear the microphone, or what arrives on -, and print as it is said.")
@click.option("--rate", type=int, help="With --live: Hz of raw samples on standard input.  [default: 16000]")
@click.option("--channels", type=int, help="With --live: channels of raw samples.  [default: 1]")
@click.option("--device", help="With --live: the microphone, a number or a part of its name.")
@click.option("--verbose", is_flag=True, help="Show the texts on standard error, too.")
@click.option("--quiet", is_flag=True, help="Only errors on standard error.")
@ranks.parallel_option("data", "tensor")
def main(sources, temperatures, adapters, parallel, live, rate, channels, device, **options):
    """Transcribe or translate recordings, or ask about them, with Phi-4-multimodal.

    With --live: what is being said, as text on standard output when a pause ends it.
    """
    options["temperatures"] = _numbers(temperatures)
    check_adapters(adapters, options["adapter"], options["quiet"])
    if live:
        _refuse_given(OF_FILES, "go without --live: its text is printed")
        if distributed.is_launched():
            raise Phi4Error("--live hears one stream of sound: it runs without mlx.launch")
        from ..transcription.listening import listen

        options = {name: value for name, value in options.items() if name not in OF_FILES}
        sound = {"rate": rate, "channels": channels, "device": device}
        failed = listen(_heard(sources), adapters=adapters, **sound, **options)
    else:
        _refuse_given(OF_LIVE, "go with --live")
        if not sources:
            raise click.UsageError("Missing argument 'FILE|FOLDER|-...' (or --live).")
        from ..transcription.files import transcribe_files

        model, revision, quiet = (options[name] for name in ("model", "revision", "quiet"))
        ranks.prepare(model, parallel, revision=revision, adapters=adapters, quiet=quiet)
        failed = transcribe_files(sources, adapters=adapters, **options).failed
    if failed:
        raise click.exceptions.Exit(1)


def _heard(sources: tuple[str, ...]) -> str | None:
    """What --live hears: None is the microphone."""
    if len(sources) > 1:
        raise click.UsageError("--live hears one thing: the microphone, or standard input (-).")
    return sources[0] if sources else None


def _refuse_given(names: tuple[str, ...], why: str) -> None:
    """Options that would have no effect. Raises UsageError."""
    context = click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"{', '.join('--' + name.replace('_', '-') for name in given)} {why}.")


def _numbers(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError:
        raise Phi4Error(f"temperatures are {given!r}, expected numbers such as 0,0.2,0.4") from None


def command() -> None:
    """The console script."""
    cli.run(main)
