"""The command mlx_phi4.chat, and the function that talks on standard input and output."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..arguments import kinds
from ..arguments.names import takes
from ..files import expanded
from ..generation.chat import MAX_TOKENS
from . import cli, ranks
from .adapters import adapter_options, check_adapters
from .forms import form_options, read_form
from .speculation import check_speculation, open_speculation, speculation_options
from .tools import read_tool_options, results_option, tool_options
from .videos import say_seen, video_options

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4


@takes(
    model=kinds.model,
    processor=kinds.processor,
    system=kinds.text | None,
    images=kinds.one_or_several(kinds.path) | None,
    audios=kinds.one_or_several(kinds.path) | None,
    videos=kinds.one_or_several(kinds.path) | None,
    max_crops=kinds.integer() | None,
    frames=kinds.integer() | None,
    fps=kinds.real() | None,
    with_sound=kinds.flag,
    adapter=kinds.text | None,
    hide_thinking=kinds.flag,
    stats=kinds.flag,
    quiet=kinds.flag,
)
def chat(
    model: "Phi4",
    processor: "Processor",
    *,
    system: str | None = None,
    images: Path | str | list | None = None,
    audios: Path | str | list | None = None,
    videos: Path | str | list | None = None,
    max_crops: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    with_sound: bool = False,
    tools: list[dict] | str | None = None,
    adapter: str | None = None,
    hide_thinking: bool = False,
    stats: bool = False,
    quiet: bool = False,
    **options,
) -> None:
    """Talk on standard input and output until the input ends.

    Args:
        system: a system message in front.
        images, audios, videos: a path, or a list of them, that belong to the first turn.
        max_crops: of every picture and frame, see ``vision.preprocess.prepare_picture``.
        frames, fps, with_sound: how videos are seen, see ``vision.video.Video``.
        tools: what the model may call; a call is shown, and ``/result`` answers it.
        adapter: that all answers pass instead of their mode's own; "base" is none.
        hide_thinking: leave ``<think>`` blocks out of what is shown; the history keeps them.
        stats: a line of statistics after each answer.
        quiet: no greeting and no progress.
        options: those of ``stream_generate``, for every answer.

    Raises:
        Phi4Error: a bad option or first medium; later ones are reported in the chat.
        KeyboardInterrupt: Ctrl-C while lines are read from elsewhere than a terminal.
    """
    from ..generation.chat import Chat
    from ..generation.options import make_options
    from ..vision.video import Video
    from .repl import Repl

    make_options(options, also=("system", "images", "audios", "videos", "tools", "adapter", "quiet"))
    how = partial(Video, frames=frames, fps=fps, with_sound=with_sound)
    how("")  # what is wrong with the settings is told now
    talk = Chat(model, processor, system=system, adapter=adapter, max_crops=max_crops, tools=tools, **options)
    for path in images or []:
        talk.attach_image(path)
    for path in audios or []:
        talk.attach_audio(path)
    for path in videos or []:
        say_seen(talk.attach_video(how(expanded(path))), quiet)
    Repl(talk, video=how, hide_thinking=hide_thinking, stats=stats, quiet=quiet).run()


@cli.command("mlx_phi4.chat", default_map={"max_tokens": MAX_TOKENS})
@cli.model_option()
@adapter_options
@click.option("--system", "--system-prompt", help="A system message in front.")
@click.option("--image", "images", multiple=True, help="A picture for the first turn; repeatable.")
@click.option("--audio", "audios", multiple=True, help="A recording for the first turn; repeatable.")
@video_options
@cli.sampling_options
@form_options
@cli.engine_options
@speculation_options
@tool_options
@results_option
@click.option("--hide-thinking", is_flag=True, help="Do not show <think> blocks.")
@click.option("--stats", is_flag=True, help="A line of statistics after each answer.")
@click.option("--quiet", is_flag=True, help="No greeting and no progress.")
@ranks.parallel_option("tensor")
def main(model, revision, adapters, parallel, quiet, stop, speculation, draft_model, tool_results, **options):
    """Talk with a Phi-4 model about text, pictures, recordings and videos.

    Standard output gets the answers and nothing else. /help lists what else can be typed.
    """
    options["stop"] = list(stop)
    options |= {kind: cli.check_media(options[kind]) for kind in ("images", "audios", "videos")}
    options = read_form(options)
    cli.check_options(options)
    check_adapters(adapters, options["adapter"], quiet)
    check_speculation(speculation, draft_model)
    options = read_tool_options(options)
    told = {"revision": revision, "adapters": adapters, "tool_results": tool_results}
    model, processor = ranks.loaded(model, parallel, quiet=quiet, **told)
    options["speculation"] = open_speculation(speculation, draft_model, model, processor, quiet)
    chat(model, processor, quiet=quiet, **options)


def command() -> None:
    """The console script."""
    cli.run(main)
