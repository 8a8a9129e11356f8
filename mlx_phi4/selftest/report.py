"""What a self-test found, as a table for people, as JSON, and as text without names of people, folders and machines."""

import getpass
import json
import math
import platform
import re
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass

from ..checkpoint.hub import BUILT_IN, is_hub_id, local_folder
from ..files import expanded
from .checks import NOT_RUN, PASSED, Outcome

HEADER = "# mlx_phi4 self-test"
MOST_FAILURES = 8  # of a stage that are told
# the folders of a path go, its last name stays; an address of the web is none
PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s:;,'\"()]+)*[/\\](?=[^/\\\s:;,'\"()]*)")
SHORTEST_NAME = 3  # letters of a user's or host's name that is looked for; shorter ones are parts of words


@dataclass(frozen=True)
class Report:
    """Outcomes of all stages that were asked for, and where they ran.

    Args:
        machine: device, memory and versions, see ``evaluation.speed.machine``.
        outcomes: of the stages in their order.
        notes: for people: figures, and what a model answered.
        model: what ``--model`` named.
    """

    machine: dict
    outcomes: list[Outcome]
    notes: list[str]
    model: str | None = None

    @property
    def passed(self) -> bool:
        """Whether all stages passed."""
        return bool(self.outcomes) and all(each.state == PASSED for each in self.outcomes)

    @property
    def failed_stages(self) -> list[str]:
        """Names of stages that did not pass, in their order; those that were not run because of them are left out."""
        return [each.name for each in self.outcomes if each.state not in (PASSED, NOT_RUN)]

    def table(self) -> str:
        """A line for each stage, and for each failure below."""
        lines = [self._where(), ""]
        for outcome in self.outcomes:
            lines += [line_of(outcome), *failure_lines(outcome)]
        lines += ["", *self.notes, *([""] if self.notes else []), self.verdict()]
        return "\n".join(lines)

    def verdict(self) -> str:
        """The last line."""
        count = sum(len(each.checks) for each in self.outcomes)
        seconds = sum(each.seconds for each in self.outcomes)
        if self.passed:
            return f"passed: {count} checks in {len(self.outcomes)} stages, {seconds:.0f} s"
        return f"FAILED: {', '.join(self.failed_stages)}; {count} checks, {seconds:.0f} s"

    def text(self) -> str:
        """What may be attached to an issue: Markdown around the table, without anything that names its owner."""
        model = "" if self.model is None else f"Model: {public_name(self.model)}\n\n"
        return f"{HEADER}\n\n{model}```\n{anonymous(self.table())}\n```\n"

    def json(self) -> str:
        """The same as JSON, with every check."""
        found = {
            "passed": self.passed,
            "failed_stages": self.failed_stages,
            "model": None if self.model is None else public_name(self.model),
            "machine": self.machine,
            "stages": [asdict(each) for each in self.outcomes],
            "notes": self.notes,
        }
        return json.dumps(_each_text(found), indent=1, ensure_ascii=False)

    def _where(self) -> str:
        m = self.machine
        memory = f", {m['memory_gb']} GB" if m["memory_gb"] else ""
        return (
            f"{m['device']}: {m['name']}{memory}; {m['system']}, Python {m['python']}, mlx {m['mlx']}, "
            f"mlx-lm {m['mlx_lm']}, mlx_phi4 {m['mlx_phi4']}; {m['arithmetic']}"
        )


def line_of(outcome: Outcome) -> str:
    """A stage in a line: its name, what became of it, how near to its limit its worst check was."""
    worst = outcome.worst
    near = "" if worst is None else f"; {worst.measured:.1e} of {worst.allowed:.1e} allowed ({worst.name})"
    told = outcome.reason or f"{len(outcome.checks)} checks, {outcome.seconds:.1f} s{near}"
    return f"{outcome.state:7} {outcome.name:17} {told}"


def failure_lines(outcome: Outcome) -> list[str]:
    """What failed in a stage."""
    lines = []
    for check in outcome.failures[:MOST_FAILURES]:
        measured = "" if check.measured is None else f"{check.measured:.2e}, allowed {check.allowed:.2e}"
        lines.append(f"        {check.name}: {measured or check.note or 'no'}")
    more = len(outcome.failures) - MOST_FAILURES
    return [*lines, *([f"        and {more} more"] if more > 0 else [])]


def public_name(model: str) -> str:
    """A built-in name or a hub id as it is; of a folder not even its name."""
    folder = local_folder(model)
    return model if model in BUILT_IN or (is_hub_id(model) and not folder.exists()) else "a folder"


def anonymous(text: str) -> str:
    """A text without folders of paths, and without names of the user, the home folder and the machine."""
    text = PATH.sub("", text)
    for name, mark in _private_names().items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", mark, text, flags=re.IGNORECASE)
    return text


def _private_names() -> dict[str, str]:
    found: dict[str, str] = {}
    with suppress(Exception):  # no such user: containers
        found[getpass.getuser()] = "<user>"
    found[expanded("~").name] = "<user>"
    for host in (socket.gethostname(), platform.node()):
        found |= {host: "<host>", host.partition(".")[0]: "<host>"}
    return {name: mark for name, mark in found.items() if len(name) >= SHORTEST_NAME}


def _each_text(value):
    """Every string in lists and dictionaries made anonymous; names of fields stay."""
    if isinstance(value, dict):
        return {key: _each_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_each_text(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has none
    return anonymous(value) if isinstance(value, str) else value
