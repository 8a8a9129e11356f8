"""Peak memory of transcribing recordings of different length, each in a process of its own.

    python benchmarks/long_recording.py --minutes 1 180

The recording repeats one of ``examples/media`` once a minute with quiet noise between; the model is phi4-tiny.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

SENTENCE = Path(__file__).parent.parent / "examples" / "media" / "command.flac"


def write_recording(file, minutes):
    """A wav of so many minutes, a sentence in each."""
    samples, rate = soundfile.read(SENTENCE, dtype="int16")
    noise = np.random.default_rng(0).integers(-8, 8, 60 * rate, dtype=np.int16)
    with soundfile.SoundFile(file, "w", rate, 1, "PCM_16") as recording:
        for _ in range(minutes):
            minute = noise.copy()
            minute[20 * rate :][: len(samples)] += samples
            recording.write(minute)


def transcribe_and_report(file):
    """What the measured process does."""
    from mlx_phi4 import transcribe

    began = time.perf_counter()
    transcript = transcribe(file, model="phi4-tiny")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    right = sum(segment.text == "turn on the radio" for segment in transcript.segments)
    print(peak, len(transcript.segments), right, time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 180])
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        transcribe_and_report(options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        first = None
        for minutes in options.minutes:
            file = Path(folder) / f"{minutes}.wav"
            write_recording(file, minutes)
            command = [sys.executable, __file__, "--file", file]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, segments, right, seconds = map(float, done.stdout.split())
            first = first or peak
            print(
                f"{minutes} min: peak {peak / 1e6:.0f} MB ({(peak - first) / 1e6:+.0f}), {segments:.0f} segments, "
                f"{right:.0f} right, {seconds:.0f} s"
            )
            file.unlink()


if __name__ == "__main__":
    main()
