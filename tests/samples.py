"""Requests of every mode that several test files share."""

import dataclasses

from cases import clip, picture

from mlx_phi4 import Request, stream_generate
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence

PICTURE, OTHER = picture(90, 90), picture(90, 90, seed=3)
SOUND = (clip(0.6), 16_000)
MODES = {
    "text": Request("Tell me of the sea."),
    "vision": Request("What?", images=[PICTURE]),
    "speech": Request("Transcribe.", audios=[SOUND]),
    "vision-speech": Request("Answer.", images=[PICTURE], audios=[SOUND]),
}


def sequence_of(processor, request, text=True, **options):
    """A sequence of a request; without ``text`` only ``max_tokens`` ends it."""
    options = GenerationOptions(**(options | (request.options or {})))
    return Sequence(processor.row(request), options, processor.tokenizer if text else None)


def run(batch):
    """Step until nothing is left; the tokens of each step."""
    steps = []
    while batch.active:
        steps.append(batch.step())
    return steps


def decoded(model, *sequences):
    """Run sequences in one batch to their ends, keeping their states; the batch."""
    batch = Batch(model)
    for sequence in sequences:
        batch.admit(sequence)
        sequence.leave = lambda: None
    run(batch)
    return batch


class ScriptedPool:
    """In place of ``AnswerPool``: every request is answered in one step by ``answer(request, options)``."""

    def __init__(self, answer):
        self.answer, self.asked, self.steps = answer, [], []

    def __call__(self, model, processor):
        self.processor = processor
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def __len__(self):
        return len(self.asked)

    def ask(self, key, request, **options):
        self.processor.row(request)  # raises for what cannot be asked, as the pool itself does
        self.asked.append((key, request, options))

    def step(self):
        asked, self.asked = self.asked, []
        self.steps.append([(request, options) for _, request, options in asked])
        return [(key, self.answer(request, options)) for key, request, options in asked]


def tokens_of(model, processor, request, **options):
    """The tokens of a request alone, and its last response."""
    named = dataclasses.asdict(request)
    for name in ("options", "media"):
        named.pop(name)
    responses = list(stream_generate(model, processor, **named, **options))
    return [response.token for response in responses], responses[-1]
