"""The held-out items of each ability, the same for every program that measures phi4-tiny.

``items("pictures")`` and so on make them anew from fixed seeds (pictures need the font packages,
recordings espeak-ng); ``write`` keeps them as PNG, WAV and JSON lines for machines without either.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data_pictures import question, scene
from data_speech import RATE, recording, sentence
from data_text import answer_about, held_out_items
from PIL import Image
from vocabulary import PICTURE_QUESTIONS, SPEECH_PROMPTS, spoken

ABILITIES = ("text", "pictures", "speech", "joint")
COUNT = 200  # items per ability


@dataclass
class Item:
    """One request and its expected answer.

    ``picture`` is RGB or None; ``audio`` is (float32 samples, samples per second) or None;
    ``prompt`` is the text of the user's turn, after the media; it may be empty.
    """

    ability: str
    index: int
    prompt: str
    picture: Image.Image | None
    audio: tuple[np.ndarray, int] | None
    answer: str


def text_items(count):
    for i, (asked, answer) in enumerate(held_out_items(count)):
        yield Item("text", i, asked, None, None, answer)


def scenes(count):
    """The held-out pictures; written and spoken questions are about the same ones, which saves encoding them twice."""
    rng = random.Random(101)
    return [scene(rng, held_out=True) for _ in range(count)]


def picture_items(count):
    rng = random.Random(104)
    for i, drawn in enumerate(scenes(count)):
        asked, answer = question(rng, drawn.facts, rng.choice(drawn.questions()))
        yield Item("pictures", i, asked, drawn.picture, None, answer)


def speech_items(count):
    rng = random.Random(102)
    for i in range(count):
        text = sentence(rng, held_out=True)
        audio = (recording(rng, [text], held_out=True), RATE)
        yield Item("speech", i, rng.choice(SPEECH_PROMPTS), None, audio, text)


def joint_items(count):
    rng = random.Random(103)
    for i, drawn in enumerate(scenes(count)):
        kind = rng.choice(drawn.questions())
        asked = spoken(rng.choice(PICTURE_QUESTIONS[kind]))
        audio = (recording(rng, [asked], held_out=True), RATE)
        yield Item("joint", i, "", drawn.picture, audio, answer_about(drawn.facts, kind))


def items(ability, count=COUNT):
    """Yield ``count`` items of ``"text"``, ``"pictures"``, ``"speech"`` or ``"joint"``."""
    makers = (text_items, picture_items, speech_items, joint_items)
    yield from dict(zip(ABILITIES, makers, strict=True))[ability](count)


def write(folder, count=COUNT):
    """All items as files: ``items.jsonl`` with paths of PNG and 16-bit WAV files beside it."""
    import soundfile

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "items.jsonl").open("w") as lines:
        for ability in ABILITIES:
            for item in items(ability, count):
                stem = f"{ability}_{item.index:03d}"
                row = {"ability": ability, "index": item.index, "prompt": item.prompt,
                       "picture": None, "audio": None, "answer": item.answer}  # fmt: skip
                if item.picture:
                    row["picture"] = f"{stem}.png"
                    item.picture.save(folder / row["picture"])
                if item.audio:
                    row["audio"] = f"{stem}.wav"
                    samples = np.round(item.audio[0] * 32768).astype(np.int16)
                    soundfile.write(folder / row["audio"], samples, item.audio[1])
                lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the held-out items as files.")
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, default=COUNT)
    options = parser.parse_args()
    write(options.out, options.count)
