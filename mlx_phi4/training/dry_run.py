"""What a run would take, from a few small steps: memory and time grow with tokens and with the squares of rows."""

import time
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .data import Data
from .examples import Example
from .options import TrainingOptions
from .order import Order
from .packing import Parameters
from .step import Learner, Updater

PROBES = 4  # steps that are measured


@dataclass(frozen=True)
class Forecast:
    """What a run would take.

    Args:
        peak_bytes: at the batch that takes most.
        seconds: of all iterations; validations are not counted.
        largest: input tokens of the largest batch.
        tokens: input tokens of all iterations.
        trained: numbers that are trained.
        weights_bytes: of the model, in the peak.
    """

    peak_bytes: int
    seconds: float
    largest: int
    tokens: int
    trained: int
    weights_bytes: int

    def __str__(self):
        hours = self.seconds / 3600
        took = f"{hours:.1f} hours" if hours >= 1.5 else f"{self.seconds:.0f} s"
        return (
            f"peak memory about {self.peak_bytes / 1e9:.2f} GB ({self.weights_bytes / 1e9:.2f} GB of weights, "
            f"{self.trained / 1e6:.2f} M trained numbers, {self.largest} tokens in the largest batch); "
            f"about {took} for {self.tokens} tokens"
        )


def forecast(learner: Learner, parameters: Parameters, data: Data, options: TrainingOptions) -> Forecast:
    """Measure steps on single examples from the shortest to the longest, and add up. Writes nothing."""
    units = data.train.units
    order = Order(len(units), options.batch_size, options.seed)
    sizes = np.array([_size(unit) for unit in units], float)
    batches = np.array([sizes[order.batch(i)].sum(axis=0) for i in range(min(options.iters, len(units) + 1))])
    by_length = np.argsort(sizes[:, 0])
    probes = [units[by_length[round(share * (len(units) - 1))]] for share in np.linspace(0, 1, PROBES)]
    probes.append(tuple(each for index in order.batch(0)[:4] for each in units[index]))
    updater = Updater(parameters, lambda update: 0.0, 0.0, options.max_grad_norm)
    found = []
    for number, probe in enumerate([probes[0], *probes]):  # the first one warms up
        mx.clear_cache()
        mx.reset_peak_memory()
        began = time.perf_counter()
        updater.update(parameters, learner.gradients(parameters, probe))
        if number:
            found.append((*_size(probe), mx.get_peak_memory(), time.perf_counter() - began))
    measured = np.array(found, float)
    features = np.column_stack([np.ones(len(measured)), measured[:, 0], measured[:, 1]])
    memory, seconds = (_fit(features, measured[:, column]) for column in (2, 3))
    tokens = np.column_stack([np.ones(len(batches)), batches])
    each = options.iters / len(batches)
    return Forecast(
        peak_bytes=int((tokens @ memory).max()),
        seconds=float((tokens @ seconds).sum() * each),
        largest=int(batches[:, 0].max()),
        tokens=int(batches[:, 0].sum() * each),
        trained=sum(array.size for array in parameters.values()),
        weights_bytes=mx.get_active_memory(),
    )


def _size(unit: tuple[Example, ...]) -> tuple[int, int]:
    """Tokens that go in, and the sum of the squares of rows."""
    return sum(each.length for each in unit), sum(each.length**2 for each in unit)


def _fit(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients that are not negative: a constant, of tokens, of squares."""
    scale = features.max(axis=0)
    best, least = np.zeros(features.shape[1]), np.inf
    for used in ([0, 1, 2], [0, 1], [0, 2], [0]):
        some, *_ = np.linalg.lstsq(features[:, used] / scale[used], values, rcond=None)
        error = float(np.square(features[:, used] / scale[used] @ some - values).sum())
        if (some >= 0).all() and error < least:
            best, least = np.zeros(features.shape[1]), error
            best[used] = some / scale[used]
    return best
