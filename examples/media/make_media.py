"""Make the picture and the recording in this folder.

    python examples/media/make_media.py

Needs espeak-ng (Debian and Homebrew have it) for the speech and DejaVu Sans for the lettering.
"""

import subprocess
import tempfile
from pathlib import Path

import soundfile
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).parent
QUESTION = "What is written on the sail?"


def boat() -> Image.Image:
    """A sailing boat with a number on its sail, 1200 x 800 pixels."""
    image = Image.new("RGB", (1200, 800))
    draw = ImageDraw.Draw(image)
    for y in range(800):
        sky, sea = (150 + y // 8, 195 + y // 14, 240), (30, 110 - (y - 520) // 6, 150 - (y - 520) // 8)
        draw.line([(0, y), (1200, y)], fill=sky if y < 520 else sea)
    draw.ellipse([960, 70, 1080, 190], fill=(255, 226, 120))
    for x in range(0, 1200, 90):
        for y in range(560, 800, 60):
            left = x + 37 * (y // 60 % 3)
            draw.arc([left, y, left + 70, y + 24], 200, 340, fill=(150, 200, 220), width=3)
    draw.polygon([(380, 560), (830, 560), (760, 650), (450, 650)], fill=(150, 60, 40))
    draw.rectangle([596, 150, 606, 560], fill=(90, 60, 40))
    draw.polygon([(616, 160), (616, 530), (860, 530)], fill=(250, 248, 240))
    draw.polygon([(586, 200), (586, 530), (400, 530)], fill=(225, 60, 60))
    draw.text((640, 400), "42", fill=(30, 30, 60), font=ImageFont.truetype("DejaVuSans-Bold.ttf", 90))
    return image.filter(ImageFilter.GaussianBlur(0.8))


def main():
    boat().save(HERE / "boat.jpg", quality=88)
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "question.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(wav), QUESTION], check=True)
        samples, rate = soundfile.read(wav)
    soundfile.write(HERE / "question.flac", samples, rate)


if __name__ == "__main__":
    main()
