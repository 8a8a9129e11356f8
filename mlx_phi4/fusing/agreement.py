"""How far a model's answers are from another's: the same requests, the first one's answers, token by token.

The last tokens of each prompt are compared, too: answers may be short.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..decoder.kv_cache import CacheOptions
from ..decoder.state import Run
from ..device import exclusive
from ..inputs.processor import Processor, Request, Row
from ..model import Phi4

ANSWERED = 16  # tokens of each answer that are compared
PROMPTED = 16  # and of each prompt, the last ones
ABOUT_ANYTHING = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain in one sentence why the sky is blue.",
    "Translate into German: The train leaves at nine.",
    "List three fruits.",
    "What is 17 times 6?",
    "Who wrote Hamlet, and when?",
    "Give me a Python function that reverses a string.",
    "Summarize: The meeting was moved from Monday to Thursday because the room was taken.",
    "Is a whale a fish?",
    "Continue the story: The door opened, and",
    "What colour do you get from blue and yellow?",
    "Correct the spelling: I recieved teh lettre.",
    "How do I boil an egg?",
    "Name a planet that has rings.",
    "Answer with yes or no: is 91 a prime number?",
)
ABOUT_PICTURES = "What is in the picture, and which colours does it have?"
ABOUT_SOUND = "Transcribe the audio clip into text."


@dataclass(frozen=True)
class Agreement:
    """What became of the answers of one mode.

    ``tokens`` were compared; ``changed`` is the share of them whose most likely token is another one, ``divergence``
    the mean Kullback-Leibler divergence of the distributions, in nats.
    """

    mode: str
    tokens: int
    changed: float
    divergence: float

    def __str__(self):
        return (
            f"{self.mode}: {100 * self.changed:.1f} % of {self.tokens} tokens change, "
            f"divergence {self.divergence:.4f} nats"
        )


@dataclass(frozen=True)
class Answered:
    """A request's answer, tokens (A,), and the log-probabilities (P, V) float32 of what follows each of the last tokens
    of its prompt, and of its own all but the last.
    """

    mode: str
    tokens: tuple[int, ...]
    logprobs: np.ndarray


def requests_of(
    processor: Processor, prompts: Sequence[str] | None = None, adapter: str | None = None
) -> list[Request]:
    """What is asked: prompts by an adapter, the bundled ones unless others are given, and about media if it can be."""
    asked = [Request(prompt, adapter=adapter) for prompt in prompts or ABOUT_ANYTHING]
    if processor.config.vision:
        asked.append(Request(ABOUT_PICTURES, images=[_picture()]))
    if processor.config.audio:
        asked.append(Request(ABOUT_SOUND, audios=[_tone()]))
    return asked


def answers_of(model: Phi4, processor: Processor, requests: list[Request]) -> list[Answered]:
    """A model's greedy answers."""
    ends = processor.tokenizer.stop_ids
    return [_answered(model, processor.row(request), ends) for request in requests]


def answers_along(model: Phi4, processor: Processor, requests: list[Request], before: list[Answered]) -> list[Answered]:
    """What a model gives along the answers that another one gave."""
    found = []
    for request, other in zip(requests, before, strict=True):
        row = processor.row(request)
        count = min(len(row.ids), PROMPTED) + len(other.tokens) - 1
        longer = Row((*row.ids, *other.tokens[:-1]), row.media, row.mode, row.adapter)
        with exclusive():
            run = Run(model.new_state(row), len(longer.ids), count)
            found.append(Answered(row.mode, other.tokens, _logprobs(model.forward(model.embed(longer), [run]))))
    return found


def compare(before: list[Answered], after: list[Answered]) -> list[Agreement]:
    """The agreement of each mode, in the order in which they come."""
    found = []
    for mode in dict.fromkeys(each.mode for each in before):
        pairs = [(a.logprobs, b.logprobs) for a, b in zip(before, after, strict=True) if a.mode == mode]
        changed = [np.mean(a.argmax(-1) != b.argmax(-1)) * len(a) for a, b in pairs]
        divergence = [float((np.exp(a) * (a - b)).sum()) for a, b in pairs]
        tokens = sum(len(a) for a, _ in pairs)
        found.append(Agreement(mode, tokens, float(sum(changed) / tokens), sum(divergence) / tokens))
    return found


def _answered(model: Phi4, row: Row, ends: Collection[int]) -> Answered:
    """One request, its prompt computed once."""
    with exclusive():
        state = model.new_state(row, CacheOptions().make(len(model.model.layers)))
        logits = model.forward(model.embed(row), [Run(state, len(row.ids), min(len(row.ids), PROMPTED))])
        parts, tokens = [_logprobs(logits)], [int(mx.argmax(logits[0, -1]))]
        while len(tokens) < ANSWERED and tokens[-1] not in ends:
            h = model.model.embed_tokens(mx.array([tokens[-1:]]))
            logits = model.forward(h, [Run(state, 1, 1)])
            parts.append(_logprobs(logits))
            tokens.append(int(mx.argmax(logits[0, -1])))
    return Answered(row.mode, tuple(tokens), np.concatenate(parts))


def _logprobs(logits: mx.array) -> np.ndarray:
    logits = logits[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def _picture() -> np.ndarray:
    """(rows, columns, 3) uint8: gradients under a red disc."""
    rows, columns = np.indices((120, 120))
    disc = (rows - 60) ** 2 + (columns - 60) ** 2 < 40**2
    return np.stack([np.where(disc, 220, rows), np.where(disc, 20, columns), rows // 2 + 60], -1).astype(np.uint8)


def _tone() -> tuple[np.ndarray, int]:
    """Two seconds of a tone that rises, and its rate."""
    seconds = np.arange(2 * 16_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * (200 + 150 * seconds) * seconds)).astype(np.float32), 16_000
