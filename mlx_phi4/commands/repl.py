"""The terminal side of a chat: lines in, commands, the answer as it comes, and Ctrl-C.

Standard output gets answers only; everything else goes to standard error.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import Phi4Error, PromptError
from ..generation.thoughts import Thoughts
from . import cli

if TYPE_CHECKING:
    from ..generation.chat import Chat

PROMPT = ">>> "
DIM, PLAIN = "\x1b[2m", "\x1b[22m"
# what a terminal would obey: control characters but for tab and line feed, and C1's
CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)} | {13: None}

HELP = """\
/image PATH    attach a picture to your next message
/audio PATH    attach a recording to your next message
/clear         forget the conversation and what is attached
/system TEXT   replace the system message; without TEXT, show it
/save FILE     write the conversation as JSON
/help          this list
/exit          end (as Ctrl-D does)
//...          a message that begins with /
Ctrl-C stops an answer."""


class Screen:
    """Prints one answer as it comes, unwrapped; colours and protection from control characters on a terminal only."""

    def __init__(self, hide_thinking: bool):
        self._hide = hide_thinking
        self._terminal = sys.stdout.isatty()
        self._dims = self._terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._thoughts = Thoughts()
        self._dimmed = self._skipping = False
        self.hidden = self.shown = False

    def write(self, piece: str) -> None:
        """Show a piece of the answer."""
        self._show(self._thoughts.add(piece))

    def finish(self) -> None:
        """Show the rest, end the line and leave one blank."""
        self._show(self._thoughts.finish())
        self._dim(False)
        print("\n", flush=True)

    def _show(self, parts: list[tuple[str, bool]]) -> None:
        for text, thought in parts:
            if thought and self._hide:
                self.hidden = self._skipping = True
                continue
            if self._skipping:  # the empty lines between a block and the answer go with the block
                text = text.lstrip()
                self._skipping = not text
            self.shown = self.shown or bool(text.strip())
            self._dim(thought)
            sys.stdout.write(text.translate(CONTROLS) if self._terminal else text)
        sys.stdout.flush()

    def _dim(self, on: bool) -> None:
        if self._dims and on != self._dimmed:
            sys.stdout.write(DIM if on else PLAIN)
            self._dimmed = on


class Repl:
    """Reads lines until they end, and answers each; a line that begins with ``/`` is a command."""

    def __init__(self, chat: "Chat", *, hide_thinking: bool = False, stats: bool = False, quiet: bool = False):
        self.chat, self._hide, self._stats = chat, hide_thinking, stats
        self._greet = not quiet and sys.stdin.isatty()
        self._pressed = False
        self._show_progress = chat.options.get("progress") or cli.prefill_progress(quiet)
        chat.options["progress"] = self._progress
        self.commands: dict[str, Callable[[str], None]] = {
            "/image": lambda path: self._attach(chat.attach_image, path),
            "/audio": lambda path: self._attach(chat.attach_audio, path),
            "/clear": self._clear,
            "/system": self._system,
            "/save": self._save,
            "/help": lambda _: say(HELP),
        }

    def run(self) -> None:
        """Until end of input or ``/exit``. Ctrl-C at the prompt raises KeyboardInterrupt."""
        if sys.stdin.isatty():
            with suppress(ImportError):  # Windows has none
                import readline  # noqa: F401 - input() edits lines once it is there
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # an answer may hold what the terminal's encoding lacks
        if self._greet:
            say("/help lists the commands, Ctrl-D ends.")
        while (line := self._read()) is not None and line != "/exit":
            if line:
                self._take(line)

    def _read(self) -> str | None:
        """The next line without white space around it; None at the end."""
        try:
            return input(self._prompt()).strip()
        except UnicodeDecodeError:
            say("error: the line is not UTF-8 text")
            return ""
        except EOFError:
            if sys.stdin.isatty():
                say("")
            return None
        except KeyboardInterrupt:
            say("")
            raise

    def _prompt(self) -> str:
        if not sys.stdin.isatty():
            return ""
        if sys.stdout.isatty():
            return PROMPT
        click.echo(PROMPT, nl=False, err=True)
        return ""

    def _take(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        try:
            if line.startswith("//"):
                self._answer(line[1:])
            elif not line.startswith("/"):
                self._answer(line)
            elif name in self.commands:
                self.commands[name](rest.strip())
            else:
                say(f"error: unknown command {name}; /help lists them, //... sends a text that begins with /")
        except Phi4Error as error:
            fail(error)

    def _answer(self, text: str) -> None:
        screen, before = Screen(self._hide), len(self.chat.turns)
        try:
            with self._ctrl_c_noted(), closing(self.chat.send(text)) as pieces:
                for piece in pieces:
                    screen.write(piece)
                    if self._pressed:
                        break
        except PromptError as error:
            fail(error, "; /clear begins a new conversation" if before else "")
            return
        except KeyboardInterrupt:
            pass
        if self.chat.last is not None:
            screen.finish()
        if len(self.chat.turns) > before:
            self._note(screen)
        else:
            say("[stopped; this turn is not kept]")

    def _note(self, screen: Screen) -> None:
        """What the answer itself does not tell."""
        last = self.chat.last
        if self._pressed and last.finish_reason is None:
            say("[stopped; kept as far as it came]")
        elif last.finish_reason == "length":
            say(f"[the answer was cut after {last.generation_tokens} tokens; --max-tokens allows more]")
        if screen.hidden and not screen.shown:
            say("[nothing but thinking came; --hide-thinking hides it]")
        if self._stats:
            say(f"[{cli.statistics(last)}]")

    @contextmanager
    def _ctrl_c_noted(self) -> Iterator[None]:
        """Let the first Ctrl-C end the answer after a whole token, and only the second one break in."""
        self._pressed = False

        def note(signum, frame):
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True

        if threading.current_thread() is not threading.main_thread():  # others get no signals
            yield
            return
        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _progress(self, done: int, total: int) -> None:
        """Called between the pieces of a long prompt."""
        if self._show_progress is not None:
            self._show_progress(done, total)
        if self._pressed and done < total:
            raise KeyboardInterrupt

    def _attach(self, attach: Callable[[Path], None], given: str) -> None:
        if not given:
            raise Phi4Error("a path is missing, as in /image photo.jpg")
        path = _path(given)
        attach(path)
        say(f"[{path.name} goes with your next message]")

    def _clear(self, _: str) -> None:
        self.chat.clear()
        say("[cleared]")

    def _system(self, text: str) -> None:
        if text:
            self.chat.system = text
        say(f"[system: {self.chat.system}]" if self.chat.system else "[no system message]")

    def _save(self, given: str) -> None:
        if not given:
            raise Phi4Error("a file name is missing, as in /save talk.json")
        path = self.chat.save(_path(given))
        say(f"[{path}: {len(self.chat.messages)} messages]")


def _path(given: str) -> Path:
    """A path as it is typed, quoted, or dropped on a terminal with its spaces escaped."""
    plain = Path(given).expanduser()
    if plain.exists():
        return plain
    try:
        words = shlex.split(given)
    except ValueError:
        return plain
    return Path(words[0]).expanduser() if len(words) == 1 else plain


def say(text: str) -> None:
    """A line for the person at the terminal."""
    click.echo(text, err=True)


def fail(error: Phi4Error, advice: str = "") -> None:
    """An error in one line; the chat goes on."""
    say(f"error: {' '.join(str(error).split())}{advice}")
