"""The model that a function was called with last, so that the next call need not load it again."""

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import Phi4Error

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from .inputs.processor import Processor
    from .model import Phi4

_kept: dict[Path, tuple] = {}


def model_and_processor(
    model: "str | Path | Phi4", processor: "Processor | None" = None, *, quiet: bool = False
) -> "tuple[Phi4, Processor]":
    """A loaded model with its processor as they are; a folder or hub id is loaded, as ``--model`` of the commands.

    The last one stays in memory until another is asked for.
    """
    if not isinstance(model, (str, Path)):
        if processor is None:
            raise Phi4Error("a loaded model needs its processor, as in transcribe(path, model, processor=processor)")
        return model, processor
    if processor is not None:
        raise Phi4Error(f"a processor goes with a loaded model, not with {str(model)!r}")
    from .converter.first_use import model_folder
    from .loading import load

    folder = model_folder(model, quiet=quiet).resolve()
    if folder not in _kept:
        _kept.clear()  # before loading: two models may not fit
        _kept[folder] = load(folder)
    return _kept[folder]
