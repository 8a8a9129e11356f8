"""What a stage finds out, and what all of them did."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PASSED, WRONG, NOT_RUN = "passed", "FAILED", "not run"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    ``measured`` and ``allowed`` are an error and its limit, where there are such; ``note`` says what is wrong.
    """

    name: str
    passed: bool
    measured: float | None = None
    allowed: float | None = None
    note: str = ""


def holds(name: str, condition: bool, note: str = "") -> Check:
    """A check of something that is or is not; the note is told where it is not."""
    return Check(name, bool(condition), note="" if condition else note)


def within(name: str, measured: float, allowed: float) -> Check:
    """A check of an error; NaN is none that is allowed."""
    return Check(name, measured <= allowed, measured, allowed)


@dataclass(frozen=True)
class Stage:
    """A part of the way. ``needs`` names stages without which it says nothing."""

    name: str
    about: str
    run: Callable[..., Iterator[Check]]
    needs: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What became of a stage."""

    name: str
    about: str
    state: str = NOT_RUN
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    reason: str = ""  # where it was not run

    @property
    def worst(self) -> Check | None:
        """The measured check that came closest to its limit, or passed it by most."""
        measured = [each for each in self.checks if each.allowed]
        return max(measured, key=lambda each: each.measured / each.allowed, default=None)

    @property
    def failures(self) -> list[Check]:
        return [each for each in self.checks if not each.passed]
