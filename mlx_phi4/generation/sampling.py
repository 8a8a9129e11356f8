"""How the next token is chosen: filters and penalties in mlx-lm's sense, per row, with seeds that reproduce."""

import math
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ..arguments.kinds import Kind, Unfit, integer, real, settle
from ..errors import Phi4Error

PENALTIES = ("repetition", "presence", "frequency")


def _biases(value) -> dict[int, float]:
    """Token ids, also as JSON has them ("42"), to finite numbers or minus infinity (never)."""
    try:
        return {_token_id(token): _bias.read(bias) for token, bias in ({} if value is None else value).items()}
    except (Unfit, AttributeError, ValueError):
        raise Unfit('a dictionary of token ids and finite numbers, as in {42: -5.0} or {"42": -5.0}') from None


def _token_id(token) -> int:
    return int(token) if isinstance(token, str) and token.isascii() and token.isdigit() else integer(0).read(token)


_bias = real(most=sys.float_info.max, infinite=True)
SAMPLING_KINDS = {
    "temperature": real(0),
    "top_p": real(most=1, above=0),
    "top_k": integer(0, note=" (0: off)"),
    "min_p": real(0, 1),
    "min_tokens_to_keep": integer(1),
    "xtc_probability": real(0, 1),
    "xtc_threshold": real(0, 0.5),
    "repetition_penalty": real(above=0) | None,
    "presence_penalty": real() | None,
    "frequency_penalty": real() | None,
    **{f"{name}_context_size": integer(1) for name in PENALTIES},
    "logit_bias": Kind(_biases),
    "min_tokens": integer(0),
    "seed": integer(0) | None,
    "logprobs": integer(0, 100) | None,
}


@dataclass(frozen=True)
class Sampling:
    """What a row asks for. Temperature 0 takes the most likely token.

    Filters (``top_p``, ``top_k``, ``min_p``, ``xtc_*``) and penalties are mlx-lm's; each penalty looks back
    ``*_context_size`` tokens, prompt included. ``logit_bias`` maps token ids to what is added to their logits; ids may
    be strings, as in JSON.
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
    logit_bias: dict[int | str, float] = field(default_factory=dict)
    min_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self):
        """Name every value that is not of its kind, all at once. Raises Phi4Error."""
        settle(self, SAMPLING_KINDS)

    @property
    def plain(self) -> bool:
        """Whether the token is simply the most likely one, so that a whole batch can choose at once."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return self.temperature == 0 and not any(penalties) and not self.logit_bias and not self.min_tokens


@dataclass
class Sampled:
    """The tokens of one step, on the device until they are read: tokens (R,), and what was asked for besides.

    ``logprobs`` holds a row's log-probability () of its token where the row asks for it, ``top`` pairs (ids,
    log-probabilities), (K,) each, of its best alternatives; both by row. ``errors`` says what a row's own sampler or
    constraint raised; its token means nothing.
    """

    tokens: mx.array
    logprobs: dict[int, mx.array] = field(default_factory=dict)
    top: dict[int, tuple[mx.array, mx.array]] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)

    def arrays(self) -> list:
        """What has to be evaluated."""
        return [self.tokens, list(self.logprobs.values()), list(self.top.values())]


class Sampler:
    """Chooses tokens for one row: penalties over its own history, filters, and random numbers of its own.

    The penalties are mlx-lm's. Its samplers are not used: they draw from MLX's one random state, which a request would
    change under the feet of others. Filters are applied in its order and in its sense.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], stop_ids: frozenset[int], vocabulary: int):
        unknown = [token for token in sampling.logit_bias if not 0 <= token < vocabulary]
        if unknown:
            raise Phi4Error(f"logit_bias names token {unknown[0]}, expected ids from 0 to {vocabulary - 1}")
        self.sampling = sampling
        self._vocabulary = vocabulary
        self._stop_ids = sorted(stop for stop in stop_ids if stop < vocabulary)
        self._stops = mx.array(self._stop_ids, dtype=mx.int32)
        self._seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        self._processors = _processors(sampling)
        self._longest = max(getattr(sampling, f"{name}_context_size") for name in PENALTIES)
        self.rewind(prompt)

    def __call__(self, logits: mx.array, step: int, allowed: mx.array | None = None) -> mx.array:
        """logits (1, V) of the step with this number -> token (1,); ``allowed`` (V,) as of ``narrowed``, None: all."""
        sampling = self.sampling
        if step < sampling.min_tokens and self._stops.size and allowed is None:
            logits = mx.put_along_axis(logits, self._stops[None], mx.array(-math.inf, logits.dtype), axis=-1)
        for process in self._processors:
            logits = process(self._history, logits)
        if allowed is not None:
            logits = mx.where(allowed[None], logits, mx.array(-math.inf, logits.dtype))
        token = self._draw(logits.astype(mx.float32), step) if sampling.temperature else mx.argmax(logits, axis=-1)
        if self._processors:
            self._history = mx.concatenate([self._history, token.astype(mx.int32)])[-self._longest :]
        return token

    def narrowed(self, allowed: np.ndarray, step: int) -> np.ndarray:
        """The tokens (V,) of those that a constraint allows that these settings leave; end tokens if there is no other.

        Raises Phi4Error: there is none.
        """
        left = allowed.copy()
        left[[token for token, bias in self.sampling.logit_bias.items() if bias == -math.inf]] = False
        if not left.any():
            raise Phi4Error("logit_bias forbids every token that could come next")
        if step < self.sampling.min_tokens and self._stop_ids:
            longer = left.copy()
            longer[self._stop_ids] = False
            return longer if longer.any() else left
        return left

    def rewind(self, history: Sequence[int]) -> None:
        """Look back at these tokens from now on."""
        self._history = mx.array(history[-self._longest :], dtype=mx.int32) if self._processors else None

    def _draw(self, logits: mx.array, step: int) -> mx.array:
        # one stream of numbers per row and step, whoever else is in the batch
        state, key = mx.random.split(mx.random.key(((self._seed << 24) + step) % 2**63))
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        sampling = self.sampling
        if sampling.top_p < 1:
            logprobs = _top_p(logprobs, sampling.top_p)
        if sampling.min_p > 0:
            logprobs = _min_p(logprobs, sampling.min_p, sampling.min_tokens_to_keep)
        if sampling.xtc_probability > 0:
            excluded = mx.random.uniform(key=key) <= sampling.xtc_probability
            logprobs = mx.where(excluded, _without_top_choices(logprobs, sampling.xtc_threshold, self._stops), logprobs)
            key = mx.random.split(state)[1]
        if 0 < sampling.top_k < self._vocabulary:
            spare = mx.argpartition(-logprobs, kth=sampling.top_k - 1, axis=-1)[..., sampling.top_k :]
            logprobs = mx.put_along_axis(logprobs, spare, mx.array(-math.inf), axis=-1)
        # the least temperatures are as good as 0; dividing by them would leave the range of float32
        return mx.random.categorical(logprobs * (1 / max(sampling.temperature, 1e-30)), key=key)


def _processors(sampling: Sampling) -> list:
    """mlx-lm's penalties and biases; each takes (history, logits (1, V)) and gives logits."""
    penalties = {f"{name}_penalty": getattr(sampling, f"{name}_penalty") for name in PENALTIES}
    if not any(penalties.values()) and not sampling.logit_bias:
        return []
    from mlx_lm.sample_utils import make_logits_processors

    sizes = {f"{name}_context_size": getattr(sampling, f"{name}_context_size") for name in PENALTIES}
    return make_logits_processors(logit_bias=sampling.logit_bias, **penalties, **sizes)


def _top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """The likeliest tokens that hold this much of the probability (arXiv 1904.09751)."""
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered)
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = above[..., :1] + probabilities[..., :1]
    dropped = (above >= top_p * total).sum(axis=-1, keepdims=True)
    return mx.where(logprobs < mx.take_along_axis(ordered, dropped, axis=-1), -math.inf, logprobs)


def _min_p(logprobs: mx.array, min_p: float, least: int) -> mx.array:
    """Tokens above this share of the likeliest one's probability, and at least so many (arXiv 2407.01082)."""
    removed = logprobs < mx.max(logprobs, axis=-1, keepdims=True) + math.log(min_p)
    if (least := min(least, logprobs.shape[-1])) > 1:
        best = mx.argpartition(logprobs, kth=-least, axis=-1)[..., -least:]
        removed = mx.put_along_axis(removed, best, mx.array(False), axis=-1)
    return mx.where(removed, -math.inf, logprobs)


def _without_top_choices(logprobs: mx.array, threshold: float, exempt: mx.array) -> mx.array:
    """Without all tokens above the threshold but the least likely of them, and with the exempt ones (XTC)."""
    probabilities = mx.softmax(logprobs, axis=-1)
    least = mx.where(probabilities > threshold, probabilities, math.inf).min(axis=-1, keepdims=True)
    removed = probabilities > least
    if exempt.size:
        removed = mx.put_along_axis(removed, exempt[None], mx.array(False), axis=-1)
    return mx.where(removed, -math.inf, logprobs)


def top_logprobs(logits: mx.array, token: mx.array, count: int) -> tuple[mx.array, tuple[mx.array, mx.array] | None]:
    """The log-probability () of a token under logits (V,), and the ``count`` best ids with theirs, best first."""
    logprobs = logits.astype(mx.float32)
    logprobs = logprobs - mx.logsumexp(logprobs, axis=-1)
    if not count:
        return logprobs[token], None
    best = mx.argsort(-logprobs)[:count]
    return logprobs[token], (best, logprobs[best])
