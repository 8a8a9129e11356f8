"""What a person types, pastes or pipes into a chat, message by message."""

import select
import sys
from collections.abc import Container
from contextlib import suppress

import click

PROMPT, CONTINUED = ">>> ", "... "
AT_ONCE = 0.05  # seconds; nobody types a whole line in that time


class Messages:
    """Messages from standard input: a line each, or the lines that are pasted into a terminal at once.

    Terminals and GNU readline that know of bracketed paste give several lines as one; elsewhere, as with libedit, lines
    that follow at once belong together, up to one that begins with one of ``commands``.
    """

    def __init__(self, commands: Container[str]):
        self.terminal = sys.stdin.isatty()
        self._commands = commands
        self._held: str | None = None
        if self.terminal:
            with suppress(ImportError):  # Windows has none
                import readline  # noqa: F401 - input() edits lines once it is there

    def read(self) -> str:
        """The next message without white space around it.

        Raises EOFError at the end, KeyboardInterrupt for Ctrl-C, which gives up what was typed, and UnicodeDecodeError.
        """
        if self._held is not None:
            line, self._held = self._held, None
        else:
            line = self._line(PROMPT)
        lines = [line]
        while self.terminal and not self._is_command(lines[0]) and self._more_at_once():
            try:
                line = self._line(CONTINUED)
            except EOFError:
                break
            if self._is_command(line):
                self._held = line
                break
            lines.append(line)
        return "\n".join(lines).strip()

    def _is_command(self, line: str) -> bool:
        return line.strip().partition(" ")[0] in self._commands

    def _line(self, prompt: str) -> str:
        if not self.terminal:
            return input()
        if sys.stdout.isatty():
            return input(prompt)
        click.echo(prompt, nl=False, err=True)  # standard output gets the answers only
        return input()

    @staticmethod
    def _more_at_once() -> bool:
        with suppress(OSError, ValueError):  # Windows waits for sockets only
            return bool(select.select([sys.stdin], [], [], AT_ONCE)[0])
        return False
