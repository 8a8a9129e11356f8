"""The names that a client may call the model by."""

from collections.abc import Iterable
from pathlib import Path

from ..checkpoint.hub import is_hub_id
from ..decoder.adapter_set import BASE
from .errors import RequestError


class ModelNames:
    """The served model, and each of its adapters as ``name:adapter``, which all of a request's tokens pass.

    ``default`` is the adapter of the served name itself, None for those of the modes.
    """

    def __init__(self, model: str, adapters: Iterable[str], default: str | None = None):
        self.served, self.default = served_name(model), default
        names = [*sorted(adapters), *([] if default is None else [BASE])]
        self.adapters = {f"{self.served}:{name}": name for name in names}

    def __iter__(self):
        yield self.served
        yield from self.adapters

    def adapter(self, name: str) -> str | None:
        """The adapter that a name asks for, None for the mode's own. Raises RequestError, 404; nothing is fetched."""
        if name == self.served:
            return self.default
        if name not in self.adapters:
            known = ", ".join(self)
            raise RequestError(
                f"there is no model {name[:120]!r} here, only {known}", 404, param="model", code="model_not_found"
            )
        return self.adapters[name]


def served_name(model: str) -> str:
    """A hub id or built-in name as it is, of a folder its last part: paths are nobody's business."""
    if is_hub_id(model) and not Path(model).expanduser().exists():
        return model
    return Path(model).expanduser().resolve().name or model
