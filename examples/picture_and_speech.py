"""Picture and speech: a spoken question about a picture; nothing is written.

python examples/picture_and_speech.py
"""

from pathlib import Path

from mlx_phi4 import generate, load

media = Path(__file__).parent / "media"
model, processor = load("phi4-tiny")
print(generate(model, processor, "", images=[media / "sign.png"], audios=[media / "question.flac"]))
