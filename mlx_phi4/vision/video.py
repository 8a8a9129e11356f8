"""Videos: frames as pictures, sampled evenly, and their sound as a clip.

Source: the report's evaluation, which shows the model 16 frames of a video as pictures, in order.
"""

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..arguments.kinds import flag, integer, real, settle, shown
from ..audio.preprocess import Clip, feature_blocks
from ..audio.reader import open_recording
from ..config import TIME_REDUCTION
from ..errors import MediaError, Phi4Error
from ..sources import opened
from .animations import Animation, is_animation
from .movies import Movie
from .preprocess import MAX_CROPS, Picture, crops_kind, picture_tokens, prepare_picture
from .reader import MAX_PIXELS

FRAMES = 16  # of a video, where nothing else is asked for
MOST_FRAMES = 512  # the longest context has room for fewer, whatever they show
MOST_TOKENS = 131_072  # of a video: the longest context
FEATURES_A_SECOND = 100  # rows of log-mel


@dataclass(frozen=True)
class SeenVideo:
    """What was taken from a video: N pictures in order, and when each is shown.

    ``times`` are seconds from the video's start, ``sound`` its sound or None, ``duration`` seconds of all that it
    holds, ``size`` width and height of its frames, ``warnings`` what a person should know.
    """

    name: str
    pictures: tuple[Picture, ...]
    times: tuple[float, ...]
    duration: float
    size: tuple[int, int]
    sound: Clip | None = None
    warnings: tuple[str, ...] = ()

    def __repr__(self):
        return f"SeenVideo({len(self.pictures)} frames, {self.duration:.2f} s, tokens={self.tokens})"

    @property
    def tokens(self) -> int:
        """Length in tokens, the sound's included."""
        return sum(each.tokens for each in self.pictures) + (self.sound.tokens if self.sound else 0)

    @property
    def line(self) -> str:
        """What it takes, for a person."""
        each = self.pictures[0].tokens
        sound = f", and {self.sound.tokens} of sound" if self.sound else ""
        frames = f"{len(self.pictures)} frame{'s' * (len(self.pictures) > 1)} of {self.size[0]} x {self.size[1]}"
        return (
            f"{self.name}: {frames} from {self.times[0]:.2f} to {self.times[-1]:.2f} of {self.duration:.2f} s; "
            f"{len(self.pictures)} x {each}{sound}: {self.tokens} tokens"
        )

    def parts(self) -> list[dict]:
        """Content parts of a message: the pictures, then the sound."""
        sound = [{"type": "audio", "audio": self.sound}] if self.sound else []
        return [{"type": "image", "image": picture} for picture in self.pictures] + sound


@dataclass(frozen=True)
class Video:
    """A video and how it is to be seen.

    Args:
        source: a path, bytes, an open file or a data: address; of a video that PyAV reads (``pip install
            "mlx_phi4[media]"``), or of an animated GIF, WebP or PNG.
        frames: how many are taken, from the middles of as many equal stretches; None is 16. A video that has fewer
            gives each once.
        fps: instead of ``frames``, so many a second, from the start on.
        max_crops: of each frame, see ``vision.preprocess.prepare_picture``; None is the request's own, else 36.
        with_sound: take the sound, too.

    Raises:
        Phi4Error: a bad value, or both ``frames`` and ``fps``.
    """

    source: Any
    frames: int | None = None
    fps: float | None = None
    max_crops: int | None = None
    with_sound: bool = False

    def __post_init__(self):
        kinds = {"frames": integer(1, MOST_FRAMES) | None, "fps": real(above=0, most=1000) | None}
        settle(self, kinds | {"max_crops": crops_kind | None, "with_sound": flag})
        if self.frames is not None and self.fps is not None:
            raise Phi4Error("frames and fps are two ways to say how many; give one")

    def count_tokens(self, max_crops: int | None = None) -> int:
        """Tokens that the video will take, from its header and one frame: known before the others are decoded.

        A video whose rate varies, so that one frame is met twice, takes fewer. Raises MediaError.
        """
        with _Opened(self.source) as opened_video:
            movie = opened_video.movie
            each = picture_tokens(*movie.size, self._crops(max_crops))
            sound = math.ceil(movie.duration * FEATURES_A_SECOND / TIME_REDUCTION) if self.with_sound else 0
            count = len(self._times(movie.duration, opened_video.name))
            return min(count, movie.frames or MOST_FRAMES) * each + sound

    def read(self, max_crops: int | None = None, most_pixels: int = MAX_PIXELS) -> SeenVideo:
        """See it: in memory for its sampled frames and one more, however long it is.

        Raises:
            MediaError: it cannot be read, has no pictures, no sound where that is asked for, or takes more tokens than
                any context holds.
        """
        crops, pictures, times = self._crops(max_crops), [], []
        with _Opened(self.source) as opened_video:
            movie, name = opened_video.movie, opened_video.name
            if movie.size[0] * movie.size[1] > most_pixels:
                raise MediaError(f"{name}: frames of {movie.size[0]} x {movie.size[1]}, at most {most_pixels} pixels")
            wanted = self._times(movie.duration, name)
            _check_tokens(len(wanted) * picture_tokens(*movie.size, crops), len(wanted), movie.frames, name)
            for time, image in movie.frames_at(wanted):
                try:
                    pictures.append(prepare_picture(image, crops))
                except MediaError as error:
                    raise MediaError(f"{name}: {str(error).removeprefix('picture: ')}") from None
                times.append(time)
            if not pictures:
                raise MediaError(f"{name}: is damaged: none of its frames can be decoded")
            if self.with_sound and isinstance(movie, Animation):
                raise MediaError(f"{name}: has no sound")
            sound = _sound(opened_video.source, name) if self.with_sound else None
            seen = tuple(pictures), tuple(times), movie.duration, movie.size
            return SeenVideo(name, *seen, sound, tuple(movie.warnings))

    def _crops(self, usual: int | None) -> int:
        return next(each for each in (self.max_crops, usual, MAX_CROPS) if each is not None)

    def _times(self, duration: float, name: str) -> list[float]:
        """Seconds at which frames are taken."""
        if self.fps is None:
            count = FRAMES if self.frames is None else self.frames
            return [(index + 0.5) * duration / count for index in range(count)]
        count = max(1, math.ceil(duration * self.fps - 1e-6))
        if count > MOST_FRAMES:
            raise MediaError(
                f"{name}: {self.fps:g} frames a second are {count} frames, at most {MOST_FRAMES} are taken"
            )
        return [index / self.fps for index in range(count)]


class _Opened:
    """A context manager: the frames of a source (``movie``) and its ``name`` for messages."""

    def __init__(self, source: Any):
        self.source = opened(source)
        if not isinstance(self.source, (bytes, os.PathLike)):
            raise MediaError(f"video is {shown(source)}, expected a path, bytes or an open file")
        self.name = str(self.source) if isinstance(self.source, Path) else "video"

    def _open_file(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")

    def __enter__(self) -> "_Opened":
        try:
            with self._open_file() as file:
                head = file.read(64)
            if not head:
                raise MediaError(f"{self.name}: is empty")
            self.movie: Movie | Animation = (Animation if is_animation(head) else Movie)(self._open_file, self.name)
        except FileNotFoundError:
            raise MediaError(f"{self.name}: no such file") from None
        except IsADirectoryError:
            raise MediaError(f"{self.name}: is a folder, expected a video") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{self.name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        return self

    def __exit__(self, *exception) -> None:
        self.movie.close()


def _check_tokens(tokens: int, frames: int, there: int | None, name: str) -> None:
    """Raise MediaError for what no context holds: before memory is taken for it."""
    tokens = tokens // frames * min(frames, there or frames)
    if tokens > MOST_TOKENS:
        raise MediaError(
            f"{name}: {frames} frames of {tokens // frames} tokens are {tokens}, more than any context holds "
            f"({MOST_TOKENS}); take fewer frames, or fewer crops of each (max_crops)"
        )


def _sound(source: bytes | Path, name: str) -> Clip:
    import numpy as np

    try:
        with open_recording(source, partial=True) as recording:  # of a video that breaks off, what is there
            return Clip(np.concatenate(list(feature_blocks(recording))))
    except MediaError as error:
        raise MediaError(f"{name}: {str(error).removeprefix('audio bytes: ').removeprefix(f'{name}: ')}") from None


def see(video: Any, max_crops: int | None = None) -> SeenVideo:
    """What is seen of a ``Video``, or of what its source may be; a ``SeenVideo`` passes. Raises MediaError."""
    if isinstance(video, SeenVideo):
        return video
    return (video if isinstance(video, Video) else Video(video)).read(max_crops)
