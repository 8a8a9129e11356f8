"""Kinds of media: pictures, recordings and videos of every form that is read, as small files."""

import io
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from struct import pack

import numpy as np
from driver import Kind
from mutations import spoiled_bytes
from PIL import Image

from mlx_phi4 import Phi4Error
from mlx_phi4.audio.reader import open_recording
from mlx_phi4.vision.preprocess import prepare_picture
from mlx_phi4.vision.reader import MAX_PIXELS, read_picture
from mlx_phi4.vision.video import Video

RATE = 16_000  # Hz
LONGEST = 4 * 3600  # s of sound that a few kB may claim before reading it is given up here
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2, 3, 16, 255, 65_500)
PARTS = b"\n--part--\n"


def spoiled_binary(random: Random, content: bytes) -> bytes:
    """Bits turned, numbers replaced, mostly in the head, where sizes and rates stand; or bytes moved about."""
    if random.random() < 0.25:
        return spoiled_bytes(random, content)
    made = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        reach = random.choice((64, 256, 1024, len(made)))
        at = random.randrange(min(reach, len(made))) if made else 0
        at = len(made) - 1 - at if random.random() < 0.15 else at  # some formats have their directory at the end
        way = random.randrange(4)
        if way == 0:
            made[at] ^= 1 << random.randrange(8)
        elif way == 1:
            made[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        else:
            number = random.choice(NUMBERS)
            form = random.choice("<>") + random.choice("HI")
            number &= 0xFFFF if form.endswith("H") else 0xFFFFFFFF
            made[at : at + (2 if form.endswith("H") else 4)] = pack(form, number)
    return bytes(made)


@cache
def pictures(folder: Path) -> list[bytes]:
    """Of every form that Pillow can write here."""
    Image.init()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
    image = Image.fromarray(pixels)
    modes = {mode: image.convert("RGB").convert(mode) for mode in ("RGB", "L", "P", "1", "CMYK", "I;16", "LA")}
    modes["RGBA"] = image
    forms = [(form, mode, {}) for form in ("PNG", "WEBP", "TIFF", "GIF", "JPEG2000") for mode in modes]
    forms += [(form, "RGB", {}) for form in ("BMP", "DIB", "ICO", "PCX", "PPM", "QOI", "SGI", "AVIF", "MPO", "JPEG")]
    forms += [("JPEG", "CMYK", {}), ("JPEG", "L", {"progressive": True}), ("PPM", "1", {}), ("BMP", "P", {})]
    forms += [("TIFF", "RGB", {"compression": each}) for each in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    forms += [("GIF", "P", {"save_all": True, "append_images": [modes["L"]]})]
    found = []
    for form, mode, options in forms:
        buffer = io.BytesIO()
        try:
            modes[mode].save(buffer, form, **options)
        except (OSError, KeyError, ValueError):  # a mode that the form does not have, or a form that this Pillow lacks
            continue
        found.append(buffer.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    buffer = io.BytesIO()
    modes["RGB"].save(buffer, "JPEG", exif=exif)
    return [*found, buffer.getvalue()]


def read_a_picture(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted is pixels, and can be prepared."""
    image, _ = read_picture(content)
    assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
    picture = prepare_picture(image, 4)
    assert picture.tokens > 256 and np.isfinite(picture.global_view).all()


def tone(seconds: float = 0.7, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(np.arange(int(rate * seconds)) * 0.3)).astype(np.float32)


@cache
def sounds(folder: Path) -> list[bytes]:
    """Those of libsndfile, then those of PyAV."""
    import soundfile

    found = []
    forms = {
        "WAV": ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "ALAW", "MS_ADPCM", "IMA_ADPCM", "GSM610"),
        "FLAC": ("PCM_16", "PCM_24"), "OGG": ("VORBIS", "OPUS"), "MP3": ("MPEG_LAYER_III",),
        "AIFF": ("PCM_16", "FLOAT"), "AU": ("PCM_16", "ULAW"), "CAF": ("PCM_16", "ALAC_16"),
         "W64": ("PCM_16",), "RF64": ("PCM_16",),
    }  # fmt: skip
    for form, subtypes in forms.items():
        for subtype in subtypes:
            buffer = io.BytesIO()
            soundfile.write(buffer, tone(), RATE, format=form, subtype=subtype)
            found.append(buffer.getvalue())
    return found + containers(folder)


@cache
def containers(folder: Path) -> list[bytes]:
    """Sound that only PyAV reads, of one form each."""
    forms = (("ipod", "aac"), ("mp4", "aac"), ("mov", "pcm_s16le"), ("matroska", "libopus"), ("webm", "libopus"))
    more = (("avi", "libmp3lame"), ("adts", "aac"), ("mpegts", "mp2"), ("matroska", "pcm_s16le"), ("flv", "aac"))
    return [film(form, None, codec) for form, codec in forms + more]


def film(form: str, picture: str | None, sound: str | None, frames: int = 12) -> bytes:
    """A small film: codecs of its pictures and sound."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as out:
        seen = out.add_stream(picture, rate=10, width=64, height=48, pix_fmt="yuv420p") if picture else None
        heard = out.add_stream(sound, rate=48_000 if sound == "libopus" else RATE, layout="mono") if sound else None
        for number in range(frames if seen else 0):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 20 % 256, np.uint8), format="rgb24")
            frame.pts = number
            out.mux(seen.encode(frame))
        if heard:
            samples = (tone(rate=heard.rate) * 32_767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = heard.rate, Fraction(1, heard.rate), 0
            for each in (resampled for resampled in _framed(frame, heard)):
                out.mux(heard.encode(each))
        for stream in filter(None, (seen, heard)):
            out.mux(stream.encode(None))
    return buffer.getvalue()


def _framed(frame, stream):
    """In the form and length of frames that a codec takes."""
    import av

    context = stream.codec_context
    resampler = av.AudioResampler(context.format, "mono", stream.rate, context.frame_size or 1024)
    return [*resampler.resample(frame), *resampler.resample(None)]


def read_a_sound(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted is finite samples; what can be had of a broken file, too."""
    for partial in (False, True):
        try:
            with open_recording(content, partial=partial) as recording:
                seconds = 0.0
                for block in recording.blocks():
                    assert block.dtype == np.float32 and block.ndim == 1 and np.isfinite(block).all()
                    seconds += len(block) / recording.rate
                    if seconds > LONGEST:
                        break
        except Phi4Error:
            if partial:
                raise


@cache
def videos(folder: Path) -> list[bytes]:
    """With and without sound, and animations."""
    found = [film("mp4", "libx264", "aac"), film("webm", "libvpx", "libopus"), film("matroska", "mpeg4", "pcm_s16le")]
    found += [film("avi", "mpeg4", "libmp3lame"), film("mov", "mpeg4", None), film("mpegts", "mpeg4", "mp2", 24)]
    shown = [Image.new("RGB", (48, 40), (number * 60, 0, 99)) for number in range(4)]
    for form in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        shown[0].save(buffer, form, save_all=True, append_images=shown[1:], duration=[100, 200, 100, 50])
        found.append(buffer.getvalue())
    return found


def read_a_video(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted is pictures in order; with its sound or without."""
    video = Video(content, frames=3, max_crops=1)
    try:
        Video(content, fps=2.0, max_crops=1).count_tokens()
    finally:
        seen = video.read()
        assert 1 <= len(seen.pictures) <= 3 and list(seen.times) == sorted(seen.times) and seen.duration >= 0
        Video(content, frames=1, max_crops=1, with_sound=True).read()


MEDIA_KINDS = [
    # 179 million pixels are taken, which take 0.5 GB as RGB, and as much again where they are turned into it
    Kind("picture", 400, read_a_picture, pictures, spoiled_binary, seconds=15, megabytes=2200),
    Kind("sound", 400, read_a_sound, sounds, spoiled_binary, seconds=15),
    Kind("container", 150, read_a_sound, containers, spoiled_binary, seconds=15),
    Kind("video", 150, read_a_video, videos, spoiled_binary, seconds=20, megabytes=2200),
]
