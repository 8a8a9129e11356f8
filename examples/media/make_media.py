"""Make the pictures and recordings in this folder: what phi4-tiny was trained for, in ways it never saw.

    python examples/media/make_media.py

Needs what ``examples/phi4_tiny`` needs: its held-out fonts (fonts-liberation) and espeak-ng.
"""

import random
import sys
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "phi4_tiny"))

from data_pictures import draw_shape, draw_text, text_marks  # noqa: E402
from data_speech import RATE, recording  # noqa: E402

FONT = "LiberationSans-Bold.ttf"
# name, text, shape, colour (RGB)
SIGNS = (("sign.png", "7", "star", (38, 84, 205)), ("exit.png", "EXIT", "circle", (226, 37, 37)))
# name, what is said one after another
RECORDINGS = (
    ("command.flac", ["turn on the radio"]),
    ("question.flac", ["what shape is it"]),
    ("list.flac", ["four zero seven two", "open the window", "nine one one five three", "stop the music"]),
)


def sign(text, shape, color):
    """A pale board, 448 x 260 pixels, with a number or word on the left and a shape on the right."""
    picture = Image.new("RGB", (448, 260), (246, 244, 236))
    marks, _ = text_marks(text, FONT, 52)
    draw_text(ImageDraw.Draw(picture), marks, FONT, 52, (40, 40, 60), 40, 100)
    draw_shape(picture, shape, color, 340, 126, 48)
    return picture


def main():
    for name, text, shape, color in SIGNS:
        sign(text, shape, color).save(HERE / name, optimize=True)
    for seed, (name, sentences) in enumerate(RECORDINGS):
        samples = recording(random.Random(seed), sentences, held_out=True)
        soundfile.write(HERE / name, np.round(samples * 32768).astype(np.int16), RATE)


if __name__ == "__main__":
    main()
