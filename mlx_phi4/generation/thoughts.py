"""A reasoning model's ``<think>`` blocks, told from its answer."""

OPEN, CLOSE = "<think>", "</think>"


class Thoughts:
    """Tells ``<think>`` blocks from the rest of a text that comes in pieces; tags may straddle them."""

    def __init__(self):
        self.thinking = False
        self._held = ""

    def add(self, piece: str) -> list[tuple[str, bool]]:
        """What is certain: pairs (text, whether it belongs to a block; tags do)."""
        text, found = self._held + piece, []
        while (tag := CLOSE if self.thinking else OPEN) in text:
            end = text.index(tag) + (len(tag) if self.thinking else 0)
            found.append((text[:end], self.thinking))
            text, self.thinking = text[end:], not self.thinking
        held = next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
        self._held = text[len(text) - held :]
        return [(part, thought) for part, thought in [*found, (text[: len(text) - held], self.thinking)] if part]

    def finish(self) -> list[tuple[str, bool]]:
        """What was held back because a tag might have begun."""
        held, self._held = self._held, ""
        return [(held, self.thinking)] if held else []
