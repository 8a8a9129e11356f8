"""The package's errors: a message for a person, never a stack of internals."""

LONGEST_MESSAGE = 2000  # characters: what it quotes comes from files that others wrote


class Phi4Error(ValueError):
    """Something a user can mend. Commands print its one line and exit with 2.

    Whatever a message quotes, it stays one line of moderate length that cannot command a terminal.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def _one_line(text: str) -> str:
    """Control characters, halves of surrogate pairs among them, as they are spelled in Python; the middle cut out."""
    if len(text) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    plain = (" " if c.isspace() else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(plain)


class ConfigError(Phi4Error):
    """A ``config.json`` that lacks what is needed or asks for what is not supported."""


class CheckpointError(Phi4Error):
    """Weight files that are missing, truncated, pickled or do not fit the configuration."""


class MediaError(Phi4Error):
    """A picture or a recording that cannot be read or used."""


class TruncatedError(MediaError):
    """A recording that ends, or cannot be read any further, before its header says it does."""


class PromptError(Phi4Error):
    """A prompt, message list or placeholder that does not fit its media or the context."""


class ConversionError(Phi4Error):
    """A conversion that was asked for in a way that cannot be done, or that was stopped."""
