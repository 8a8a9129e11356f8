"""Media on their way into a batch: what frozen encoders make of them is kept on disk by content.

A picture or a recording is encoded once, however often it is seen, also by later runs on the same encoder. What
follows the encoder, the projector, is computed each time; an encoder that is trained is, too.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..decoder.identity import raw_bytes
from ..device import finished
from ..errors import Phi4Error
from ..files import write_whole
from ..inputs.processor import Processor
from ..modalities import MODALITIES, Medium, modality_of
from ..model import Phi4
from .examples import Example, Place

IN_MEMORY = 1 << 30  # bytes of features that are kept beside the disk
PROJECTOR = "projector"  # in the name of a module that follows the encoder
ALONE = "features"  # the name of an array that is all of them


def encoder_modules(model: Phi4, kind: str) -> list[str]:
    """Names of a kind's modules that its features come from."""
    return [name for name in model.modules_of.get(kind, ()) if PROJECTOR not in name]


class Media:
    """Embeddings of the media of examples, for one model.

    Args:
        trained: modules of which some are trained; their part is computed within the gradient.
        folder: where features are kept, or None for memory alone.
    """

    def __init__(self, model: Phi4, processor: Processor, trained: Sequence[str] = (), folder: Path | None = None):
        self._model, self._processor, self._folder = model, processor, folder
        own = {name.split(".")[0] for name in trained}
        self._encoders = {kind for kind in MODALITIES if own & set(encoder_modules(model, kind))}
        self._held: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0
        self._digests: dict[str, str] = {}
        self.encoded = 0  # media that had to be encoded

    def gathered(self, example: Example) -> list[Any]:
        """What frozen encoders make of each medium of an example; the medium itself where it passes trained ones."""
        places = [place for _, place in example.row.media]
        found = [self._get(place) for place in places]
        if all(features is not None for features in found):
            return found
        row = self._processor.conversation(example.line.request)[0]
        items = [item for _, item in row.media][: len(places)]
        if [item.key for item in items] != [place.key for place in places]:
            raise Phi4Error(f"{example.line.where}: a file changed while it was trained on")
        return [self._encode(item) if seen is None else seen for item, seen in zip(items, found, strict=True)]

    def embedded(self, example: Example, gathered: list[Any]) -> list[tuple[int, mx.array]]:
        """Embeddings (tokens, D) by first token; within the gradient where something of them is trained."""
        found = []
        for (first, place), features in zip(example.row.media, gathered, strict=True):
            modality = MODALITIES[place.kind]
            projector = modality.projector(example.row.mode)
            if isinstance(features, modality.item):
                made = finished(modality.encode(self._model, features, projector), evaluate=False)
            else:
                made = modality.project(self._model, features, place.outline, projector)
            found.append((first, made))
        return found

    def _whole(self, kind: str) -> bool:
        """Whether a medium is encoded each time."""
        return kind in self._encoders or MODALITIES[kind].features is None

    def _get(self, place: Place) -> Any:
        if self._whole(place.kind):
            return None
        name = self._name(place.kind, place.key)
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            arrays = mx.load(str(path))
            mx.eval(arrays)
        except (RuntimeError, ValueError):  # damaged: it is made again
            return None
        features = arrays[ALONE] if ALONE in arrays else tree_unflatten(list(arrays.items()))
        self._keep(name, features)
        return features

    def _encode(self, item: Medium) -> Any:
        modality = modality_of(item)
        if self._whole(modality.kind):
            return item
        self._model.read({f"media {modality.kind}"})
        features = finished(modality.features(self._model, item))
        mx.eval(features)
        self.encoded += 1
        name = self._name(modality.kind, item.key)
        self._keep(name, features)
        path = self._path(name)
        if path is not None:
            arrays = {ALONE: features} if isinstance(features, mx.array) else dict(tree_flatten(features))
            with suppress(OSError, RuntimeError):  # a full disk: it is made again next time
                path.parent.mkdir(parents=True, exist_ok=True)
                with write_whole(path) as partial, partial.open("wb") as file:
                    mx.save_safetensors(file, {each: mx.contiguous(a) for each, a in arrays.items()})
        return features

    def _name(self, kind: str, key: str) -> str:
        return f"{kind}-{self._digest(kind)}/{key}"

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.safetensors"

    def _keep(self, name: str, features: Any) -> None:
        self._held[name] = features
        self._bytes += _nbytes(features)
        while self._bytes > IN_MEMORY and len(self._held) > 1:
            self._bytes -= _nbytes(self._held.popitem(last=False)[1])

    def _digest(self, kind: str) -> str:
        """Of the weights that features come from."""
        if kind not in self._digests:
            digest = hashlib.blake2b(digest_size=8)
            for name in encoder_modules(self._model, kind):
                module = self._model[name]
                arrays = tree_flatten(module.parameters() if isinstance(module, nn.Module) else dict(module))
                for path, array in sorted(arrays):
                    digest.update(f"{name}.{path} {array.dtype} {array.shape}".encode())
                    digest.update(raw_bytes(array))
            self._digests[kind] = digest.hexdigest()
        return self._digests[kind]


def _nbytes(features: Any) -> int:
    return sum(
        array.nbytes for _, array in tree_flatten(features if not isinstance(features, mx.array) else [features])
    )
