"""A long recording of the held-out sentences against the same sentences one by one: word error rates in MLX.

python examples/phi4_tiny/held_out.py --out ITEMS                  # needs the fonts and espeak-ng
python examples/phi4_tiny/evaluate_long.py --items ITEMS           # this package and its extra eval
"""

import argparse
import json
import random
from pathlib import Path

import jiwer
import numpy as np
import soundfile

from mlx_phi4 import load, transcribe

GAPS = (0.1, 1.2)  # seconds between sentences, beside the silence that they bring along


def read_sentences(folder, count):
    """(samples, transcript) of the speech items, and their rate."""
    found = []
    for line in (Path(folder) / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        if item["ability"] == "speech" and item["index"] < count:
            samples, rate = soundfile.read(Path(folder) / item["audio"], dtype="float32")
            found.append((samples, item["answer"]))
    return found, rate


def clean_sentences(count):
    """(samples, transcript) by held-out voices without noise, and their rate; needs espeak-ng."""
    from data_speech import HELD_OUT_ACCENTS, HELD_OUT_SPEEDS, HELD_OUT_VOICES, RATE, sentence, speak

    rng, found = random.Random(77), []
    for _ in range(count):
        text = sentence(rng, held_out=True)
        voice = f"{rng.choice(HELD_OUT_ACCENTS)}+{rng.choice(HELD_OUT_VOICES)}"
        found.append((speak(text, voice, rng.choice(HELD_OUT_SPEEDS), 50).astype(np.float32), text))
    return found, RATE


def one_after_another(sentences, rate):
    """All sentences as one recording."""
    rng, parts = random.Random(0), []
    for samples, _ in sentences:
        parts += [samples, np.zeros(round(rate * rng.uniform(*GAPS)), np.float32)]
    return np.concatenate(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", help="folder that held_out.py wrote; without it, clean sentences are made")
    parser.add_argument("--model", default="phi4-tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    model, processor = load(options.model, dtype=options.dtype)
    sentences, rate = read_sentences(options.items, options.count) if options.items else clean_sentences(options.count)
    said = [text for _, text in sentences]
    long = transcribe((one_after_another(sentences, rate), rate), model, processor=processor)
    alone = [transcribe((samples, rate), model, processor=processor).text for samples, _ in sentences]
    print(f"{len(sentences)} sentences, {long.duration:.0f} s in {len(long.segments)} segments")
    rates = jiwer.wer(" ".join(said), long.text), jiwer.wer(said, alone)
    print("word error rate: one recording {:.2%}, one by one {:.2%}".format(*rates))


if __name__ == "__main__":
    main()
