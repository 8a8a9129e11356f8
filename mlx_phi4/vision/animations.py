"""The pictures of an animated GIF, WebP or PNG by their times, through Pillow."""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from PIL import Image

from ..errors import MediaError
from .reader import check_pixels, read_picture

SHORTEST, USUAL = 0.011, 0.1  # s: shorter pictures are shown for the usual time, as browsers do
MOST_PICTURES = 20_000  # of an animation, each of which has to be decoded for its time
ANIMATION_FORMATS = ("GIF", "WEBP", "PNG")


def is_animation(head: bytes) -> bool:
    """Whether a file that begins so is a picture that may move."""
    return head.startswith((b"GIF8", b"\x89PNG")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


class Animation:
    """As ``movies.Movie``: size, duration, frames, warnings and ``frames_at``."""

    def __init__(self, open_file: Callable[[], BinaryIO], name: str):
        self.name, self.warnings = name, []
        self._file = open_file()
        try:
            self._image = Image.open(self._file, formats=ANIMATION_FORMATS)
            check_pixels(self._image.size, name)
            self.size = self._image.size
            self._ends = self._times()
        except MediaError:
            self._file.close()
            raise
        except Exception as error:  # Pillow's
            self._file.close()
            raise MediaError(f"{name}: cannot be read as an animation: {error or type(error).__name__}") from None
        self.duration, self.frames = self._ends[-1], len(self._ends)

    def close(self) -> None:
        """Let go of the file."""
        self._image.close()
        self._file.close()

    def _times(self) -> list[float]:
        """Seconds at which each picture ends; those behind a break are left out."""
        ends, count = [], getattr(self._image, "n_frames", 1)
        if count > MOST_PICTURES:
            raise MediaError(f"{self.name}: has {count} pictures, at most {MOST_PICTURES} are taken")
        for index in range(count):
            try:
                self._image.seek(index)
                self._image.load()
            except Exception:  # whatever a damaged file leads Pillow's readers to
                if not ends:
                    raise
                self.warnings.append(f"is cut off: {len(ends)} of {count} pictures are there, which were seen")
                break
            seconds = (self._image.info.get("duration") or 0) / 1000
            ends.append((ends[-1] if ends else 0.0) + (seconds if seconds >= SHORTEST else USUAL))
        return ends

    def frames_at(self, times: list[float]) -> Iterator[tuple[float, Image.Image]]:
        """Yield (seconds, picture) of the pictures that are shown at these times, in order, each once."""
        before = None
        for time in times:
            index = next((index for index, end in enumerate(self._ends) if end > time), self.frames - 1)
            if index == before:
                continue
            before = index
            try:
                self._image.seek(index)
                image, _ = read_picture(self._image.copy())
            except Exception:  # found only where it is read a second time
                self.warnings.append("is damaged in places, which were left out")
                return
            yield (self._ends[index - 1] if index else 0.0), image
