"""What the commands share: options, prompts, and how errors, interruptions and closed pipes end them."""

import errno
import importlib.metadata
import io
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import distributed
from ..errors import MediaError, Phi4Error, PromptError
from ..files import expanded, taken, why_not_file
from ..terminal import say_error
from ..transcription.transcribe import MODEL
from . import habits

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..generation.responses import GenerationResponse

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _version(context: click.Context, _, asked: bool) -> None:
    if not asked:
        return
    try:
        version = importlib.metadata.version("mlx-phi4")
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        version = "(not installed)"
    click.echo(f"mlx_phi4 {version}")
    context.exit()


version_option = click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)


def command(name: str, cls: type[click.Command] = click.Command, **settings) -> Callable:
    """``click.command`` with what all of ours have: --version, and option names that may be spelled with _."""

    def decorate(function):
        made = click.command(name=name, cls=cls, context_settings=habits.SETTINGS | settings)
        return made(version_option(function))

    return decorate


def not_empty(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The callback of an option that may be left out, but not be empty."""
    if value is not None and not value.strip():  # "$MODEL" where the variable is not set; the current folder is .
        raise click.BadParameter("is empty", context, parameter)
    return value


def model_option(required: bool = False):
    """--model and --revision: what ``load`` takes."""
    given = {"callback": not_empty} | ({"required": True} if required else {"default": MODEL, "show_default": True})
    return lambda function: decorated(
        function,
        (
            click.option("--model", **given, help="Checkpoint folder or hub id."),
            click.option("--revision", help="Branch, tag or commit of a hub id."),
        ),
    )


_SAMPLING = (
    click.option("--max-tokens", "-m", default=256, show_default=True, help="Most tokens to generate."),
    click.option("--temperature", "--temp", default=0.0, show_default=True, help="0: the most likely token."),
    click.option("--top-p", default=1.0, show_default=True, help="Keep the likeliest tokens of this much probability."),
    click.option("--top-k", default=0, show_default=True, help="Keep so many of the likeliest tokens; 0: all."),
    click.option("--min-p", default=0.0, show_default=True, help="Keep tokens above this share of the likeliest."),
    click.option("--min-tokens-to-keep", default=1, show_default=True, help="Least tokens that --min-p leaves."),
    click.option("--xtc-probability", default=0.0, show_default=True, help="How often to exclude top choices."),
    click.option("--xtc-threshold", default=0.1, show_default=True, help="What makes a top choice, 0 to 0.5."),
    click.option("--repetition-penalty", type=float, help="Above 1: repeat less."),
    click.option("--repetition-context-size", default=20, show_default=True, help="Tokens that it looks back."),
    click.option("--presence-penalty", type=float, help="Subtracted from tokens that occurred."),
    click.option("--frequency-penalty", type=float, help="Subtracted from tokens as often as they occurred."),
    click.option("--min-tokens", default=0, show_default=True, help="No end before so many tokens."),
    click.option("--stop", multiple=True, help="End before this text; repeatable."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
)
_ENGINE = (
    click.option("--prefill-step-size", default=2048, show_default=True, help="Prompt tokens computed at once."),
    click.option("--kv-bits", type=int, help="Keep keys and values in 8 or 4 bits."),
    click.option("--kv-group-size", default=64, show_default=True, help="Values that share a scale with --kv-bits."),
    click.option("--quantized-kv-start", default=0, show_default=True, help="Tokens before --kv-bits begins."),
    click.option("--max-kv-size", type=int, help="Keep the first 4 and the last tokens, so many in all."),
    click.option(
        "--rope",
        type=click.Choice(["auto", "long"]),
        default="auto",
        show_default=True,
        help="auto: exact; a chat that grows past 4096 tokens is computed again once. long: the long table from the "
        "start, no such pause, but short prompts are answered a little differently than the reference does.",
    ),
)


def sampling_options(command):
    """Add the options that say how tokens are chosen; names are ``stream_generate``'s."""
    return decorated(command, _SAMPLING)


def engine_options(command):
    """Add the options that say how a prompt is computed and kept; names are ``stream_generate``'s."""
    return decorated(command, _ENGINE)


def decorated(command, options):
    """Add options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def prefill_progress(quiet: bool):
    """A callback that shows how much of a long prompt is done, on a terminal only; None where nobody looks."""
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\r" if done < total else "\r" + " " * 40 + "\r"
        click.echo(f"prompt {done} of {total} tokens{end}" if done < total else end, nl=False, err=True)

    return show


def statistics(last: "GenerationResponse") -> str:
    """What an answer cost, in a line."""
    reused = f" ({last.reused_tokens} from the cache)" if last.reused_tokens else ""
    drafted = last.accepted_tokens + last.rejected_tokens
    right = f" ({last.accepted_tokens} of {drafted} drafted ones right)" if drafted else ""
    return (
        f"{last.mode}: prompt {last.prompt_tokens} tokens{reused}, {last.prompt_tps:.1f} a second; "
        f"answer {last.generation_tokens} tokens{right}, {last.generation_tps:.1f} a second; "
        f"peak memory {last.peak_memory:.2f} GB"
    )


def read_prompt(prompt: str | None) -> str:
    """The prompt of a command: as given, or standard input for '-'."""
    if prompt != "-":
        return prompt or ""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not UTF-8 text: {error}") from None


def check_media(paths: Iterable[str | Path]) -> list[Path | str]:
    """The paths of media with ``~`` expanded, if all are there: found out before a model is asked for.

    "-" stays as it is: standard input.

    Raises MediaError.
    """
    from ..sources import refuse_address

    for path in paths:
        refuse_address(str(path))
        if not str(path).strip():  # not the current folder, as Path has it
            raise MediaError("the path of a picture or a recording is empty")
        if path != "-" and (reason := why_not_file(expanded(path))):
            raise MediaError(f"{path}: {reason}")
    return [path if path == "-" else expanded(path) for path in paths]


def check_options(options: dict) -> None:
    """Refuse bad options of an answer before a model is asked for. Raises Phi4Error."""
    from ..generation.options import GenerationOptions

    known = {each.name for each in fields(GenerationOptions)}
    chosen = GenerationOptions(**{name: value for name, value in options.items() if name in known})
    if chosen.grammar is not None:
        from ..generation.structured import check

        check(chosen.grammar)


def check_output(path: Path, ours: Callable[[Path], bool], overwrite: bool) -> None:
    """Refuse to replace what this program did not write. Raises Phi4Error."""
    if not overwrite and taken(path) and not ours(path):
        raise Phi4Error(f"{path}: is there already and was not written by this command; --overwrite replaces it")


def run(command: click.Command) -> None:
    """Run a command as a program: one line and exit code 2 for what a user can mend.

    Of several processes that ``mlx.launch`` started one says it, and all end so.
    """
    try:
        _run(command)
    except SystemExit as stop:
        distributed.leave(stop.code if isinstance(stop.code, int) else 0)
        raise
    except BaseException:
        if distributed.is_lost():  # whatever broke by it: one line was said
            sys.exit(distributed.FAILED)
        distributed.leave(1)
        raise
    distributed.leave(0)


def _run(command: click.Command) -> None:
    try:
        _prepare_streams()
        # not command.main(): it answers an interruption with an empty line of its own
        with command.make_context(command.name or "mlx_phi4", sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except click.UsageError as error:
        _fail(habits.answer(error))
    except click.ClickException as error:
        _fail(error.format_message())
    except Phi4Error as error:
        _fail(str(error))
    except BrokenPipeError:
        # the reader went away, head for one: nothing more can be said to it
        _discard_output()
        sys.exit(1)
    except OSError as error:
        _discard_output()
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))


def _prepare_streams() -> None:
    """Let any text be printed, whatever the terminal's encoding; make closed streams harmless, but stdout an error.

    A closed standard input is an empty one, and a closed standard error hears nothing. Their numbers are taken first:
    MLX takes a file that gets number 0 for one that cannot be opened, and what is meant for number 2 would be written
    into a file that got it.
    """
    closed = [number for number in range(3) if _is_closed(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115, for as long as the program runs
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    elif sys.stderr is sys.__stderr__:
        sys.stderr = io.TextIOWrapper(_Patient(), sys.stderr.encoding, "backslashreplace", line_buffering=True)
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


class _Patient(io.RawIOBase):
    """Standard error that may break: no work is lost because nobody hears of it any more."""

    name = "<stderr>"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return os.isatty(2)

    def write(self, data) -> int:
        with suppress(OSError):
            left = memoryview(data)
            while left:
                left = left[os.write(2, left) :]
        return len(data)


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _fail(message: str) -> None:
    if not distributed.fails(message):
        say_error(message)
    sys.exit(2)


def _discard_output() -> None:
    """Keep the interpreter from trying the same failed write again on its way out."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
