"""What is said to a person on standard error: lines in which a terminal finds nothing to obey.

Names of files come from anywhere, and so do the words of a model; an escape sequence in them is not ours to pass on.
"""

import sys
from contextlib import suppress

# control characters but for tab and line feed, and C1's; a carriage return would hide what stands before it
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)} | {13: None}


def shown(text: str) -> str:
    """A text as a terminal may have it: control characters give way to a mark."""
    return text.translate(_CONTROLS)


def say(text: str) -> None:
    """A line on standard error. Where nobody can hear it any more, it is lost and nothing else is."""
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError):  # a broken pipe, a full disk; a closed file
        sys.stderr.write(f"{shown(text)}\n")
        sys.stderr.flush()


def say_error(error: Exception | str, advice: str = "") -> None:
    """An error in one line, whatever is in it."""
    say(f"error: {' '.join(str(error).split())}{advice}")
