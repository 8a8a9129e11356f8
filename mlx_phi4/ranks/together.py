"""What several processes make sure of together before they begin: the same model, the same files."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Phi4Error
from .star import Ranks

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..model import Phi4


def same_folder(ranks: Ranks, name: str | Path, revision: str | None = None, quiet: bool = False) -> Path:
    """The folder of a model, found on all ranks and the same on each. Raises Phi4Error."""
    from ..checkpoint.digest import folder_digests
    from ..converter.first_use import model_folder

    folder = ranks.settle(lambda: model_folder(name, revision, quiet=quiet or ranks.rank > 0))
    seen = ranks.gather(ranks.settle(lambda: folder_digests(folder)))
    for rank, digests in enumerate(seen):
        if digests is not None and digests != seen[0]:
            different = next(file for file in seen[0] | digests if seen[0].get(file) != digests.get(file))
            raise Phi4Error(f"{ranks.name(rank)} has another model in {name} than rank 0: {different} differs")
    return folder


def same_adapters(ranks: Ranks, model: "Phi4") -> None:
    """Raises Phi4Error unless all ranks have the same adapters beside the model's own."""
    mine = {name: model.adapters.digest(name) for name in model.adapters}
    for rank, theirs in enumerate(ranks.gather(mine)):
        if different := sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name)):
            raise Phi4Error(f"{ranks.name(rank)} has another adapter {different[0]} than {ranks.name(ranks.rank)}")


def check_same(ranks: Ranks, model: Any, revision: str | None = None) -> None:
    """Raises Phi4Error unless a model that is named, not given, is the same on all ranks."""
    if ranks.size > 1 and isinstance(model, (str, Path)):
        same_folder(ranks, model, revision)


def agreed_files(ranks: Ranks, names: Sequence[str], marks: list[list[bool]]) -> list[list[bool]]:
    """Lists of marks on files, of which any rank's counts: all decide alike, also about what one of them alone sees.

    Args:
        names: of all files, in the same order on every rank; they need not exist under the same path.

    Raises:
        Phi4Error: the ranks see different files.
    """
    digest = blake2b("\0".join(names).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    seen = [values for values in ranks.gather([len(names), digest, marks]) if values is not None]
    if any(other[:2] != seen[0][:2] for other in seen):
        counts = ", ".join(str(count) for count, _, _ in seen)
        raise Phi4Error(f"the processes of this run see different files ({counts}); each needs the same")
    return [[any(each) for each in zip(*lists, strict=True)] for lists in zip(*(row[2] for row in seen), strict=True)]
