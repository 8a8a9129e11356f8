"""How fast log-mel features are computed, on one core.

    python benchmarks/log_mel.py
    python benchmarks/log_mel.py --seconds 600 --rate 44100     # with resampling, from an array

Printed: seconds of sound per second, the median of some rounds, of ``log_mel`` on a whole array and
of ``feature_blocks``, which reads (and resamples) a recording block by block.
"""

import os
import statistics
import time
from collections.abc import Callable

import click


def speed(work: Callable[[], object], seconds: float, rounds: int) -> float:
    """Median seconds of sound per second of work, after one round to warm up."""
    work()
    speeds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        speeds.append(seconds / (time.perf_counter() - start))
    return statistics.median(speeds)


@click.command()
@click.option("--seconds", default=300.0, show_default=True, help="Of sound.")
@click.option("--rate", default=16_000, show_default=True, help="Of the sound, in Hz.")
@click.option("--rounds", default=5, show_default=True)
def main(seconds: float, rate: int, rounds: int):
    """Print how many times faster than real time features are computed."""
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):  # one core; read when NumPy is imported, so it is here
        os.environ[f"{library}_NUM_THREADS"] = "1"
    import numpy as np

    from mlx_phi4.audio.preprocess import feature_blocks, log_mel
    from mlx_phi4.audio.reader import NARROW_RATE, SAMPLE_RATE, open_recording

    def read() -> None:
        with open_recording((samples, rate)) as recording:
            for _ in feature_blocks(recording):
                pass

    samples = np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32) * 0.1
    if rate in (SAMPLE_RATE, NARROW_RATE):
        whole = speed(lambda: log_mel(samples, rate), seconds, rounds)
        click.echo(f"log_mel, {seconds:g} s at {rate} Hz: {whole:.0f} times real time")
    click.echo(f"feature_blocks, {seconds:g} s at {rate} Hz: {speed(read, seconds, rounds):.0f} times real time")


if __name__ == "__main__":
    main()
