"""The answers of a chat on the screen: as they come, thoughts dimmed or hidden, nothing for a terminal to obey."""

import os
import sys

from ..generation.thoughts import Thoughts
from ..terminal import shown

DIM, PLAIN = "\x1b[2m", "\x1b[22m"


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
            sys.stdout.write(shown(text) if self._terminal else text)
        sys.stdout.flush()

    def _dim(self, on: bool) -> None:
        if self._dims and on != self._dimmed:
            sys.stdout.write(DIM if on else PLAIN)
            self._dimmed = on
