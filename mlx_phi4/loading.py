"""From a folder, a built-in name or a hub id to a model and its processor."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from .arguments import kinds
from .arguments.names import takes
from .checkpoint.adapter_files import find_form, is_sum
from .checkpoint.folder import read_checkpoint
from .checkpoint.hub import find_folder
from .checkpoint.reach import ask_hub
from .converter.first_use import FIRST_USE_BITS, cached_folder, folder_state, model_folder
from .decoder.adapter_set import check_adapter_name
from .decoder.adapters import LoRA
from .device import exclusive, wire_memory
from .errors import Phi4Error
from .files import expanded
from .generation.draft_model import DraftModel
from .inputs.processor import Processor
from .inputs.tools import RESULT_ROLES
from .model import Phi4

DTYPES = ("float32", "float16", "bfloat16")

_kept: dict[tuple, tuple[Phi4, Processor]] = {}
_keeping = threading.Lock()


def _dtype(value):
    """A type by name, MLX's own, or numpy's."""
    name = getattr(value, "__name__", str(value).removeprefix("mlx.core."))  # np.float16 is a class
    if value is None or name in DTYPES:
        return value if value is None else name
    raise kinds.Unfit(", ".join(DTYPES))


def _bits(value):
    """How many bits; True means those of first use, False none."""
    if isinstance(value, bool):
        return FIRST_USE_BITS if value else False
    return None if value is None else kinds.integer(among=(2, 3, 4, 5, 6, 8)).read(value)


def _adapters(value):
    """Names -> folders, or sums of adapters."""
    if not isinstance(value, Mapping):
        raise kinds.Unfit("a dictionary of names and folders")
    return {kinds.text.read(name): kinds.path.read(folder) for name, folder in value.items()}


@takes(
    path_or_hub_id=kinds.path,
    revision=kinds.text | None,
    adapters=kinds.Kind(_adapters) | None,
    dtype=kinds.Kind(_dtype),
    lazy=kinds.flag,
    quantize=kinds.Kind(_bits),
    quiet=kinds.flag,
    tool_results=kinds.choice(*RESULT_ROLES),
    group=kinds.of_class("Group", "a group of mx.distributed") | None,
)
def load(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    dtype: mx.Dtype | str | None = None,
    lazy: bool = True,
    quantize: int | bool | None = None,
    quiet: bool = False,
    tool_results: str = RESULT_ROLES[0],
    group: mx.distributed.Group | None = None,
) -> tuple[Phi4, Processor]:
    """Load a model, the same one as ``--model`` of the commands.

    Args:
        path_or_hub_id: a checkpoint folder, which is read as it is; a hub id (downloaded once, safetensors only), of
            which published weights are converted to 4 bits, once, into a cache folder; or "phi4-tiny", the small
            trained model inside this package.
        revision: branch, tag or commit of a hub id.
        adapters: name -> folder of peft's or mlx-lm's, or a sum of adapters as "vision+mine"; see
            ``Phi4.add_adapter``.
        dtype: float32, float16 or bfloat16 for all weights; None keeps the stored one.
        lazy: read a tensor when it is first needed; False reads all at once.
        quantize: so many bits (2, 3, 4, 5, 6 or 8) instead, also for a folder of published weights, once, into the
            cache folder; see ``converter.first_use.cached_folder``. True: 4 bits. False: a hub id's weights as they are
            published.
        quiet: nothing on standard error while the hub is asked and weights are converted.
        tool_results: whose turn the results of tools are in prompts, "tool_response" or, as the published template has
            messages of that role, "tool".
        group: of ``mx.distributed``, whose ranks are to share the model: each reads its part alone, see ``Phi4.shard``.

    Raises:
        Phi4Error: the folder, its configuration or its tensors do not fit; in one line.
    """
    check_adapters(adapters or {})
    if quantize is None:
        folder = model_folder(path_or_hub_id, revision, quiet=quiet)
    elif quantize is False:
        ask_hub(str(path_or_hub_id), revision, quiet=quiet)
        folder = find_folder(path_or_hub_id, revision)
    else:
        folder = cached_folder(path_or_hub_id, bits=quantize, revision=revision, quiet=quiet)
    checkpoint = read_checkpoint(folder)
    with exclusive():
        model, tokenizer = checkpoint.open(dtype)
        if group is not None:
            model.shard(group)
        for module in model.modules():
            if isinstance(module, LoRA):
                module.fold_scale()
        model.eval()
        if not lazy:
            mx.eval(model.parameters())
    for name, folder in sorted((adapters or {}).items(), key=lambda each: is_sum(each[1])):
        model.add_adapter(name, folder)
    wire_memory()
    return model, Processor(checkpoint.config, tokenizer, model.adapters, tool_results=tool_results)


def load_draft(path_or_hub_id: str | Path, model: Phi4, processor: Processor, *, quiet: bool = False) -> DraftModel:
    """Load a model that drafts for another. Raises Phi4Error, also where their vocabularies differ."""
    draft = DraftModel.of(load(path_or_hub_id, quiet=quiet))
    draft.check(model, processor.tokenizer)
    return draft


def check_adapters(adapters: Mapping[str, str | Path]) -> None:
    """Raises Phi4Error for names and folders that no model could take: found out before one is asked for."""
    for name, folder in adapters.items():
        check_adapter_name(name)
        if not is_sum(folder):
            find_form(expanded(folder))


def _state(adapter: str | Path) -> str | None:
    """What changes with an adapter's files."""
    return None if is_sum(adapter) else folder_state(expanded(adapter))


def model_and_processor(
    model: str | Path | Phi4,
    processor: Processor | None = None,
    *,
    revision: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    quiet: bool = False,
) -> tuple[Phi4, Processor]:
    """A loaded model with its processor as they are; a folder or hub id as ``load`` has it.

    The last one that was loaded here stays in memory until another is asked for, so that the next call need not load it
    again; threads that ask at once wait for the first.
    """
    if not isinstance(model, (str, os.PathLike)):
        if revision is not None:
            raise Phi4Error(f"revision is {revision!r}: it goes with a hub id, not with a loaded model")
        if adapters:
            raise Phi4Error("adapters go with a folder or hub id; a loaded model has add_adapter")
        if processor is None:
            raise Phi4Error("a loaded model needs its processor, as in transcribe(path, model, processor=processor)")
        return model, processor
    if processor is not None:
        raise Phi4Error(f"a processor goes with a loaded model, not with {str(model)!r}")
    with _keeping:
        folder = model_folder(model, revision, quiet=quiet).resolve()
        check_adapters(adapters or {})
        key = _key(folder, adapters)
        if key not in _kept:
            _kept.clear()  # before loading: two models may not fit
            _kept[key] = load(folder, adapters=adapters)
        return _kept[key]


def keep(
    name: str | Path,
    loaded: tuple[Phi4, Processor],
    *,
    revision: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> None:
    """Have ``model_and_processor`` give this model under a name, as if it had loaded it."""
    with _keeping:
        _kept.clear()
        _kept[_key(model_folder(name, revision, quiet=True), adapters)] = loaded


def _key(folder: Path, adapters: Mapping[str, str | Path] | None) -> tuple:
    named = sorted((adapters or {}).items())
    return folder.resolve(), *((name, str(path), _state(path)) for name, path in named)
