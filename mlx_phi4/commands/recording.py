"""A turn of a chat from the microphone."""

import os
import select
import sys
from typing import TYPE_CHECKING

from ..errors import Phi4Error
from ..terminal import say

if TYPE_CHECKING:
    from ..generation.chat import Chat

LONGEST_TURN = 600.0  # s


def record_turn(chat: "Chat", given: str) -> None:
    """Attach what is said until Enter is pressed, or for ``given`` seconds. Raises Phi4Error, KeyboardInterrupt."""
    seconds = _seconds(given)
    if seconds is None and not sys.stdin.isatty():
        raise Phi4Error("/record ends when Enter is pressed, which takes a terminal; /record SECONDS ends by itself")
    chat.processor.config.check_hears()
    from ..audio.microphone import record

    how = "Enter ends it" if seconds is None else f"{seconds:g} s"
    try:
        samples, rate = record(
            LONGEST_TURN if seconds is None else seconds,
            (lambda: False) if seconds is not None else _enter_pressed,
            begun=lambda: say(f"[recording; {how}, Ctrl-C drops it]"),
        )
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        raise Phi4Error("the recording was dropped") from None
    chat.attach_sound(samples, rate)
    say(f"[{len(samples) / rate:.1f} s recorded]")


def _seconds(given: str) -> float | None:
    """Seconds as they are typed; None for as long as it takes."""
    try:
        seconds = float(given) if given else None
    except ValueError:
        seconds = 0.0
    if seconds is not None and not 0.1 <= seconds <= LONGEST_TURN:
        raise Phi4Error(f"/record takes seconds from 0.1 to {LONGEST_TURN:g}, not {given}")
    return seconds


def _enter_pressed() -> bool:
    """Whether a line was typed, which is taken away."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return False
    os.read(sys.stdin.fileno(), 4096)
    return True
