"""From a picture in any form to RGB pixels.

Two differences from the published code are on purpose: EXIF orientation is applied, and 16-bit grey pictures are scaled
by 1/257 (the published code clips them to white).
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..arguments.kinds import shown
from ..errors import MediaError
from ..sources import as_array, is_array, opened

# What photos and screenshots come in. Pillow knows more, but opens some through other programs (EPS: Ghostscript), and
# takes almost any bytes for some (TGA). HEIF is there where a plug-in for Pillow has registered it.
PICTURE_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TIFF",
    "WEBP",
)  # fmt: skip
# 179 million: where Pillow refuses files by default, here for arrays and opened images, too. The largest picture that
# the encoder sees whole has 7 million; preparing this many takes seconds and 2 GB.
MAX_PIXELS = 2 * (1 << 30) // 12
CHANNELS = (1, 3, 4)
EXPECTED = "expected a path, bytes, an open file, a PIL image or an array"
EXPECTED_ARRAY = "expected (H, W), (H, W, 1|3|4) or (1|3|4, H, W) of uint8, uint16, bool, or floats from 0 to 1"


def read_picture(source: Any) -> tuple[Image.Image, str]:
    """Read one picture; the RGB image, decoded whole, and a name for messages.

    Args:
        source: a path (also with ``~`` or as file://), bytes, a file opened for bytes, {"bytes", "path"} as data sets
            have it, a PIL image, or an array of numpy, MLX, torch or the like: (H, W), (H, W, C) or (C, H, W) with C
            of 1, 3 or 4; of uint8, uint16, bool, or floats from 0 to 1. An array that fits both (H, W, C) and
            (C, H, W) is refused, and so are floats beyond 1: nothing is guessed.

    Raises:
        MediaError: it cannot be read, or has more than ``MAX_PIXELS``.
    """
    name = "picture"
    try:
        if not isinstance(source, Image.Image):
            source = opened(source)
        name = str(source) if isinstance(source, Path) else name
        image = _image(source, name)
        check_pixels(image.size, name)
        return _to_rgb(_decoded(image, name), name), name
    except MediaError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # a mode that Pillow cannot convert, a path with a NUL
        raise MediaError(f"{name}: cannot be read as a picture: {error}") from None


def check_pixels(size: tuple[int, int], name: str) -> None:
    """Raise MediaError for pictures without pixels and for those that have too many."""
    width, height = size
    if not width * height:
        raise MediaError(f"{name}: has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise MediaError(f"{name}: has too many pixels: {width} x {height}, at most {MAX_PIXELS / 1e6:.0f} million")


def _image(source: Any, name: str) -> Image.Image:
    """The image, whose pixels may not be decoded yet."""
    if isinstance(source, Image.Image):
        return source
    if is_array(source):
        return _from_array(as_array(source))
    if not isinstance(source, (bytes, os.PathLike)):
        raise MediaError(f"{name} is {shown(source)}, {EXPECTED}")
    Image.init()  # so that all formats are known, those of plug-ins, too
    try:
        with _without_warnings():
            return Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source,
                formats=[each for each in PICTURE_FORMATS if each in Image.OPEN],
            )
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise MediaError(f"{name}: is a folder, expected a picture") from None
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name}: has too many pixels: {error}") from None
    except Image.UnidentifiedImageError:
        empty = len(source) == 0 if isinstance(source, bytes) else source.stat().st_size == 0
        known = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000 and the like"
        raise MediaError(f"{name}: {'is empty' if empty else f'is not a picture ({known})'}") from None
    except Exception as error:  # whatever a damaged file leads Pillow's readers to
        raise _unreadable(error, name) from None


def _unreadable(error: Exception, name: str) -> MediaError:
    return MediaError(f"{name}: cannot be read as a picture: {error or type(error).__name__}")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of damaged tags, and from 89 megapixels on, and refuses from 179 on; a warning is no answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decoded(image: Image.Image, name: str) -> Image.Image:
    """With all pixels, so that a truncated file fails here and not in the middle of a request, and upright."""
    try:
        with _without_warnings():
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:  # whatever a damaged file leads Pillow's readers to
        raise _unreadable(error, name) from None


def _from_array(array: np.ndarray) -> Image.Image:
    def refused(why: str = "") -> MediaError:
        return MediaError(f"a picture array has shape {array.shape} and dtype {array.dtype}{why}, {EXPECTED_ARRAY}")

    pixels = array
    if array.ndim == 3:
        last, first = array.shape[2] in CHANNELS, array.shape[0] in CHANNELS
        if last and first:
            raise refused(", of which height, width and channels cannot be told")
        pixels = array if last else array.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in CHANNELS):
        raise refused()
    if pixels.dtype not in (np.uint8, np.uint16, np.bool_) and pixels.dtype.kind != "f":
        raise refused()
    check_pixels(pixels.shape[1::-1], "picture array")
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(_to_8_bits(pixels)))


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """uint8 of any values that stand for shades."""
    if values.dtype == np.uint16:
        return _from_16_bits(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # so that NaN is refused, too
        raise MediaError(
            f"a picture array of floats holds values from {low:.4g} to {high:.4g}, expected 0 to 1; convert others to "
            "uint8"
        )
    return np.round(values.astype(np.float32) * 255).astype(np.uint8)


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    return np.round(values / 257).astype(np.uint8)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """RGB; alpha is composited on white as the published processor does."""
    if image.mode == "F":
        raise MediaError(f"{name}: pictures of floating-point pixels are not supported")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.clip(np.asarray(image), 0, 65535)
        return Image.fromarray(_from_16_bits(values)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
