"""The package's errors: a message for a person, never a stack of internals."""


class Phi4Error(ValueError):
    """Something a user can mend. Commands print its one line and exit with 2."""

    def __init__(self, message: object = ""):
        # names of files may hold what no terminal or log file takes, and line breaks
        text = str(message).encode("utf-8", "backslashreplace").decode("utf-8")
        super().__init__(" ".join(text.splitlines()))


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
