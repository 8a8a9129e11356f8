"""Token by token: prefill, decoding steps, sampling, and the change of the RoPE regime.

The lowest rung of generation: from ``Inputs`` to token ids, for all rows of a batch at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from .errors import Phi4Error
from .model import Phi4
from .processor import Inputs
from .state import DecodeState

PREFILL_STEP = 2048  # columns of a prompt that go through the decoder at once


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one.

    ``seed`` makes a row's tokens depend on its request and the seed alone, also in a batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self):
        penalty = self.repetition_penalty
        for name, valid, expected in (
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0 (0: off)"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", penalty is None or 0 < penalty < float("inf"), "above 0"),
        ):
            if not valid:
                raise Phi4Error(f"{name} is {getattr(self, name)}, expected {expected}")


class Sampler:
    """Chooses a token for every row: (logits (B, V), step number) -> tokens (B,)."""

    def __init__(self, sampling: Sampling, inputs: Inputs):
        from mlx_lm.sample_utils import make_logits_processors, make_sampler

        self._seed = sampling.seed
        self._greedy = sampling.temperature == 0
        self._choose = make_sampler(
            temp=sampling.temperature,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            top_k=sampling.top_k,
        )
        penalty = sampling.repetition_penalty
        self._processors = make_logits_processors(repetition_penalty=penalty)
        self._history = [inputs.input_ids[row, padding:] for row, padding in enumerate(inputs.padding)]

    def __call__(self, logits: mx.array, step: int) -> mx.array:
        if self._processors:
            logits = mx.concatenate([self._process(row, logits[row : row + 1]) for row in range(logits.shape[0])])
        tokens = self._sample(logits, step)
        if self._processors:
            self._history = [mx.concatenate([seen, tokens[row : row + 1]]) for row, seen in enumerate(self._history)]
        return tokens

    def _process(self, row: int, logits: mx.array) -> mx.array:
        for process in self._processors:
            logits = process(self._history[row], logits)
        return logits

    def _sample(self, logits: mx.array, step: int) -> mx.array:
        if self._greedy:
            return mx.argmax(logits, axis=-1)
        logprobs = logits.astype(mx.float32)
        logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
        if self._seed is None:
            return self._choose(logprobs)
        rows = []
        for row in range(logprobs.shape[0]):
            # one stream of numbers per row and step, whoever else is in the batch
            mx.random.seed(((self._seed << 24) + step) % 2**63)
            rows.append(self._choose(logprobs[row : row + 1]))
        return mx.concatenate(rows)


class Generation:
    """One batch on its way: its state, and what a change of regime needs to rebuild it.

    A row that grows past the original context (4096 tokens) must turn all its keys by the long
    table, so its cache is computed again, once, from the embeddings of its prompt and the tokens
    so far. Kept for that: at most 4096 embeddings per row, and only while a row may get there.
    """

    def __init__(self, model: Phi4, inputs: Inputs, max_tokens: int):
        self.model = model
        self.state = model.new_state(inputs, self._new_cache())
        embeddings = model.embed(inputs)
        self._original = model.config.decoder.rope.original_max_position_embeddings
        self._kept = {
            row: embeddings[row : row + 1, inputs.padding[row] :]
            for row, length in enumerate(inputs.lengths)
            if length <= self._original < length + max_tokens
        }
        self._tokens: list[mx.array] = []
        self._prefilled = self._run(embeddings, self.state)

    def _new_cache(self) -> list:
        from mlx_lm.models.cache import KVCache

        return [KVCache() for _ in self.model.model.layers]

    def _run(self, embeddings: mx.array, state: DecodeState) -> mx.array:
        """Prefill in pieces; the last hidden state (B, 1, D)."""
        for start in range(0, embeddings.shape[1], PREFILL_STEP):
            hidden = self.model.model(embeddings[:, start : start + PREFILL_STEP], state)
            mx.eval([cache.keys_and_values() for cache in state.cache])
        return hidden[:, -1:]

    def first_logits(self) -> mx.array:
        """Logits (B, V) after the prompt."""
        return self.model.logits(self._prefilled)[:, 0]

    def next_logits(self, tokens: mx.array) -> mx.array:
        """Logits (B, V) after ``tokens`` (B,) were appended."""
        for row in list(self._kept):
            if self.state.offset + 1 - self.state.padding[row] > self._original:
                self._lengthen(row)
        if self._kept:
            self._tokens.append(tokens)
        h = self.model.model.embed_tokens(tokens[:, None])
        return self.model.logits(self.model.model(h, self.state))[:, 0]

    def _lengthen(self, row: int) -> None:
        """Compute a row's cache again with the long table and put it in place of the old one."""
        embeddings = self._kept.pop(row)
        if self._tokens:
            tokens = mx.stack([step[row] for step in self._tokens])[None]
            embeddings = mx.concatenate([embeddings, self.model.model.embed_tokens(tokens)], axis=1)
        alone = DecodeState(route=self.state.route.row(row), padding=(0,), long=(True,), cache=self._new_cache())
        self._run(embeddings, alone)
        start, stop = self.state.padding[row], self.state.offset
        for cache, new in zip(self.state.cache, alone.cache, strict=True):
            keys, values = new.keys_and_values()
            cache.keys[row, :, start:stop] = keys[0]
            cache.values[row, :, start:stop] = values[0]
        self.state.long = tuple(True if other == row else long for other, long in enumerate(self.state.long))


def generate_step(
    model: Phi4,
    inputs: Inputs,
    sampling: Sampling | None = None,
    max_tokens: int = 256,
    on_prefilled: Callable[[], None] | None = None,
) -> Iterator[list[int]]:
    """Yield the next token of every row, at most ``max_tokens`` times; never stops by itself.

    The next step is under way on the device while the caller looks at the last one's tokens.
    """
    sampler = Sampler(sampling or Sampling(), inputs)
    generation = Generation(model, inputs, max_tokens)
    tokens = sampler(generation.first_logits(), 0)
    mx.async_eval(tokens)
    if on_prefilled is not None:
        mx.eval(tokens)
        on_prefilled()
    for step in range(1, max_tokens + 1):
        following = None
        if step < max_tokens:
            following = sampler(generation.next_logits(tokens), step)
            mx.async_eval(following)
        yield tokens.tolist()
        tokens = following
