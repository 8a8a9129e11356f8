"""Answers that say what a test has them say, token by token."""

import numpy as np

from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence


class Script:
    """A constraint that leaves one token at a time; where it ends, so does the answer."""

    def __init__(self, processor, tokens):
        self.tokens = [*tokens, processor.tokenizer.special["<|end|>"].id]
        self.vocabulary, self.at = processor.config.decoder.vocab_size, 0

    def allowed(self):
        mask = np.zeros(self.vocabulary, bool)
        mask[self.tokens[min(self.at, len(self.tokens) - 1)]] = True
        return mask

    def advance(self, token):
        self.at += 1

    def accepts(self, tokens):
        return 0

    def rollback(self, count):
        self.at -= count


def said(processor, text):
    """The ids of a text in which ``<|tool_call|>`` and the like are the tokens."""
    return processor.tokenizer.encode(text)


def scripted(processor, request, text, **options):
    """A sequence of a request that answers with a text."""
    script = Script(processor, said(processor, text))
    return Sequence(processor.row(request), GenerationOptions(**options), processor.tokenizer, constraint=script)
