"""The command mlx_phi4.server: a model for any OpenAI client."""

import ipaddress

import click

from .. import distributed
from ..errors import Phi4Error
from . import cli, ranks
from .adapters import adapter_options, check_adapters
from .speculation import check_speculation, open_speculation, speculation_options
from .tools import results_option

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@cli.command("mlx_phi4.server")
@cli.model_option()
@adapter_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
@click.option("--api-key", envvar="MLX_PHI4_API_KEY", help="What clients must send.  [env: MLX_PHI4_API_KEY]")
@click.option("--temperature", default=0.0, show_default=True, help="Of requests that name none.")
@speculation_options
@click.option("--max-rows", default=32, show_default=True, help="Answers that are computed at once.")
@click.option("--max-queue", default=256, show_default=True, help="Requests that may wait; more are answered 429.")
@click.option("--memory-limit", type=float, help="GB of all, weights included.  [default: what the machine recommends]")
@click.option("--max-stall-ms", type=float, help="Longest wait of an answer for others' prompts.")
@click.option("--idle-unload", type=float, metavar="SECONDS", help="Let the weights go when nobody asked for so long.")
@click.option("--max-body-mb", default=64.0, show_default=True, help="Largest request, in megabytes.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds to finish answers when stopped.")
@click.option("--allow-origin", "origins", multiple=True, help="A web page that may call, or *; repeatable.")
@click.option("--allowed-host", "hosts", multiple=True, help="A name behind a proxy; repeatable.")
@click.option("--allow-media-host", "media_hosts", multiple=True, help="Fetch pictures from this host; repeatable.")
@click.option("--root-path", default="", help="Path under which a proxy shows the server.")
@results_option
@click.option("--reasoning-in-content", is_flag=True, help="Leave <think> blocks in the answers' text.")
@click.option("--think-first", is_flag=True, help="A <think> block may come before an answer in a given form.")
@click.option("--log-json", is_flag=True, help="Log lines as JSON.")
@ranks.parallel_option("tensor")
def main(
    model,
    revision,
    adapters,
    parallel,
    host,
    port,
    log_json,
    grace,
    root_path,
    max_rows,
    max_queue,
    memory_limit,
    max_stall_ms,
    idle_unload,
    speculation,
    draft_model,
    tool_results,
    **options,
):
    """Serve a Phi-4 model to any client of OpenAI's protocol, and to a person in a browser.

    Standard output tells the address, once the model is loaded: a browser shows a page there. Standard error gets a
    line for each request.
    """
    _check_positive(memory_limit=memory_limit, max_stall_ms=max_stall_ms, idle_unload=idle_unload)
    check_speculation(speculation, draft_model)
    settings = _settings(host, max_rows, max_queue, **options)
    check_adapters(adapters, options["adapter"], quiet=True)  # requests use them
    here = distributed.join(parallel)
    if here.size > 1 and idle_unload is not None:
        raise Phi4Error("--idle-unload cannot be had where several ranks share a model")
    if here.rank:
        ranks.loaded(model, parallel, revision=revision, adapters=adapters, quiet=True, lazy=False)
    try:
        from ..server.guard import log_to_stderr
        from ..server.serve import Service, listen, serve
        from ..server.service import Settings
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("mlx"):
            raise
        raise Phi4Error(f'the server needs {error.name}: pip install "mlx_phi4[server]"') from None

    def open_engine():
        from functools import partial

        from ..loading import load
        from ..server.engine import Engine
        from ..server.rows import Limits

        memory = None if memory_limit is None else int(memory_limit * 1e9)
        limits = Limits(max_rows, memory, stall=None if max_stall_ms is None else max_stall_ms / 1000)
        told = {"revision": revision, "adapters": adapters, "lazy": False, "tool_results": tool_results}
        reload = partial(load, model, quiet=True, **told)
        loaded = ranks.loaded(model, parallel, **told)
        speculate = partial(open_speculation, speculation, draft_model)
        return Engine(*loaded, limits, max_queue=max_queue, reload=reload, idle_unload=idle_unload, speculate=speculate)

    log_to_stderr(log_json)
    serve(model, Service(Settings(**settings)), listen(host, port), open_engine, grace=grace, root_path=root_path)


def _settings(
    host: str, max_rows: int, max_queue: int, *, api_key, temperature, max_body_mb, origins, hosts, media_hosts, **rest
):
    """The fields of ``server.service.Settings``. Raises Phi4Error."""
    if not 0 <= temperature <= 2:
        raise Phi4Error(f"--temperature is {temperature}, expected 0 to 2")
    if max_rows < 1 or max_queue < 1 or not 0 < max_body_mb < 1e6:
        raise Phi4Error("--max-rows, --max-queue and --max-body-mb are to be at least 1")
    if not is_loopback(host) and not api_key:
        raise Phi4Error(f"--host {host} can be reached from outside: set --api-key or MLX_PHI4_API_KEY")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise Phi4Error("--api-key is to be of printable ASCII characters without spaces around them")
    names = {name.strip("[]").lower() for name in hosts}
    known = names | {*LOOPBACK_NAMES, host.lower()} if names or is_loopback(host) else None
    return {
        "temperature": temperature,
        "api_key": api_key,
        "hosts": None if known is None else frozenset(known),
        "origins": tuple(origins),
        "media_hosts": frozenset(name.strip("[]").lower() for name in media_hosts),
        "max_body": int(max_body_mb * 1e6),
        "max_requests": 2 * (max_rows + max_queue),
        "max_rows": max_rows,
        **rest,
    }


def _check_positive(**options: float | None) -> None:
    """Raises Phi4Error."""
    for name, value in options.items():
        if value is not None and not 0 < value < float("inf"):
            raise Phi4Error(f"--{name.replace('_', '-')} is {value}, expected a number above 0")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def command() -> None:
    """The console script."""
    cli.run(main)
