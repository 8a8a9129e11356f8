"""Videos on the command line: their options, and what they take, said before it is spent."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..terminal import say
from . import cli

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..vision.video import SeenVideo

_OPTIONS = (
    click.option("--video", "videos", multiple=True, help="A video's path; repeatable."),
    click.option("--frames", type=int, help="Frames of a video, sampled evenly.  [default: 16]"),
    click.option("--fps", type=float, help="Instead of --frames: so many a second of it."),
    click.option("--with-sound", is_flag=True, help="Hear the video, too."),
    click.option("--max-crops", type=int, help="Views of a picture or frame, 1 to 36; fewer take fewer tokens."),
)


def video_options(command):
    """Add the options of videos, and of how closely pictures are seen; names are ``Video``'s."""
    return cli.decorated(command, _OPTIONS)


def see_videos(paths: Iterable[Path | str], quiet: bool, max_crops: int | None, **settings) -> list["SeenVideo"]:
    """Videos as they will be seen, each with its line on standard error. Raises Phi4Error."""
    from ..vision.video import Video

    seen = []
    for video in [Video(path, **settings) for path in paths]:
        seen.append(video.read(max_crops))
        say_seen(seen[-1], quiet)
    return seen


def say_seen(video: "SeenVideo", quiet: bool) -> None:
    """What a video takes, and what a person should know about it."""
    if quiet:
        return
    for warning in video.warnings:
        say(f"warning: {video.name}: {warning}")
    say(video.line)
