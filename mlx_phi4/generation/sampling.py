"""How the next token is chosen: mlx-lm's samplers and penalties, per row, with seeds that reproduce."""

import math
from dataclasses import dataclass, field

import mlx.core as mx

from ..errors import Phi4Error

PENALTIES = ("repetition", "presence", "frequency")


@dataclass(frozen=True)
class Sampling:
    """What a row asks for. Temperature 0 takes the most likely token.

    Filters (``top_p``, ``top_k``, ``min_p``, ``xtc_*``) and penalties are mlx-lm's; each penalty looks back
    ``*_context_size`` tokens, prompt included. ``logit_bias`` maps token ids to what is added to their logits.
    ``min_tokens`` keeps end tokens away until so many tokens are there. With a ``seed`` a row's tokens depend on its
    request and the seed alone, also in a batch. ``logprobs`` asks for the log-probability of each token under the model
    (before penalties and filters) and of that many best alternatives; None for none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    presence_penalty: float | None = None
    presence_context_size: int = 20
    frequency_penalty: float | None = None
    frequency_context_size: int = 20
    logit_bias: dict[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self):
        """Name every value that is out of its range, all at once. Raises Phi4Error."""
        ranges = {
            "temperature": (lambda x: 0 <= x < math.inf, "at least 0"),
            "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
            "top_k": (lambda x: x >= 0, "at least 0 (0: off)"),
            "min_p": (lambda x: 0 <= x <= 1, "between 0 and 1"),
            "min_tokens_to_keep": (lambda x: x >= 1, "at least 1"),
            "xtc_probability": (lambda x: 0 <= x <= 1, "between 0 and 1"),
            "xtc_threshold": (lambda x: 0 <= x <= 0.5, "between 0 and 0.5"),
            "repetition_penalty": (lambda x: x is None or 0 < x < math.inf, "above 0"),
            "presence_penalty": (lambda x: x is None or math.isfinite(x), "a finite number"),
            "frequency_penalty": (lambda x: x is None or math.isfinite(x), "a finite number"),
            **{f"{name}_context_size": (lambda x: x >= 1, "at least 1") for name in PENALTIES},
            "min_tokens": (lambda x: x >= 0, "at least 0"),
            "seed": (lambda x: x is None or x >= 0, "at least 0"),
            "logprobs": (lambda x: x is None or 0 <= x <= 100, "between 0 and 100"),
        }
        wrong = []
        for name, (valid, expected) in ranges.items():
            value = getattr(self, name)
            try:
                good = valid(value)
            except TypeError:
                good = False
            if not good:
                wrong.append(f"{name} is {value}, expected {expected}")
        if wrong:
            raise Phi4Error("; ".join(wrong))

    @property
    def plain(self) -> bool:
        """Whether the token is simply the most likely one, so that a whole batch can choose at once."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return self.temperature == 0 and not any(penalties) and not self.logit_bias and not self.min_tokens


@dataclass
class Sampled:
    """The tokens of one step, on the device until they are read: tokens (B,), and what was asked for besides.

    ``logprobs`` is (B,) or None; ``top`` holds the ids and log-probabilities (B, K) of the best alternatives, or None.
    """

    tokens: mx.array
    logprobs: mx.array | None = None
    top: tuple[mx.array, mx.array] | None = None

    def rows(self, indices: list[int]) -> "Sampled":
        """The same for some rows only."""
        kept = mx.array(indices)
        return Sampled(
            self.tokens[kept],
            None if self.logprobs is None else self.logprobs[kept],
            None if self.top is None else (self.top[0][kept], self.top[1][kept]),
        )


class RowSampler:
    """Chooses tokens for one row: penalties over its own history, filters, and its own stream of random numbers."""

    def __init__(self, sampling: Sampling, prompt: mx.array, stop_ids: frozenset[int], vocabulary: int):
        from mlx_lm.sample_utils import make_logits_processors, make_sampler

        unknown = [token for token in sampling.logit_bias if not 0 <= token < vocabulary]
        if unknown:
            raise Phi4Error(f"logit_bias names token {unknown[0]}, expected ids from 0 to {vocabulary - 1}")
        self.sampling = sampling
        self._stops = mx.array(sorted(stop for stop in stop_ids if stop < vocabulary))
        self._history = prompt
        self._choose = make_sampler(
            temp=sampling.temperature,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            min_tokens_to_keep=sampling.min_tokens_to_keep,
            # keeping all tokens is no filter, and mlx-lm refuses it
            top_k=sampling.top_k if sampling.top_k < vocabulary else 0,
            xtc_probability=sampling.xtc_probability,
            xtc_threshold=sampling.xtc_threshold,
            xtc_special_tokens=sorted(stop_ids),
        )
        self._processors = make_logits_processors(
            logit_bias=sampling.logit_bias,
            **{
                f"{name}_{part}": getattr(sampling, f"{name}_{part}")
                for name in PENALTIES
                for part in ("penalty", "context_size")
            },
        )

    def __call__(self, logits: mx.array, step: int) -> mx.array:
        """logits (1, V) of the step with this number -> token (1,)."""
        if step < self.sampling.min_tokens:
            logits = mx.put_along_axis(logits, self._stops[None], mx.array(-math.inf, logits.dtype), axis=-1)
        for process in self._processors:
            logits = process(self._history, logits)
        if self.sampling.temperature == 0:
            token = mx.argmax(logits, axis=-1)
        else:
            logits = logits.astype(mx.float32)
            if self.sampling.seed is not None:
                # one stream of numbers per row and step, whoever else is in the batch
                mx.random.seed(((self.sampling.seed << 24) + step) % 2**63)
            token = self._choose(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        if self._processors:
            self._history = mx.concatenate([self._history, token])
        return token


def sample(samplers: list[RowSampler], logits: mx.array, step: int) -> Sampled:
    """Choose for every row: logits (B, V) -> tokens, and log-probabilities where a row asks for them."""
    if all(sampler.sampling.plain for sampler in samplers):
        tokens = mx.argmax(logits, axis=-1)
    else:
        # a copy per row: mlx-lm's penalties write into what they are given
        tokens = mx.concatenate([sampler(logits[row : row + 1], step) for row, sampler in enumerate(samplers)])
    asked = [sampler.sampling.logprobs for sampler in samplers if sampler.sampling.logprobs is not None]
    if not asked:
        return Sampled(tokens)
    logprobs = logits.astype(mx.float32)
    logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    if not max(asked):
        return Sampled(tokens, chosen)
    best = mx.argsort(-logprobs, axis=-1)[:, : max(asked)]
    return Sampled(tokens, chosen, (best, mx.take_along_axis(logprobs, best, axis=-1)))
