"""The microphone, through sounddevice (``pip install "mlx_phi4[live]"``); imported by nothing that does without."""

import queue
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import MediaError
from .reader import SAMPLE_RATE

BLOCK_SECONDS = 0.05
GONE_SECONDS = 3.0  # without any sound, not even silence: the device is not there any more
MUTE_SECONDS = 5.0  # of nothing but zeros from the start: nobody let this program hear


class Microphone:
    """An open microphone; a context manager, inside of which it hears.

    Sound that is not taken yet waits in memory, 32 KB a second: none is lost while the model is busy.

    Attributes:
        rate: of the blocks, in Hz: 16 kHz where the device can, else its own.
        form: what it is, for a person.
    """

    name = "microphone"

    def __init__(self, device: str | int | None = None, warn: Callable[[str], None] = lambda line: None):
        """Find the device: a number or a part of its name, None for the system's own choice.

        ``warn`` is told what a person should know. Raises MediaError: there is none, or it cannot be used.
        """
        self._sounddevice = sounddevice = _sounddevice()
        self._warn, self._blocks, self._stream = warn, queue.SimpleQueue(), None
        device = int(device) if isinstance(device, str) and device.isdigit() else device
        try:
            found = sounddevice.query_devices(device, "input")
        except (sounddevice.PortAudioError, ValueError) as error:
            what = "no microphone was found" if device is None else f"there is no microphone {device!r}"
            raise MediaError(f"{what}: {_reason(error)}") from None
        self._device, self.rate = device, SAMPLE_RATE
        try:
            sounddevice.check_input_settings(device=device, channels=1, dtype="int16", samplerate=SAMPLE_RATE)
        except (sounddevice.PortAudioError, ValueError):
            self.rate = int(found["default_samplerate"])
        self.form = f"{found['name']}, {self.rate} Hz"

    def __enter__(self) -> "Microphone":
        sounddevice = self._sounddevice
        try:
            self._stream = sounddevice.InputStream(
                device=self._device,
                channels=1,
                dtype="int16",
                samplerate=self.rate,
                blocksize=int(BLOCK_SECONDS * self.rate),
                callback=self._take,
                finished_callback=lambda: self._blocks.put(None),
            )
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise MediaError(
                f"the microphone cannot be used: {_reason(error)}; is another program using it, or is this one not "
                "allowed to hear (on a Mac: System Settings, Privacy & Security, Microphone)?"
            ) from None
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Hear no more; what was heard already can still be taken."""
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.stop()
                stream.close()
            except self._sounddevice.PortAudioError:  # it is gone
                pass
            self._blocks.put(None)

    @property
    def waiting(self) -> float:
        """Seconds that were heard and not taken yet."""
        return self._blocks.qsize() * BLOCK_SECONDS

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield int16 (n,) as it is heard, until it is closed. Raises MediaError: the device is gone."""
        heard, mute = 0.0, True
        while True:
            try:
                block = self._blocks.get(timeout=GONE_SECONDS)
            except queue.Empty:
                raise self._gone() from None
            if block is None:
                if self._stream is not None:
                    raise self._gone()
                return
            heard += len(block) / self.rate
            mute = mute and not block.any()
            if mute and heard >= MUTE_SECONDS:
                mute = False
                self._warn(
                    "the microphone gives nothing but silence: is it muted, or is this program not allowed to hear "
                    "(on a Mac: System Settings, Privacy & Security, Microphone)?"
                )
            yield block

    def _gone(self) -> MediaError:
        return MediaError("the microphone gives no sound any more: was it unplugged?")

    def _take(self, samples: np.ndarray, frames: int, moment: Any, status: Any) -> None:
        """Called by sounddevice in a thread of its own."""
        if getattr(status, "input_overflow", False):
            self._warn("the system lost some sound before it could be taken")
        self._blocks.put(samples[:, 0].copy())


def record(
    seconds: float, stop: Callable[[], bool], begun: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, int]:
    """What is said until ``stop`` is true, or so many seconds at most: samples (n,) int16, and their rate.

    ``begun`` is called once the microphone hears. Raises MediaError as ``Microphone``, and where all was silence.
    """
    parts, heard = [], 0.0
    with Microphone() as microphone:
        begun()
        for block in microphone.blocks():
            parts.append(block)
            heard += len(block) / microphone.rate
            if stop() or heard >= seconds:
                break
    if not any(part.any() for part in parts):
        raise MediaError("nothing but silence was recorded: is the microphone muted, or not allowed to this program?")
    return np.concatenate(parts), microphone.rate


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise MediaError('the microphone needs sounddevice: pip install "mlx_phi4[live]"') from None
    except OSError:
        raise MediaError(
            "the microphone needs the PortAudio library, which is not there (Debian, Ubuntu: apt install libportaudio2)"
        ) from None
    return sounddevice


def _reason(error: Exception) -> str:
    """What PortAudio says, in a few words."""
    return str(error.args[0] if error.args else error).strip().rstrip(".").removeprefix("Error opening InputStream: ")
