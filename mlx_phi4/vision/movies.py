"""The frames of a video by their times, through PyAV: sought and decoded one at a time, upright."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import Image

from ..audio.containers import FFMPEG_FORMATS, TRUNCATED, packets
from ..errors import MediaError
from .reader import check_pixels

SEEK_GAP = 4.0  # s to the next frame that is wanted, above which it is sought and not decoded towards
STEPS_BACK = 0.0, 10.0, 60.0  # s before a wanted frame to seek, where a container cannot seek exactly
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class Movie:
    """The first video stream of a container.

    Attributes:
        size: width and height of its frames as they are shown, upright.
        duration: seconds; of a video that is cut off, of what is there.
        frames: how many there are, None where the container does not tell.
        warnings: what a person should know.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], name: str):
        try:
            import av
        except ImportError:
            raise MediaError(f'{name}: needs PyAV to be read: pip install "mlx_phi4[media]"') from None
        self.name, self.warnings = name, []
        self._file = open_file()
        try:
            self._container = av.open(
                self._file, options={"format_whitelist": FFMPEG_FORMATS}, metadata_errors="replace"
            )
            self._look()
        except (av.FFmpegError, MediaError) as error:
            self._file.close()
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{name}: is not a video that can be read, or is damaged: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()
        self._file.close()

    def _look(self) -> None:
        """Find the stream, its length and the size of its frames."""
        pictures = [each for each in self._container.streams.video if not _is_cover(each)]
        if not pictures:
            heard = "; it is a recording, which --audio takes" if self._container.streams.audio else ""
            raise MediaError(f"{self.name}: has no video{heard}")
        stream = self._stream = pictures[0]
        if stream.codec_context is None:
            raise MediaError(f"{self.name}: its video is damaged, or coded in a way that PyAV does not know")
        check_pixels((stream.codec_context.width or 1, stream.codec_context.height or 1), self.name)
        stream.thread_type = "SLICE"  # threads for whole frames would hold many of them
        self._start = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
        self.frames = stream.frames or None
        _, image = next(self._decoded(), (0.0, None))
        if image is None:
            raise MediaError(f"{self.name}: is damaged: none of its frames can be decoded")
        self.size = _upright(image).size
        self.duration = self._length()

    def _length(self) -> float:
        """Seconds, as the container tells, or to where its data end if that is earlier."""
        stream, told = self._stream, None
        if stream.duration:
            told = float(stream.duration * stream.time_base)
        elif self._container.duration:
            told = self._container.duration / 1e6
        if told and self._reaches(told - max(1.0, TRUNCATED * told)):
            return told
        self._seek(0.0)
        found = max(self._ends(), default=0.0)
        if told and found < told - max(1.0, TRUNCATED * told):
            self.warnings.append(f"is cut off: {found:.1f} of {told:.1f} s are there, which were seen")
        return found or told or 0.0

    def _reaches(self, time: float) -> bool:
        """Whether there are packets as late as this; those in between are not read."""
        if time <= 0:
            return False
        self._seek(time)
        return any(end >= time for end in self._ends())

    def _ends(self) -> Iterator[float]:
        """Where each packet that can still be read ends, in seconds."""
        for packet in self._packets():
            if packet.pts is not None:
                yield float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._start

    def frames_at(self, times: list[float]) -> Iterator[tuple[float, Image.Image]]:
        """Yield (seconds, picture) of the frames that are shown at these times, in order, each once."""
        self._seek(0.0)
        frames, shown, following, told = self._decoded(), None, None, None
        for time in times:
            position = shown[0] if shown else 0.0
            if time - position > SEEK_GAP and (sought := self._sought(time)):
                shown, frames = sought
                following = None
            while True:
                following = following or next(frames, None)
                # half a millisecond, as times of frames are rounded
                if following is None or following[0] > time + 5e-4:
                    break
                shown, following = following, None
            first = shown or following  # a video may begin with nothing
            if first and first[0] != told:
                told = first[0]
                yield told, _upright(first[1])

    def _sought(self, time: float) -> tuple[tuple, Iterator] | None:
        """A frame at or before a time, and those after it; None if it has to be decoded towards."""
        for back in STEPS_BACK:
            if not self._seek(max(0.0, time - back)):
                return None
            frames = self._decoded()
            if (first := next(frames, None)) and first[0] <= time:
                return first, frames
        self._seek(0.0)
        frames = self._decoded()
        first = next(frames, None)
        return (first, frames) if first else None

    def _seek(self, time: float) -> bool:
        import av

        with suppress(av.FFmpegError):
            self._container.seek(int((time + self._start) / self._stream.time_base), stream=self._stream)
            return True
        return False

    def _packets(self) -> Iterator[Any]:
        """Until the end, or until where nothing can be read any more."""
        import av

        with suppress(av.FFmpegError, OSError):
            yield from packets(self._container, self._stream)

    def _decoded(self) -> Iterator[tuple[float, Any]]:
        """Pairs (seconds, frame) from where the container stands; packets that are damaged are left out."""
        import av

        time, step = 0.0, 1 / float(self._stream.average_rate or 25)
        self._stream.codec_context.flush_buffers()
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if not any("damaged" in line for line in self.warnings):
                    self.warnings.append("is damaged in places, which were left out")
                continue
            for frame in frames:
                # without times of their own, frames follow at the stream's rate
                time = time + step if frame.time is None else frame.time - self._start
                yield max(time, 0.0), frame


def _is_cover(stream: Any) -> bool:
    """Whether it is the picture of a song."""
    return "attached_pic" in str(stream.disposition).lower()


def _upright(frame: Any) -> Image.Image:
    """A frame as it is shown: turned as its display matrix says."""
    image = frame.to_image()
    turn = TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)
