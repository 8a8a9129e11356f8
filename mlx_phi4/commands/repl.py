"""The terminal side of a chat: messages in, commands, the answer as it comes, and Ctrl-C.

Standard output gets answers only; everything else goes to standard error. Whatever goes wrong, the conversation stays.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Phi4Error, PromptError
from ..files import expanded, taken, why_not_file
from ..inputs.tools import spelled
from ..terminal import say, say_error
from . import cli
from .lines import Messages
from .recording import record_turn
from .screen import Screen
from .videos import say_seen

if TYPE_CHECKING:
    from ..generation.chat import Chat
    from ..vision.video import Video

ENDINGS = ("/exit", "/quit")
HELP = """\
/image PATH    attach a picture to your next message
/video PATH    attach a video: frames of it, and its sound with --with-sound
/record        say your next message: it ends with Enter; /record 5 after 5 seconds
/audio PATH    attach a recording to your next message; an empty line sends it alone
/result TEXT   what a tool gives back for the call that the model asked for; the answer to it follows
/attached      list what goes with your next message
/undo          take back your last message and its answer
/clear         forget the conversation and what is attached
/system TEXT   replace the system message; without TEXT, show it
/save FILE     write the conversation as JSON; /save! FILE replaces a file
/help          this list
/exit, /quit   end (as Ctrl-D does, which asks once if the conversation is not saved)
//...          a message that begins with /
Ctrl-C stops an answer, or clears the line. Lines that are pasted are one message."""


class Repl:
    """Reads messages until they end, and answers each; one that begins with ``/`` is a command."""

    def __init__(
        self,
        chat: "Chat",
        *,
        video: "Callable[[Path], Video] | None" = None,
        hide_thinking: bool = False,
        stats: bool = False,
        quiet: bool = False,
    ):
        """``video`` says how videos are seen; the others as in ``commands.chat.chat``."""
        self._video = video or (lambda path: path)
        self.chat, self._hide, self._stats = chat, hide_thinking, stats
        self._greet = not quiet and sys.stdin.isatty()
        self._pressed = False
        self._results: list[str] = []  # for the first of the last answer's calls
        self._written: set[str] = set()  # files of this conversation
        self._kept: list[dict] = []  # the turns that the last one of them holds
        self._show_progress = chat.options.get("progress") or cli.prefill_progress(quiet)
        chat.options["progress"] = self._progress
        self.commands: dict[str, Callable[[str], None]] = {
            "/image": lambda path: self._attach(chat.attach_image, path),
            "/audio": lambda path: self._attach(chat.attach_audio, path),
            "/result": self._result,
            "/video": lambda path: self._attach(self._attach_video, path),
            "/record": lambda seconds: record_turn(chat, seconds),
            "/attached": self._list_attached,
            "/undo": self._undo,
            "/clear": self._clear,
            "/system": self._system,
            "/save": self._save,
            "/save!": lambda path: self._save(path, replace=True),
            "/help": lambda _: say(HELP),
        }

    def run(self) -> None:
        """Until end of input or ``/exit``. Where no terminal is read, Ctrl-C raises KeyboardInterrupt."""
        messages = Messages({*self.commands, *ENDINGS})
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # an answer may hold what the terminal's encoding lacks
        if self._greet:
            say("/help lists the commands, Ctrl-D ends.")
        asked = False  # whether to end without saving
        while True:
            try:
                message = messages.read()
                if message in ENDINGS:
                    return
                asked = False
                self._take(message)
            except EOFError:
                if messages.terminal:
                    say("")
                if asked or not messages.terminal or not self._unsaved:
                    return
                asked = True
                say("[the conversation is not saved: /save FILE keeps it, Ctrl-D again ends]")
            except KeyboardInterrupt:
                if not messages.terminal:
                    say("")
                    raise
                say("\n[Ctrl-D or /exit ends]")
            except UnicodeDecodeError:
                say_error("the line is not UTF-8 text")

    @property
    def _unsaved(self) -> bool:
        """Whether there are turns that no file has."""
        return bool(self.chat.turns) and [*map(id, self.chat.turns)] != [*map(id, self._kept)]

    def _take(self, message: str) -> None:
        name, _, rest = message.partition(" ")
        if not message:
            heard = [part["type"] == "audio" or part.get("with_sound", False) for part in self.chat.attached]
            if any(heard):  # a spoken question alone
                self._send("")
            elif self.chat.attached:
                say("[what is attached waits for a question]")
        elif message.startswith("//") or not message.startswith("/"):
            self._send(message.removeprefix("/"))
        elif name not in self.commands:
            say_error(f"unknown command {name}; /help lists them, //... sends a text that begins with /")
        else:
            try:
                self.commands[name](rest.strip())
            except Phi4Error as error:
                say_error(error)
                return
            except Exception as error:  # a library's surprise must not cost the conversation
                say_error(f"{name}: {type(error).__name__}: {error}")
                return
            if name == "/record":
                self._send("")

    def _send(self, text: str) -> None:
        self._answer(self.chat.send(text))

    def _result(self, text: str) -> None:
        calls = self.chat.calls
        if len(self._results) < len(calls):
            self._results.append(text)
        if not calls:
            raise Phi4Error("no call waits for a result")
        if len(self._results) < len(calls):
            say(f"[{len(calls) - len(self._results)} more]")
        else:
            self._answer(self.chat.send_results(self._results))

    def _answer(self, answer: Iterator[str]) -> None:
        screen, before, self._results = Screen(self._hide), len(self.chat.turns), []
        self.chat.last = failed = None
        try:
            with self._ctrl_c_noted(), closing(answer) as pieces:
                for piece in pieces:
                    screen.write(piece)
                    if self._pressed:
                        break
            if self.chat.calls:
                screen.write(("\n" if screen.shown else "") + spelled(self.chat.calls))
        except PromptError as error:
            say_error(error, "; /clear begins a new conversation" if before else "")
            return
        except OSError:  # nobody reads the answers any more
            raise
        except KeyboardInterrupt:
            pass
        except Exception as error:
            failed = error if isinstance(error, Phi4Error) else f"{type(error).__name__}: {error}"
        if self.chat.last is not None:
            screen.finish()
        if failed is not None:
            say_error(failed)
        elif len(self.chat.turns) > before:
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
        if calls := self.chat.calls:
            say(f"[/result TEXT gives what {', '.join(call.name for call in calls)} gave back]")
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
        if reason := why_not_file(path):
            raise Phi4Error(f"{path}: {reason}")
        attach(path)
        alone = "; an empty line sends it alone" if self.chat.attached[-1]["type"] == "audio" else ""
        say(f"[{path.name} goes with your next message{alone}]")

    def _attach_video(self, path: Path) -> None:
        say_seen(self.chat.attach_video(self._video(path)), False)

    def _list_attached(self, _: str) -> None:
        for part in self.chat.attached:
            say(f"[{_named(part)}]")
        if not self.chat.attached:
            say("[nothing is attached]")

    def _undo(self, _: str) -> None:
        content = self.chat.undo()["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        said = " ".join("".join(part.get("text", "") for part in parts).split())
        media = [_named(part) for part in parts if part["type"] != "text"]
        say(f"[taken back: {', '.join([*media, *([said[:60]] if said else [])])}]")

    def _clear(self, _: str) -> None:
        self.chat.clear()
        say("[cleared]")

    def _system(self, text: str) -> None:
        if text:
            self.chat.system = text
        say(f"[system: {self.chat.system}]" if self.chat.system else "[no system message]")

    def _save(self, given: str, replace: bool = False) -> None:
        if not given:
            raise Phi4Error("a file name is missing, as in /save talk.json")
        path = _path(given)
        if not replace and taken(path) and os.path.realpath(path) not in self._written:
            raise Phi4Error(f"{path}: is there already; /save! {given} replaces it")
        self.chat.save(path)
        self._written.add(os.path.realpath(path))
        self._kept = list(self.chat.turns)
        say(f"[{path}: {len(self.chat.messages)} messages]")


def _named(part: dict) -> str:
    """An attachment in words."""
    return f"{part['type']} {part.get('path', 'from the microphone')}"


def _path(given: str) -> Path:
    """A path as it is typed, quoted, or dropped on a terminal with its spaces escaped."""
    plain = expanded(given)
    if why_not_file(plain) != "no such file":
        return plain
    try:
        words = shlex.split(given)
    except ValueError:
        return plain
    return expanded(words[0]) if len(words) == 1 else plain
