"""--adapter and --use-adapter, which the commands that compute answers share."""

import click

from ..terminal import say


def _named(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not equals or not folder.strip():
            raise click.BadParameter(f"{each!r} is not NAME=FOLDER", context, parameter)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", context, parameter)
        found[name] = folder
    return found


_ADAPTER = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=FOLDER",
    callback=_named,
    help="Load an adapter of peft's or mlx-lm's, or name a sum as both=vision+mine; repeatable.",
)
_USE_ADAPTER = click.option(
    "--use-adapter", "adapter", metavar="NAME", help="Answer by it instead of the mode's own; base: by none."
)


def adapter_options(command):
    """--adapter and --use-adapter: ``adapters`` of ``load``, and ``adapter`` of requests."""
    return _ADAPTER(_USE_ADAPTER(command))


def with_adapters(model: str, adapters: dict[str, str], adapter: str | None, quiet: bool = False) -> dict:
    """``model`` and, where adapters are to be loaded beside it, ``processor``, as the evaluating functions take them.

    Raises Phi4Error.
    """
    if not adapters:
        return {"model": model}
    check_adapters(adapters, adapter, quiet)
    from ..loading import model_and_processor

    return dict(zip(("model", "processor"), model_and_processor(model, adapters=adapters, quiet=quiet), strict=True))


def check_adapters(adapters: dict[str, str], adapter: str | None, quiet: bool = False) -> None:
    """Refuse what cannot be loaded before a model is asked for, and say what nothing uses. Raises Phi4Error."""
    if not adapters:
        return
    from .. import loading

    loading.check_adapters(adapters)
    if adapter is None and not quiet:
        say(f"{', '.join(adapters)}: loaded, but used by nothing here; --use-adapter NAME does")
