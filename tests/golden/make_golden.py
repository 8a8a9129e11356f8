"""Write the golden files: what the reference implementation answers to every case, at two model sizes.

    pip install -e ".[reference]"
    python tests/golden/make_golden.py

See README.md beside this file for what is in them.
"""

import hashlib
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
from cases import CASES, Case
from reference import Prepared, Reference

from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

DATA = Path(__file__).parent / "data"
GOLDEN_SIZES = ("reduced", "wide")
POSITIONS = 8  # of each case: logits over the whole vocabulary
PIXEL_STRIDE = 5  # of the stored views, both ways; no divisor of the patch size
STRIDES = {"vision_features": 7, "picture_embeddings": 23, "conformer_95s": 16, "merged": 23}  # tokens


def positions(length: int) -> np.ndarray:
    """Evenly spread, first and last included."""
    return np.unique(np.linspace(0, length - 1, POSITIONS).round().astype(int))


def golden(prepared: Prepared, logits: np.ndarray) -> dict[str, np.ndarray]:
    """The stored arrays of one case. `margin`: how far the top logit is above the second, at every position."""
    chosen = positions(len(logits))
    second, first = np.sort(logits, -1)[:, -2:].T
    return {
        "input_ids": prepared.input_ids[0].numpy().astype(np.int32),
        "positions": chosen.astype(np.int32),
        "logits": logits[chosen],
        "top": logits.argmax(-1).astype(np.int16),
        "margin": (first - second).astype(np.float16),
        "image_tokens": np.array(prepared.image_tokens, np.int32),
        "audio_tokens": np.array(prepared.audio_tokens, np.int32),
    }


def stages(reference: Reference, prepared: dict[str, Prepared]) -> dict[str, np.ndarray]:
    """Values between the stages for a few cases, so that a failing test can name its stage."""
    found = {}
    for case in ("picture_exact", "picture_tall"):
        features = reference.vision_features(prepared[case])
        found[f"vision_features/{case}"] = features[:, :: STRIDES["vision_features"]]
        embeddings = reference.picture_embeddings(prepared[case])
        found[f"picture_embeddings/{case}"] = embeddings[:: STRIDES["picture_embeddings"]]
    found["conformer/clip_1s"] = reference.conformer(prepared["clip_1s"])[0]
    found["conformer/clip_95s"] = reference.conformer(prepared["clip_95s"])[0][:: STRIDES["conformer_95s"]]
    for projector in ("speech", "vision"):
        found[f"audio_embeddings/{projector}"] = reference.audio_embeddings(prepared["clip_1s"], projector)[0]
    found["merged/picture_clip"] = reference.embed(prepared["picture_clip"])[0, :: STRIDES["merged"]].numpy()
    return found


def media(prepared: dict[str, Prepared]) -> dict[str, np.ndarray]:
    """What the processors make of pictures and clips; the same at every model size.

    Crops are grey levels (0-255); the global view keeps its fractions, which leave that range near edges.
    """
    found = {"log_mel/clip_1s": prepared["clip_1s"].clips[0][0].numpy()}
    found["log_mel/clip_6s"] = prepared["clip_6s"].clips[0][0].numpy()[::7]
    for case in ("picture_exact", "picture_wide", "picture_tall", "picture_small"):
        pictures = prepared[case].pictures
        views = pictures["image_pixel_values"][0].numpy()[:, :, ::PIXEL_STRIDE, ::PIXEL_STRIDE]
        levels = views.transpose(0, 2, 3, 1) * 127.5 + 127.5
        found[f"global/{case}"] = levels[0].astype(np.float16)
        found[f"crops/{case}"] = levels[1:].round().astype(np.uint8)
        found[f"mask/{case}"] = pictures["image_attention_mask"][0].numpy().astype(bool)
        found[f"size/{case}"] = pictures["image_sizes"][0].numpy()  # (height, width) of the stitched crops
    return found


def report(size: str, case: Case, prepared: Prepared, logits: np.ndarray, seconds: float):
    margin = np.sort(logits, -1)[:, -2:]
    margin = margin[:, 1] - margin[:, 0]
    views = prepared.pictures["image_pixel_values"].shape[1] if prepared.pictures else 0
    print(
        f"{size:8} {case.name:14} tokens {len(logits):5}  image {prepared.image_tokens} audio {prepared.audio_tokens} "
        f"views {views}  logits' deviation {logits.std():.2f}  smallest margin {margin.min():.5f}, "
        f"{(margin < 0.1).mean():.1%} under 0.1  {seconds:.1f} s",
        flush=True,
    )
    assert margin.min() > 0, "two tokens tie for the top"
    if case.name == "clip_95s":
        assert prepared.audio_tokens[0] > 500, "the long clip must cross the conformer's window of 500 frames"
    if case.name == "picture_large":
        assert views == 37, views


def make_size(size: str, folder: Path) -> str:
    """Write the golden files of one size; returns the digest of its weights."""
    reference = Reference(write_random_checkpoint(folder / "transformers", "transformers", size))
    small = {}
    for case in CASES:
        start = time.perf_counter()
        prepared = reference.prepare(case.chat(), case.images(), case.audios())
        logits = reference.logits(prepared)
        if len(logits) < 2000:  # the pieces put together here against the reference's own single call
            direct = reference.forward(prepared)
            assert np.abs(direct - logits).max() < 1e-4, (case.name, np.abs(direct - logits).max())
        np.savez_compressed(DATA / f"{size}_{case.name}.npz", **golden(prepared, logits))
        report(size, case, prepared, logits, time.perf_counter() - start)
        if case.name != "picture_large":
            small[case.name] = prepared
    np.savez_compressed(DATA / f"{size}_stages.npz", **stages(reference, small))
    if size == GOLDEN_SIZES[0]:
        np.savez_compressed(DATA / "media.npz", **media(small))
    return digest(size, folder)


def digest(size: str, folder: Path) -> str:
    """SHA-256 of the checkpoint in Microsoft's layout: golden files belong to exactly these weights."""
    path = write_random_checkpoint(folder / "microsoft", "microsoft", size) / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.Choice(GOLDEN_SIZES), default=GOLDEN_SIZES)
def main(sizes: tuple[str, ...]):
    """Write tests/golden/data."""
    DATA.mkdir(exist_ok=True)
    made_with = DATA / "made_with.json"
    notes = json.loads(made_with.read_text()) if made_with.exists() else {"weights": {}}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            notes["weights"][size] = digest_of = make_size(size, Path(folder))
        print(f"{size}: weights {digest_of[:16]}")
    packages = ("torch", "torchvision", "transformers", "peft", "tokenizers", "numpy", "pillow")
    notes["python"] = sys.version.split()[0]
    notes["packages"] = {name: version(name) for name in packages}
    notes["strides"] = STRIDES | {"pixels": PIXEL_STRIDE}
    made_with.write_text(json.dumps(notes, indent=1) + "\n")
    total = sum(path.stat().st_size for path in DATA.iterdir())
    print(f"{total / 1e6:.2f} MB in {DATA.name}/")
    assert total < 3e6, "golden files are meant to stay under 3 MB"


if __name__ == "__main__":
    main()
