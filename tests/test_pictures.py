"""Pictures of every kind a user may bring, and those that cannot be used."""

import io

import numpy as np
import pytest
from cases import picture
from PIL import Image

from mlx_phi4 import Phi4Error
from mlx_phi4.vision.preprocess import prepare_picture


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def same(first, second, tolerance=0):
    a, b = prepare_picture(first), prepare_picture(second)
    assert a.grid == b.grid and a.kept == b.kept
    return np.abs(a.crops.astype(int) - b.crops.astype(int)).max() <= tolerance


def test_path_bytes_image_and_array_are_one(tmp_path):
    pixels = picture(120, 90)
    data = encoded(Image.fromarray(pixels), format="PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for source in (path, str(path), data, Image.fromarray(pixels)):
        assert same(pixels, source)


def test_alpha_is_composited_on_white():
    pixels = np.zeros((60, 60, 4), np.uint8)
    pixels[:, 30:] = (255, 0, 0, 128)
    expected = np.full((60, 60, 3), 255, np.uint8)
    expected[:, 30:] = (255, 127, 127)
    assert same(pixels, expected, 1)
    assert same(encoded(Image.fromarray(pixels), format="PNG"), expected, 1)


def test_palette_and_grey(tmp_path):
    pixels = picture(80, 80)
    palette = Image.fromarray(pixels).quantize(16)
    assert same(palette, np.asarray(palette.convert("RGB")))
    grey = Image.fromarray(pixels).convert("L")
    assert same(grey, np.repeat(np.asarray(grey)[..., None], 3, axis=-1))
    assert same(np.asarray(grey)[..., None], grey)
    transparent = palette.copy()
    transparent.info["transparency"] = 0
    assert same(transparent, transparent.convert("RGBA"))


def test_16_bit_grey_is_scaled(tmp_path):
    """Clipping, as the published code does, would turn almost all of it white."""
    eight = np.asarray(Image.fromarray(picture(80, 80)).convert("L"))
    sixteen = eight.astype(np.uint16) * 257
    assert same(sixteen, eight)
    assert same(encoded(Image.fromarray(sixteen), format="PNG"), eight)
    assert same(Image.fromarray(sixteen.astype(np.int32)), eight)


def test_orientation_is_applied():
    pixels = picture(100, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    data = encoded(Image.fromarray(pixels), format="PNG", exif=exif)
    assert same(data, np.rot90(pixels, -1).copy())


@pytest.mark.parametrize(
    ("size", "grid", "kept"),
    [
        ((448, 448), (1, 1), (32, 32)),
        ((449, 448), (1, 2), (32, 33)),
        ((1345, 100), (1, 4), (10, 128)),
        ((100, 1345), (4, 1), (128, 10)),
        ((4480, 4480), (6, 6), (192, 192)),
        ((20000, 520), (1, 36), (30, 1152)),
    ],
)
def test_grid_and_padding(size, grid, kept):
    prepared = prepare_picture(np.zeros((size[1], size[0]), np.uint8))
    assert (prepared.grid, prepared.kept) == (grid, kept)
    rows, columns = prepared.kept_cells
    assert prepared.tokens == 256 + 1 + rows * columns + rows + 16


def test_tokens_equal_features(loaded):
    model, _ = loaded()
    for size in ((449, 448), (640, 200), (90, 460)):
        prepared = prepare_picture(picture(*size))
        projected = model.vision_projector(model.vision_encoder(prepared), prepared)
        assert projected.shape[0] == prepared.tokens


def test_large_picture_is_encoded_a_few_views_at_a_time(loaded, monkeypatch):
    """37 views at once would take ten times the memory of four."""
    model, _ = loaded()
    seen = []
    encode = type(model.vision_encoder).encode

    def spy(self, pixels, kept):
        seen.append(len(pixels))
        return encode(self, pixels[:, :28, :28], (2, 2))

    monkeypatch.setattr(type(model.vision_encoder), "encode", spy)
    model.vision_encoder(prepare_picture(np.zeros((2688, 2688), np.uint8)))
    assert sum(seen) == 37 and max(seen) == 4


def test_padding_beyond_the_kept_patches_changes_nothing(loaded):
    """Only the kept part of a view is computed; what would lie outside is masked in the reference, too."""
    model, _ = loaded()
    prepared = prepare_picture(picture(300, 200))
    kept = prepared.kept_by_view[1]
    pixels = prepared.pixels([1])
    noisy = pixels.copy()
    noisy[:, 14 * (kept[0] + 1) :] = 9.0
    expected = model.vision_encoder.encode(pixels, kept)
    assert np.array_equal(np.array(expected), np.array(model.vision_encoder.encode(noisy, kept)))


def truncated(tmp_path, kind):
    path = tmp_path / f"cut.{kind}"
    data = encoded(Image.fromarray(picture(200, 200)), format=kind)
    path.write_bytes(data[: len(data) // 2])
    return path


def test_bad_pictures(tmp_path, monkeypatch):
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.write_bytes(b"")
    text.write_text("not a picture")
    huge = encoded(Image.new("1", (20_000, 10_000)), format="PNG")
    bad = {
        "no such file": tmp_path / "missing.png",
        "empty": empty,
        "not a picture": text,
        "cannot be read": truncated(tmp_path, "png"),
        "truncated": truncated(tmp_path, "jpeg"),
        "too elongated": np.zeros((2, 5000), np.uint8),
        "too many pixels": huge,
        "expected a path": 3.5,
        "dtype int64": np.zeros((20, 20, 3), np.int64),
        "shape": np.zeros((20, 20, 7), np.uint8),
        "floating-point": Image.new("F", (20, 20)),
        "is a folder": tmp_path,
        "cannot be read as": "a\0b",
    }
    for message, source in bad.items():
        with pytest.raises(Phi4Error, match=message) as caught:
            prepare_picture(source)
        assert "\n" not in str(caught.value)
