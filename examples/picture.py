"""Pictures: several questions about one picture, which is encoded once.

python examples/picture.py
"""

from pathlib import Path

from mlx_phi4 import MediaCache, generate, load

picture = Path(__file__).parent / "media" / "sign.png"
model, processor = load("phi4-tiny")
cache = MediaCache()
for question in ("Read the number.", "What shape is it?", "Name the color."):
    print(question, generate(model, processor, question, images=[picture], media_cache=cache))
