"""What all commands share: how errors, interruptions and closed pipes end them."""

import os
import sys

import click

from .errors import Phi4Error

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(command: click.Command) -> None:
    """Run a command as a program: one line and exit code 2 for what a user can mend."""
    try:
        command.main(standalone_mode=False)
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


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _discard_output() -> None:
    """Keep the interpreter from trying the same failed write again on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
