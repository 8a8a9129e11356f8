"""The text of one answer as it grows, cut at stop strings, also where one straddles tokens."""

from ..errors import Phi4Error
from ..inputs.tokenizer import Tokenizer
from ..inputs.tools import ToolCall


class AnswerText:
    """Decodes a row's tokens and holds text back while it may turn out to begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: str | list[str] | None = None):
        self._stops = [stop] if isinstance(stop, str) else list(stop or [])
        if not all(isinstance(s, str) and s for s in self._stops):
            raise Phi4Error(f"stop is {stop!r}, expected strings that are not empty")
        self._detokenizer = tokenizer.detokenizer()
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The new piece of text that is certain; sets ``stopped`` when a stop string is complete."""
        return self._certain(self._detokenizer.add(token))

    def finish(self) -> str:
        """What was held back, up to a stop string that the last bytes complete."""
        piece = self._certain(self._detokenizer.finish())
        held, self._held = self._held, ""
        return piece + held

    def calls(self) -> tuple[ToolCall, ...]:
        """Calls of tools that are whole and were not given before."""
        return ()

    def reason(self, reason: str) -> str:
        """Why the answer ended, where "stop" or "length" is not all of it."""
        return reason

    def _certain(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        begun = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
