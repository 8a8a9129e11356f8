"""The package's errors: a message for a person, never a stack of internals."""


class Phi4Error(ValueError):
    """Something a user can mend. Commands print its one line and exit with 2."""


class ConfigError(Phi4Error):
    """A ``config.json`` that lacks what is needed or asks for what is not supported."""


class CheckpointError(Phi4Error):
    """Weight files that are missing, truncated, pickled or do not fit the configuration."""


class MediaError(Phi4Error):
    """A picture or a recording that cannot be read or used."""


class PromptError(Phi4Error):
    """A prompt, message list or placeholder that does not fit its media or the context."""


class ConversionError(Phi4Error):
    """A conversion that was asked for in a way that cannot be done, or that was stopped."""
