"""A sounddevice module without a sound card: what it hears is given, and what can go wrong does when it is told to."""

import threading
import time
import types

import numpy as np


class PortAudioError(Exception):
    pass


def sounddevice(
    samples=None, rate=16_000, *, device_rate=None, speed=20.0, unplugged=None, refused=False, absent=False
):
    """A module whose microphone gives ``samples`` (n,) int16, then silence.

    ``device_rate`` is the only rate that it takes, ``unplugged`` the seconds after which it is gone, ``refused`` means
    that it cannot be opened, ``absent`` that there is none.
    """
    samples = np.zeros(0, np.int16) if samples is None else samples
    module = types.ModuleType("sounddevice")
    module.PortAudioError, module.opened = PortAudioError, []

    def query_devices(device=None, kind=None):
        if absent or device not in (None, 0, "Built-in"):
            raise PortAudioError(f"Error querying device {-1 if device is None else device}")
        return {"name": "Built-in", "default_samplerate": float(device_rate or rate)}

    def check_input_settings(device=None, channels=None, dtype=None, samplerate=None):
        if device_rate and samplerate != device_rate:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]", -9997)

    class InputStream:
        def __init__(self, device, channels, dtype, samplerate, blocksize, callback, finished_callback):
            if refused:
                raise PortAudioError("Error opening InputStream: Device unavailable [PaErrorCode -9985]", -9985)
            assert (channels, dtype, samplerate) == (1, "int16", device_rate or rate)
            self.settings = blocksize, samplerate, callback, finished_callback
            self.stopped, self.at = threading.Event(), 0  # samples that were given
            module.opened.append(self)

        def start(self):
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()

        def run(self):
            size, hertz, callback, finished = self.settings
            while not self.stopped.is_set():
                if unplugged is not None and self.at / hertz >= unplugged:
                    break
                block = np.zeros(size, np.int16)
                given = samples[self.at : self.at + size]
                block[: len(given)] = given
                callback(block[:, None], size, None, None)
                self.at += size
                time.sleep(size / hertz / speed)
            finished()

        def stop(self):
            self.stopped.set()
            self.thread.join()

        def close(self):
            assert self.stopped.is_set()

    module.query_devices, module.check_input_settings, module.InputStream = (
        query_devices, check_input_settings, InputStream,
    )  # fmt: skip
    return module
