"""mlx_phi4.transcribe --live beside the same sound as a file: words, seconds from a pause to its text, memory.

    python benchmarks/live.py --minutes 10              # at real time; ten minutes
    python benchmarks/live.py --minutes 10 --speed 20   # faster than anybody speaks

Sentences of phi4-tiny by its held-out voices with their noise, 0.3 to 1.2 s apart (needs espeak-ng and the extra
``eval``); without espeak-ng, the clips of ``examples/media`` again and again.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parent.parent
MEDIA = ROOT / "examples" / "media"
SPOKEN = {
    "list.flac": "four zero seven two open the window nine one one five three stop the music",
    "command.flac": "turn on the radio",
    "question.flac": "what shape is it",
}
RATE = 16_000  # Hz
GAPS = 0.3, 1.2  # s between sentences
BLOCK = 0.05  # s written at once, as a microphone gives them
WARM_UP = 30.0  # s of sound, after which memory is looked at first


@dataclass
class Figures:
    """What a run showed. ``latencies`` are seconds from a segment's end to its line, ``memory`` MB (first, last)."""

    text: str
    segments: list[dict]
    latencies: list[float]
    memory: tuple[float, float]
    provisional: int
    seconds: float
    stderr: str


def sentences(minutes: float, seed: int = 11) -> tuple[np.ndarray, str]:
    """Samples (n,) int16, and what is said in them."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    parts, said, count = [], [], 0
    while count < minutes * 60 * RATE:
        samples, text = _sentence(rng)
        gap = noise.standard_normal(round(rng.uniform(*GAPS) * RATE)) * 1e-4
        parts += [samples, gap]
        said.append(text)
        count += len(samples) + len(gap)
    return np.round(np.concatenate(parts) * 32767).clip(-32768, 32767).astype("<i2"), " ".join(said)


def _sentence(rng: random.Random) -> tuple[np.ndarray, str]:
    if shutil.which("espeak-ng") is None:
        name = rng.choice(sorted(SPOKEN))
        return soundfile.read(MEDIA / name, dtype="float64")[0], SPOKEN[name]
    sys.path.insert(0, str(ROOT / "examples" / "phi4_tiny"))
    from data_speech import recording, sentence

    text = sentence(rng, held_out=True)
    return recording(rng, [text], held_out=True), text


def run_live(samples: np.ndarray, speed: float = 1.0, model: str = "phi4-tiny") -> Figures:
    """Feed samples through a pipe, ``speed`` times as fast as they were spoken."""
    command = [sys.executable, "-m", "mlx_phi4", "transcribe", "--live", "-", "--model", model, "-f", "jsonl"]
    heard, told, memory = [], [], []
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, cwd=ROOT) as child:
        data, size = samples.tobytes(), 2 * round(BLOCK * RATE)
        head = 2 * size
        child.stdin.write(data[:head])  # it begins to listen once the model is loaded and it has seen what comes
        child.stdin.flush()
        told.append(child.stderr.readline().decode())
        readers = [
            threading.Thread(target=lambda: [heard.append((time.monotonic(), line)) for line in child.stdout]),
            threading.Thread(target=lambda: [told.append(line.decode()) for line in child.stderr]),
        ]
        for reader in readers:
            reader.start()
        began = time.monotonic()
        for at in range(head, len(data), size):
            spoken = (at + size) / 2 / RATE
            time.sleep(max(0.0, began + spoken / speed - time.monotonic()))
            child.stdin.write(data[at : at + size])
            child.stdin.flush()
            if spoken >= WARM_UP and len(memory) < spoken - WARM_UP:
                memory.append(_resident(child.pid))
        child.stdin.close()
        for reader in readers:
            reader.join()
    assert child.returncode == 0, told
    segments = [json.loads(line) for _, line in heard]
    latencies = [moment - began - segment["end"] / speed for (moment, _), segment in zip(heard, segments, strict=True)]
    return Figures(
        " ".join(segment["text"] for segment in segments if segment["text"]),
        segments,
        latencies,
        (memory[0], max(memory)) if memory else (0.0, 0.0),
        sum(line.startswith("...") for line in told),
        time.monotonic() - began,
        "".join(told),
    )


def _resident(process: int) -> float:
    """MB of a process."""
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True).stdout or 0) / 1024


def main():
    from jiwer import wer

    from mlx_phi4 import transcribe

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--speed", type=float, default=1.0)
    options = parser.parse_args()
    samples, said = sentences(options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentences.wav"
        soundfile.write(path, samples, RATE)
        file = transcribe(path, "phi4-tiny")
    live = run_live(samples, options.speed)
    minutes = len(samples) / RATE / 60
    print(f"{minutes:.1f} minutes, {len(said.split())} words, at {options.speed:g}x: {live.seconds:.0f} s")
    print(f"word error rate: file {100 * wer(said, file.text):.2f}, live {100 * wer(said, live.text):.2f}")
    print(f"live against file: {100 * wer(file.text, live.text):.2f}")
    print(f"segments: file {len(file.segments)}, live {len(live.segments)}")
    if options.speed == 1:
        median, high = statistics.median(live.latencies), np.percentile(live.latencies, 95)
        print(f"from the end of a pause to its text: median {median:.2f} s, 95 % within {high:.2f} s")
    print(f"provisional lines: {live.provisional}")
    print(f"memory: {live.memory[0]:.0f} MB after {WARM_UP:.0f} s, {live.memory[1]:.0f} MB at most afterwards")


if __name__ == "__main__":
    main()
