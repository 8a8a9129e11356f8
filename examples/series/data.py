"""Noisy series of six shapes, named by the words that phi4-tiny knows; drawn anew from a seed."""

import json
from pathlib import Path

import numpy as np

LENGTH = 128
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
QUESTIONS = ("What shape is it?", "Name the shape.", "Which shape do you see?")
NOISE = 0.5  # deviation, of a wave between -1 and 1


def draw(shape: str, rng: np.random.Generator) -> np.ndarray:
    """One series (LENGTH,) of a shape, at any phase, two to four periods long.

    circle is a sine, square that wave, triangle single triangles, star a saw, diamond bumps up and down, cross a sweep.
    """
    turns = rng.uniform(2, 4) * np.arange(LENGTH) / LENGTH + rng.uniform(0, 1)
    phase = turns % 1
    wave = {
        "circle": np.sin(2 * np.pi * turns),
        "square": np.where(phase < 0.5, 1.0, -1.0),
        "triangle": 2 * np.maximum(1 - 4 * np.abs(phase - 0.5), 0) - 1,
        "star": 2 * phase - 1,
        "diamond": np.exp(-((phase - 0.25) ** 2) / 0.005) - np.exp(-((phase - 0.75) ** 2) / 0.005),
        "cross": np.sin(2 * np.pi * (turns + 6 * (np.arange(LENGTH) / LENGTH) ** 2)),
    }[shape]
    return wave + NOISE * rng.normal(size=LENGTH)


def write(folder: Path, train: int = 6000, valid: int = 96, test: int = 300) -> Path:
    """A data set of JSON lines: a user's message with a series and a question, and the shape as the answer."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"train": train, "valid": valid, "test": test}.items()):
        rng = np.random.default_rng(seed)
        lines = []
        for number in range(count):
            shape = SHAPES[number % len(SHAPES)]
            content = [
                {"type": "series", "series": [round(float(x), 3) for x in draw(shape, rng)]},
                {"type": "text", "text": QUESTIONS[int(rng.integers(len(QUESTIONS)))]},
            ]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": shape}]
            lines.append(json.dumps({"messages": messages}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
