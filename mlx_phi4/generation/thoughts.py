"""A reasoning model's ``<think>`` blocks, told from its answer."""

OPEN, CLOSE = "<think>", "</think>"


class Thoughts:
    """Tells ``<think>`` blocks from the rest of a text that comes in pieces; tags may straddle them.

    ``at_first``: only the text's beginning may be such a block; later tags are text like any other.
    """

    def __init__(self, at_first: bool = False):
        self.thinking = False
        self._held = ""
        self._at_first, self._over = at_first, False

    def add(self, piece: str) -> list[tuple[str, bool]]:
        """What is certain: pairs (text, whether it belongs to a block; tags do)."""
        text, found = self._held + piece, []
        while not self._over and (tag := CLOSE if self.thinking else OPEN) in text:
            end = text.index(tag) + (len(tag) if self.thinking else 0)
            self._over = self._at_first and (self.thinking or end > 0)
            if self._over and not self.thinking:
                break
            found.append((text[:end], self.thinking))
            text, self.thinking = text[end:], not self.thinking
        tag = "" if self._over else CLOSE if self.thinking else OPEN
        held = next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
        self._over = self._over or (self._at_first and not self.thinking and held < len(text))
        self._held = text[len(text) - held :]
        return [(part, thought) for part, thought in [*found, (text[: len(text) - held], self.thinking)] if part]

    def finish(self) -> list[tuple[str, bool]]:
        """What was held back because a tag might have begun."""
        held, self._held = self._held, ""
        return [(held, self.thinking)] if held else []
