"""Greedy answers of the reference implementation to the held-out items, as JSON lines.

Loads a checkpoint in the published layout (bfloat16 weights, computed in float32), gives each
request the adapter of its mode (or ``--adapter none``, ``vision``, ``speech`` for all: the
interference table) and prints each ability's accuracy.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from held_out import ABILITIES, COUNT, items
from modeling import load_layout1
from quantization import quantized
from tokenizer import END, END_OF_TEXT, prompt_ids
from tokenizers import Tokenizer
from train_speech import edits
from training import greedy, use
from transformers.models.phi4_multimodal import (
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalImageProcessor,
)

ADAPTERS = {"text": None, "pictures": "vision", "speech": "speech", "joint": "vision"}


class Reference:
    """The reference model of one folder, with its processors."""

    def __init__(self, folder):
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.model = load_layout1(folder, self.tokenizer)
        self.images, self.sounds = Phi4MultimodalImageProcessor(), Phi4MultimodalFeatureExtractor()
        self.stops = [self.tokenizer.token_to_id(name) for name in (END, END_OF_TEXT)]

    def media(self, item):
        """The reference's keyword arguments for an item, and its numbers of placeholders."""
        inputs, pictures, sounds = {}, 0, 0
        if item.picture is not None:
            inputs = dict(self.images(images=item.picture, return_tensors="pt"))
            pictures = int(inputs.pop("num_img_tokens")[0])
        if item.audio is not None:
            samples, rate = item.audio
            heard = self.sounds(samples, sampling_rate=rate, return_tensors="pt")
            inputs |= {k: heard[k] for k in ("audio_input_features", "audio_embed_sizes")}
            sounds = int(heard["audio_embed_sizes"][0])
        return inputs, pictures, sounds

    def answer(self, item, adapter):
        """Token ids and text of the greedy answer, with the adapter named (None: base alone)."""
        inputs, pictures, sounds = self.media(item)
        ids = prompt_ids(self.tokenizer, item.prompt, pictures, sounds)
        new = greedy(use(self.model, adapter), ids, stops=self.stops, **inputs)
        return new, self.tokenizer.decode(new, skip_special_tokens=True)


def score(rows):
    """Exact share and word error rate of ``(answer, expected)`` pairs."""
    exact = sum(a == e for a, e in rows) / len(rows)
    wrong = sum(edits(a.split(), e.split()) for a, e in rows)
    return {"exact": round(exact, 4), "wer": round(wrong / sum(len(e.split()) for _, e in rows), 4)}


def evaluate(folder, out=None, adapter="right", bits4=False, abilities=ABILITIES, count=COUNT):
    """Answer all items; returns ability -> {exact, wer} and writes JSON lines to ``out``."""
    reference, rows, lines = Reference(folder), defaultdict(list), []
    chosen = {"none": None, "vision": "vision", "speech": "speech"}
    with quantized(reference.model, active=bits4):
        for ability in abilities:
            for item in items(ability, count):
                name = ADAPTERS[ability] if adapter == "right" else chosen[adapter]
                ids, text = reference.answer(item, name)
                rows[ability].append((text, item.answer))
                lines.append({"ability": ability, "index": item.index, "prompt": item.prompt,
                              "answer": text, "expected": item.answer, "ids": ids})  # fmt: skip
    if out:
        Path(out).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {ability: score(pairs) for ability, pairs in rows.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="folder in the published layout")
    parser.add_argument("--out", help="JSON lines to write")
    parser.add_argument("--adapter", default="right", choices=("right", "none", "vision", "speech"))
    parser.add_argument("--bits4", action="store_true", help="base rounded to 4 bits, groups of 64")
    parser.add_argument("--abilities", nargs="+", default=list(ABILITIES), choices=ABILITIES)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = evaluate(options.checkpoint, options.out, options.adapter, options.bits4,
                      options.abilities, options.count)  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
