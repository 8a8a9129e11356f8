"""The processes that ``mlx.launch`` started together: whether they share a model, the work, or nothing.

Tensor parallelism has all of them compute each step of one model, rank 0 speaks and the others follow. Data parallelism
has each of them a whole model and a part of the work.
"""

from importlib.metadata import PackageNotFoundError, version

from .errors import Phi4Error
from .ranks.meeting import Launch, NoAnswer, join_first, launched, receive_all, report_failure
from .ranks.star import FAILED, Ranks
from .terminal import say_error

PARALLEL = ("tensor", "data", "none")

_here: Ranks | None = None


def join(mode: str) -> Ranks:
    """The processes of this run, met at the first call; alone without ``mlx.launch``, and where ``mode`` is none.

    Once they have met in one mode they are alone in any other: those that share a model share out no work.

    Raises:
        Phi4Error: some do not answer, or run other versions.
    """
    global _here
    if mode not in PARALLEL:
        raise Phi4Error(f"parallel is {mode!r}, expected {', '.join(PARALLEL)}")
    if _here is None:
        launch = None if mode == "none" else launched()
        _here = Ranks() if launch is None else _met(launch, mode)
        if launch is None and mode != "none":  # nothing was decided
            alone, _here = _here, None
            return alone
    return _here if _here.mode == mode else Ranks()


def _met(launch: Launch, mode: str) -> Ranks:
    facts = {name: _version(name) for name in ("mlx-phi4", "mlx")} | {"parallel": mode, "ranks": launch.size}
    ranks = Ranks(launch, mode)
    if launch.rank == 0:
        ranks.connect(receive_all(launch, facts))
    else:
        try:
            ranks.connect({0: join_first(launch, facts)})
        except NoAnswer as error:  # one of those that wait for it says so
            if launch.rank == 1:
                say_error(error)
            raise SystemExit(FAILED) from None
    return ranks


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on the path
        return "(not installed)"


def is_launched() -> bool:
    """Whether ``mlx.launch`` started several processes."""
    return launched() is not None


def fails(line: str) -> bool:
    """This process ends with an error. Whether the line is another's to say."""
    if _here is not None:
        return _here.fails(line)
    try:
        launch = launched()
    except Phi4Error:
        return False
    if launch is None or launch.rank == 0:
        return False
    report_failure(launch, line)  # rank 0 fails by the same line, or waits for this process
    return True


def is_lost() -> bool:
    """Whether this run ends because a rank was lost; collectives may break a moment before that is known."""
    return _here is not None and _here.size > 1 and _here.is_lost()


def leave(code: int) -> None:
    """Part from the others with this exit code."""
    if _here is not None:
        _here.leave(code)
