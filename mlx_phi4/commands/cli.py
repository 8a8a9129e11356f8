"""What the commands share: options, prompts, and how errors, interruptions and closed pipes end them."""

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import Phi4Error, PromptError

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..generation.responses import GenerationResponse

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


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
    return _decorated(command, _SAMPLING)


def engine_options(command):
    """Add the options that say how a prompt is computed and kept; names are ``stream_generate``'s."""
    return _decorated(command, _ENGINE)


def _decorated(command, options):
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
    return (
        f"{last.mode}: prompt {last.prompt_tokens} tokens{reused}, {last.prompt_tps:.1f} a second; "
        f"answer {last.generation_tokens} tokens, {last.generation_tps:.1f} a second; "
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


def run(command: click.Command) -> None:
    """Run a command as a program: one line and exit code 2 for what a user can mend."""
    try:
        _prepare_output()
        # not command.main(): it answers an interruption with an empty line of its own
        with command.make_context(command.name or "mlx_phi4", sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except click.UsageError as error:
        _fail(f"{error.format_message()} (see --help)")
    except click.ClickException as error:
        _fail(error.format_message())
    except Phi4Error as error:
        _fail(str(error))
    except BrokenPipeError:
        # the reader went away, head for one: nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _discard_output()
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))


def _prepare_output() -> None:
    """Let any text be printed, whatever the terminal's encoding, and a closed stdout be an error like others.

    A closed standard input is an empty one: MLX takes a file that gets its number, 0, for one that cannot be opened.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115, for as long as the program runs
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _discard_output() -> None:
    """Keep the interpreter from trying the same failed write again on its way out."""
    if sys.stdout is None:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
