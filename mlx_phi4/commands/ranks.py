"""What the commands do under ``mlx.launch``: several processes share a model, or the work."""

import os
import re
import sys
import threading
from typing import TYPE_CHECKING

import click

from .. import distributed
from ..errors import PromptError

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4
    from ..ranks.star import Ranks

# what MLX's ring writes of connections that break, in pieces and from several threads: any of them may begin a line
_NOISE = re.compile(
    rb"\[ring\]|Socket|was closed by the peer|failed with errno|Receiving from socket|Sending to socket"
    rb"|made no progress|Too many send/recv errors|Failing pending tasks|connection to a peer was lost"
)


def parallel_option(usual: str, *others: str):
    """--parallel: what several processes share; ``usual`` where nothing is said."""
    choices = click.Choice([usual, *others, "none"])
    return click.option(
        "--parallel", type=choices, default=usual, show_default=True, help="What processes of mlx.launch share."
    )


def check_input(*given: str | None) -> None:
    """Refuse standard input under ``mlx.launch``, which never passes on its end. Raises PromptError."""
    if "-" in given and distributed.is_launched():
        raise PromptError("under mlx.launch standard input has no end; give the text or a file instead of '-'")


def loaded(
    name: str,
    parallel: str = "tensor",
    *,
    revision: str | None = None,
    adapters: dict[str, str] | None = None,
    quiet: bool = False,
    lazy: bool = True,
    tool_results: str = "tool_response",
) -> "tuple[Phi4, Processor]":
    """A model and its processor, shared with the other ranks if there are any, of which only rank 0 returns.

    Raises:
        Phi4Error: it cannot be loaded on some rank, or they have different ones.
        click.exceptions.Exit: on the other ranks, once rank 0 is through.
    """
    from ..loading import load

    ranks = distributed.join(parallel)
    if ranks.size == 1 or ranks.mode != "tensor":
        return load(name, revision=revision, adapters=adapters, quiet=quiet, lazy=lazy, tool_results=tool_results)
    from ..ranks.following import follow
    from ..ranks.leading import lead
    from ..ranks.together import same_adapters, same_folder

    drop_native_noise(ranks)
    folder = same_folder(ranks, name, revision, quiet)
    how = {"adapters": adapters, "lazy": lazy, "group": ranks.group, "tool_results": tool_results}
    model, processor = ranks.settle(lambda: load(folder, **how))
    same_adapters(ranks, model)
    if ranks.rank:
        raise click.exceptions.Exit(follow(model, ranks))
    lead(model, ranks)
    return model, processor


def prepare(
    name: str,
    parallel: str,
    *,
    revision: str | None = None,
    adapters: dict[str, str] | None = None,
    quiet: bool = False,
) -> None:
    """Where processes share a model, have ``loading.model_and_processor`` give it on rank 0. Raises as ``loaded``."""
    ranks = distributed.join(parallel)
    if ranks.mode == "tensor":
        from ..loading import keep

        found = loaded(name, parallel, revision=revision, adapters=adapters, quiet=quiet)
        keep(name, found, revision=revision, adapters=adapters)
    elif ranks.mode == "data":
        from ..ranks.together import check_same

        check_same(ranks, name, revision)


def drop_native_noise(ranks: "Ranks") -> None:
    """Keep what MLX's ring writes about connections that break from standard error: the one line about it is ours."""
    if ranks.size == 1:
        return
    read, write = os.pipe()
    kept = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    sys.stderr = os.fdopen(os.dup(kept), "w", encoding="utf-8", errors="backslashreplace", buffering=1)

    def pass_on() -> None:
        with os.fdopen(read, "rb") as lines, os.fdopen(kept, "wb", buffering=0) as out:
            for line in lines:
                if not _is_noise(line):
                    out.write(line)

    threading.Thread(target=pass_on, name="noise", daemon=True).start()


def _is_noise(line: bytes) -> bool:
    """Whether a line is MLX's ring's, or made of nothing but pieces of its lines."""
    words = _NOISE.sub(b"", line)
    return b"[ring]" in line or (words != line and not re.search(rb"[A-Za-z]", words))
