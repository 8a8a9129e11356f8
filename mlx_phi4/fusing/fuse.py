"""An adapter into the weights of a model, or into a folder that peft or mlx-lm reads."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..arguments import kinds
from ..arguments.names import takes
from ..checkpoint.adapter_files import check_destination as check_adapter_destination
from ..checkpoint.adapter_files import find_form, is_sum, write_adapter
from ..checkpoint.hub import local_folder
from ..converter.convert import one_line, progress_bar
from ..converter.first_use import model_folder
from ..converter.plan import Plan
from ..converter.publish import check_upload, upload
from ..converter.writer import check_destination, move_into_place, partial_folder, write
from ..decoder.adapter_set import ADAPTER_NAME
from ..decoder.adapters import Adapter
from ..errors import ConversionError
from ..files import expanded
from ..inputs.processor import Processor
from ..loading import check_adapters, load
from ..modalities import Mode
from ..model import Phi4
from .agreement import Agreement, Answered, answers_along, answers_of, compare, requests_of
from .cards import adapter_card, fused_card
from .plan import fused_plan

FORMS = ("model", "peft", "mlx-lm")
MOST_CHANGE = 0.05  # share of tokens; what 4 bits cost anew is in benchmarks/README.md
FUSING = "fusing"  # the adapter's name while it is worked on


@takes(
    model=kinds.path,
    adapter=kinds.path,
    save_path=kinds.path,
    form=kinds.choice(*FORMS),
    revision=kinds.text | None,
    dequantize=kinds.flag,
    most_change=kinds.real(0, 1),
    most_media_change=kinds.real(0, 1),
    prompts=kinds.several(kinds.text, least=1) | None,
    overwrite=kinds.flag,
    upload_repo=kinds.text | None,
    quiet=kinds.flag,
)
def fuse(
    model: str | Path,
    adapter: str | Path,
    save_path: str | Path = "fused_model",
    *,
    adapters: Mapping[str, str | Path] | None = None,
    form: str = "model",
    revision: str | None = None,
    dequantize: bool = False,
    most_change: float = MOST_CHANGE,
    most_media_change: float = 1.0,
    prompts: Sequence[str] | None = None,
    overwrite: bool = False,
    upload_repo: str | None = None,
    quiet: bool = True,
) -> list[Agreement]:
    """Fuse an adapter into its base, or take it elsewhere as a folder of its own; both are there whole or not at all.

    A base that has an adapter in it answers all requests by it: of a multimodal model those about pictures and sound,
    too, whose own adapters were made for the base as it was. How much that and packing cost is measured before the
    folder is given its name: token by token along the answers that the model gives with the adapter beside it, those
    about media along its answers so far.

    Args:
        model: folder or hub id, as in ``load``.
        adapter: a folder of peft's or mlx-lm's; or the name of one of the model's own or of ``adapters``, or a sum as
            "vision+mine" (none of the model's own goes into the weights).
        save_path: the new folder.
        adapters: others by their names, which a sum may need.
        form: "model" for the whole model with the adapter in its weights, "peft" or "mlx-lm" for the adapter alone.
        revision: branch, tag or commit of a hub id.
        dequantize: unpack all weights; otherwise packed ones are packed again as they were.
        most_change: the largest share of the text requests' tokens that may become others.
        most_media_change: the same of requests about pictures and sound; 1: they are told of, not judged.
        prompts: texts to measure with, instead of the bundled ones.
        overwrite: replace a folder of the same kind at ``save_path``.
        upload_repo: hub id to publish the result as.
        quiet: no progress on standard error.

    Returns:
        What was measured, of each mode; empty unless ``form`` is "model".

    Raises:
        Phi4Error: what does not fit, or answers that change more than that; nothing is left behind.
    """
    destination, folders = expanded(save_path), dict(adapters or {})
    target = _named(adapter, folders)
    check_adapters(folders)
    with one_line(destination, resumable=False):
        if form == "model":
            check_destination(destination, overwrite)
        else:
            check_adapter_destination(destination, form, overwrite)
        if upload_repo is not None:
            check_upload(upload_repo)
        folder = model_folder(model, revision, quiet=quiet)
        base = None if local_folder(model).is_dir() else str(model)
        net, processor = load(folder, quiet=quiet)
        whole, own = _taken(net, target, folders)
        found = []
        if form == "model":
            if own:
                raise ConversionError(
                    f"{own[0]!r} is the model's own adapter, which the requests of its mode pass in any case; "
                    "--to peft or --to mlx-lm takes it elsewhere"
                )
            check_destination(destination, overwrite, folder)
            before = _before(net, processor, whole, prompts)
            del net  # two models may not fit
            plan = fused_plan(folder, whole, dequantize=dequantize)
            with _written(plan, destination, quiet) as partial:
                found = _cost(partial, before, prompts)
                check_cost(found, most_change, most_media_change)
                (partial / "README.md").write_text(fused_card(base, plan, found), encoding="utf-8")
        else:
            card = {"README.md": adapter_card(base, whole, form)}
            write_adapter(destination, whole, net.config.decoder, form=form, overwrite=overwrite, companions=card)
        if upload_repo is not None:
            upload(destination, upload_repo)
    return found


def _named(adapter: str | Path, folders: dict[str, str | Path]) -> str:
    """The name to ask a model for; a folder gets one. Raises CheckpointError for a folder that is none."""
    if isinstance(adapter, str) and (adapter in folders or is_sum(adapter)):
        return adapter
    if isinstance(adapter, str) and ADAPTER_NAME.fullmatch(adapter) and not expanded(adapter).exists():
        return adapter  # one of the model's own, or none
    find_form(expanded(adapter))
    name = next(each for each in ("adapter", "the-adapter", "fused") if each not in folders)
    folders[name] = adapter
    return name


def _taken(net: Phi4, target: str, folders: dict[str, str | Path]) -> tuple[Adapter, list[str]]:
    """An adapter just as it is stored, and which of the model's own are in it; the model is as it was."""
    own = set(net.adapters)
    for name, folder in sorted(folders.items(), key=lambda each: is_sum(each[1])):
        net.add_adapter(name, folder, train=not is_sum(folder))
    if is_sum(target):
        net.add_adapter(name := next(each for each in ("sum", "the-sum", "added") if each not in net.adapters), target)
        target = name
    whole = net.adapters.get_adapter(target)
    parts = [part for part in net.adapters[target] if part in own]
    for name in reversed(list(net.adapters)):
        if name not in own:
            net.remove_adapter(name)
    return whole, parts


def _before(net: Phi4, processor: Processor, whole: Adapter, prompts: Sequence[str] | None) -> list[Answered]:
    """What the model answers with the adapter beside it, and to requests about media without."""
    net.add_adapter(FUSING, whole)
    return answers_of(net, processor, requests_of(processor, prompts, FUSING))


def _cost(folder: Path, before: list[Answered], prompts: Sequence[str] | None) -> list[Agreement]:
    net, processor = load(folder, quiet=True)
    return compare(before, answers_along(net, processor, requests_of(processor, prompts), before))


def check_cost(found: list[Agreement], most_change: float, most_media_change: float) -> None:
    """Raises ConversionError where answers change more than asked."""
    for each in found:
        text = each.mode == Mode.TEXT
        most = most_change if text else most_media_change
        if each.changed > most:
            advice = "--dequantize keeps more, --most-change" if text else "--most-media-change"
            raise ConversionError(
                f"fused, the answers would change more than asked ({100 * most:g} %): {each}; {advice} allows more"
            )


@contextmanager
def _written(plan: Plan, destination: Path, quiet: bool) -> Iterator[Path]:
    """A plan's folder, hidden beside its destination: it gets its name unless an error says that it is not to."""
    partial = destination.with_name(f".{destination.name}.{FUSING}")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        with progress_bar("Fusing", plan.bytes_in, quiet) as progress:
            write(plan, partial, progress=progress)
        yield partial
        move_into_place(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(partial_folder(partial), ignore_errors=True)
