"""Pictures and recordings as people have them: open files, arrays of other libraries, rows of data sets, addresses."""

import base64
import io
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from cases import clip, picture
from PIL import Image

from mlx_phi4 import MediaCache, Phi4Error, PromptCache, Request, Segment, Transcript, generate, transcribe
from mlx_phi4.audio.preprocess import prepare_clip, read_audio
from mlx_phi4.audio.reader import open_recording
from mlx_phi4.vision import reader
from mlx_phi4.vision.preprocess import prepare_picture

PIXELS = picture(60, 40)
SAMPLES = clip(1.0)


def png():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    return buffer.getvalue()


def wav():
    buffer = io.BytesIO()
    soundfile.write(buffer, SAMPLES, 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


class Tensor:
    """torch's tensor as far as it is used here: on its device, on its tape, of a type that numpy lacks."""

    dtype = "torch.bfloat16"

    def __init__(self, array, steps=()):
        self.array, self.steps, self.shape = array, steps, array.shape

    def detach(self):
        return Tensor(self.array, (*self.steps, "detach"))

    def cpu(self):
        return Tensor(self.array, (*self.steps, "cpu"))

    def float(self):
        return np.asarray(self.array, np.float32) if self.steps == ("detach", "cpu") else None

    def __array__(self, *arguments, **named):
        raise TypeError("can't convert")


def same_picture(source, expected=PIXELS):
    return prepare_picture(source).key == prepare_picture(expected).key


def same_sound(source, expected=(SAMPLES, 16_000)):
    return np.array_equal(read_audio(source)[0], read_audio(expected)[0])


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A home folder with a picture and a recording whose names have spaces."""
    (tmp_path / "a b.png").write_bytes(png())
    (tmp_path / "a b.wav").write_bytes(wav())
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("same", "name"), [(same_picture, "a b.png"), (same_sound, "a b.wav")])
def test_paths_files_and_rows_of_data_sets(files, same, name):
    path, data = files / name, (files / name).read_bytes()
    url = path.as_uri()
    assert "%20" in url
    for source in (str(path), f"~/{name}", url, url.replace("file://", "file://localhost")):
        assert same(source)
    for source in ({"bytes": data, "path": name}, {"bytes": None, "path": str(path)}, io.BytesIO(data)):
        assert same(source)
    assert same("data:application/octet-stream;base64," + base64.b64encode(data).decode())
    with path.open("rb") as file:
        file.seek(7)
        assert same(file) and file.tell() == 7 and same(file)  # the caller's position, however often it is asked


@pytest.mark.parametrize("prepare", [prepare_picture, prepare_clip])
def test_addresses_folders_and_text_are_told(tmp_path, prepare):
    text = tmp_path / "text"
    text.write_text("words")
    with text.open() as file, io.BytesIO() as closed:
        for source, message in (
            ("https://a.b/c", "https://a.b/c: download it first; addresses are never fetched"),
            ("HTTP://a.b/c", "download it first"),
            ("file://elsewhere/c", "is on another machine"),
            ("data:x;base64,%", "is not base64"),
            ("", "its path is empty"),
            ({"bytes": None, "path": ""}, "its path is empty"),
            ({}, "expected a path"),
            (".", r"^\.: is a folder, expected a (picture|recording)$"),
            ("a\0b", "cannot be read"),
            ("\ud800", "\\\\ud800: "),
            ("~nobody-here/x", "no such file"),
            (file, "opened for bytes"),
            (closed, "is empty"),
        ):
            with pytest.raises(Phi4Error, match=message) as caught:
                prepare(source)
            print(caught.value)
            str(caught.value).encode()  # can be printed anywhere


def test_arrays_of_other_libraries():
    shades = PIXELS.astype(np.float32) / 255
    for source in (mx.array(PIXELS), mx.array(shades), shades.astype(np.float64)):
        assert same_picture(source)
    coarse = np.array(mx.array(shades).astype(mx.bfloat16).astype(mx.float32))
    assert same_picture(mx.array(shades).astype(mx.bfloat16), coarse) and same_picture(Tensor(coarse), coarse)
    assert same_sound((mx.array(SAMPLES), 16_000)) and same_sound({"array": SAMPLES, "sampling_rate": 16_000})
    rough = np.array(mx.array(SAMPLES).astype(mx.bfloat16).astype(mx.float32))
    assert same_sound((mx.array(SAMPLES).astype(mx.bfloat16), 16_000), (rough, 16_000))
    assert same_sound((Tensor(rough), np.int64(16_000)), (rough, 16_000.0))
    assert same_sound(([0.0] * 500, 16_000), (np.zeros(500), 16_000))


def test_channels_first_and_last():
    """As torchvision and torchaudio have them; where both readings fit, neither is chosen."""
    assert same_picture(PIXELS.transpose(2, 0, 1)) and same_picture(PIXELS[None, :, :, 0], PIXELS[:, :, 0])
    with pytest.raises(Phi4Error, match=r"shape \(3, 40, 3\).*cannot be told"):
        prepare_picture(np.zeros((3, 40, 3), np.uint8))
    stereo = np.stack([SAMPLES, SAMPLES / 2])
    assert same_sound((SAMPLES[None], 16_000)) and same_sound((SAMPLES[:, None], 16_000))
    assert same_sound((stereo, 16_000), (stereo.T, 16_000))


def test_masks_and_shades_that_are_not_from_0_to_1():
    mask = PIXELS[:, :, 0] > 100
    assert same_picture(mask, mask.astype(np.uint8) * 255)
    for values in (PIXELS.astype(np.float32), PIXELS / 127.5 - 1, np.full((40, 40), np.nan)):
        with pytest.raises(Phi4Error, match=r"a picture array of floats holds values from .* expected 0 to 1"):
            prepare_picture(values)
    with pytest.raises(Phi4Error, match="dtype int64, expected"):
        prepare_picture(PIXELS.astype(int))


def test_arrays_and_files_with_surprises():
    """Another library's error is no reason for a stack of it."""

    class Strange:
        shape, dtype = (2, 2), "float32"

        def __array__(self, *arguments, **named):
            raise KeyError("boo")

    class Reader:
        def read(self):
            raise RuntimeError("no")

    masked = np.ma.masked_array(PIXELS, PIXELS > 100)
    for source, message in (
        (Strange(), "cannot be read: 'boo'"),
        (Reader(), "cannot be read: no"),
        (masked, "is masked"),
    ):
        with pytest.raises(Phi4Error, match=message):
            prepare_picture(source)
        with pytest.raises(Phi4Error, match=message):
            prepare_clip(source if hasattr(source, "read") else (source, 16_000))


def test_samples_of_unknown_scale_are_refused(tmp_path):
    """Divided by 2^63 they would be silence, and silence has an answer, too."""
    sixteen = (SAMPLES * 32767).astype(np.int16)
    assert np.abs(read_audio((sixteen, 16_000))[0] - SAMPLES).max() < 1e-3
    with pytest.raises(Phi4Error, match="dtype int64, whose scale is unknown; convert it to int16"):
        prepare_clip((sixteen.astype(np.int64), 16_000))
    soundfile.write(tmp_path / "loud.wav", sixteen.astype(np.float32), 16_000, subtype="FLOAT")
    for source in ((sixteen.astype(np.float32), 16_000), tmp_path / "loud.wav"):
        with pytest.raises(Phi4Error, match=r"its samples are too large \(up to \d+\), expected -1 to 1; divide"):
            prepare_clip(source)
    prepare_clip((SAMPLES / np.abs(SAMPLES).max() * 4, 16_000))  # a mix that clips is a recording all the same


def test_pictures_without_pixels_and_with_too_many(monkeypatch):
    for source in (np.zeros((0, 5), np.uint8), Image.new("RGB", (0, 5))):
        with pytest.raises(Phi4Error, match=r"has no pixels \(5 x 0\)|has no pixels \(0 x 5\)"):
            prepare_picture(source)
    assert Image.MAX_IMAGE_PIXELS * 2 == reader.MAX_PIXELS
    monkeypatch.setattr(reader, "MAX_PIXELS", 100)
    for source in (PIXELS, Image.fromarray(PIXELS), png()):
        with pytest.raises(Phi4Error, match="has too many pixels: 60 x 40"):
            prepare_picture(source)


def test_formats_that_no_photo_has_are_not_opened(tmp_path):
    """Pillow gives EPS to Ghostscript, a program for programs."""
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    (tmp_path / "drawing.eps").write_bytes(drawing)
    for source in (drawing, tmp_path / "drawing.eps"):
        with pytest.raises(Phi4Error, match="is not a picture"):
            prepare_picture(source)
    for kind in ("JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(PIXELS).save(buffer, format=kind)
        assert prepare_picture(buffer.getvalue()).tokens


def test_one_medium_may_stand_without_its_list(loaded):
    _, processor = loaded()
    images = [png(), io.BytesIO(png()), PIXELS, Image.fromarray(PIXELS), {"bytes": png()}, mx.array(PIXELS)]
    expected = processor("x", images=[PIXELS]).media[0].item.key
    assert {processor("x", images=image).media[0].item.key for image in images} == {expected}
    sounds = [wav(), (SAMPLES, 16_000), (SAMPLES, 16_000.0), {"array": SAMPLES, "sampling_rate": 16_000}]
    expected = processor("x", audios=[(SAMPLES, 16_000)]).media[0].item.key
    assert {processor("x", audios=sound).media[0].item.key for sound in sounds} == {expected}
    assert len(processor("x", images=(each for each in (PIXELS, PIXELS))).media) == 2


def test_a_medium_that_is_no_path_is_told_by_its_place(loaded):
    _, processor = loaded()
    for media, message in (
        ({"images": [PIXELS, 3]}, r"^images\[1\]: picture is 3, expected a path"),
        ({"audios": [object()]}, r"^audios\[0\]: audio is of type object, expected a path"),
        ({"audios": SAMPLES}, r"^audios\[0\]: audio is an array of shape .*, expected \(array, rate\)"),
        ({"images": "none.png"}, r"^none\.png: no such file"),
    ):
        with pytest.raises(Phi4Error, match=message):
            processor("x", **media)


def test_commands_read_standard_input_and_refuse_addresses(checkpoint, run_command):
    from mlx_phi4.commands import generate as command
    from mlx_phi4.commands import transcribe as recordings

    model = ("--model", checkpoint())
    asked = (*model, "-p", "x", "-m", 2, "--quiet", "--image")
    code, out, err = run_command(command.command, *asked, "-", stdin=png())
    assert (code, err) == (0, "") and out == run_command(command.command, *asked, "-", stdin=png())[1]
    assert run_command(command.command, *asked, "-")[2] == "error: images[0]: picture: is empty\n"
    for run, arguments in ((command.command, asked), (recordings.command, model)):
        code, out, err = run_command(run, *arguments, "https://a.b/c")
        assert code and not out and "error: https://a.b/c: download it first; addresses are never fetched" in err


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "W64"])
def test_what_a_truncated_recording_still_holds(kind, tmp_path):
    long = np.tile(SAMPLES, 5)
    soundfile.write(tmp_path / "whole", long, 16_000, format=kind)
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * 6 // 10])
    whole = read_audio(tmp_path / "whole")[0]
    with pytest.raises(Phi4Error, match="is truncated"):
        read_audio(tmp_path / "cut")
    with open_recording(tmp_path / "cut", partial=True) as recording:
        held = np.concatenate(list(recording.blocks()))
        assert recording.lost.startswith(f"{tmp_path / 'cut'}: is truncated")
    assert len(held) > 0.35 * len(whole) and np.array_equal(held[:-3000], whole[: len(held) - 3000])
    with open_recording(tmp_path / "whole", partial=True) as recording:
        assert np.array_equal(np.concatenate(list(recording.blocks())), whole) and recording.lost is None


def test_nothing_at_all_is_still_refused_as_partial():
    for data in (b"", b"RIFF\x24\0\0\0WAVEfmt ", wav()[:44]):
        with pytest.raises(Phi4Error), open_recording(data, partial=True) as recording:
            list(recording.blocks())


def test_a_partial_transcript_has_a_warning(loaded, tmp_path):
    soundfile.write(tmp_path / "talk.wav", np.tile(SAMPLES, 3), 16_000)
    (tmp_path / "talk.wav").write_bytes((tmp_path / "talk.wav").read_bytes()[:-20_000])
    model, processor = loaded()
    options = {"processor": processor, "max_tokens": 2, "temperatures": 0}
    with pytest.raises(Phi4Error, match="is truncated"):
        transcribe(tmp_path / "talk.wav", model, **options)
    found = transcribe(tmp_path / "talk.wav", model, partial=True, **options)
    assert found.duration == pytest.approx(3 - 10_000 / 16_000, abs=0.01)
    assert [each for each in found.warnings if "is truncated" in each and each.endswith("was heard")]


def test_broken_mp3_leaves_standard_error_alone(capfd):
    """libmpg123 writes there whatever its caller wants; what is found beforehand it never sees."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.tile(SAMPLES, 5), 16_000, format="MP3")
    data = buffer.getvalue()
    half = len(data) // 2
    for broken, message in (
        (data[:half], "is truncated: "),
        (
            data[:half] + bytes(3000) + data[half + 3000 :],
            r"corrupt at 2\.\d+ s: what follows is no sound",
        ),
        (data[:half] + bytes(5000) + data[half:], "what follows is no sound"),
    ):
        with pytest.raises(Phi4Error, match=message):
            read_audio(broken)
    assert capfd.readouterr().err == ""


def test_reprs_are_short(loaded):
    """They once held every pixel: a debugger or a log with one request was megabytes."""
    model, processor = loaded()
    cache = PromptCache()
    generate(model, processor, "x", images=[PIXELS], prompt_cache=cache, max_tokens=1)
    inputs = processor("x" * 999, images=[PIXELS], audios=[(SAMPLES, 16_000)])
    segments = [Segment(i, i + 1, "word", tokens=list(range(99))) for i in range(99)]
    shown = [model, processor, cache, cache.media, MediaCache(), inputs, inputs.rows[0], inputs.media[0].item]
    shown += [inputs.media[1].item, inputs.media[0], segments[0], Transcript(segments, 99.0)]
    shown += [Request("x" * 999, images=[PIXELS, png(), Path("a.png")], audios=(SAMPLES, 16_000), options={"n": 1})]
    for each in shown:
        assert type(each).__name__ in repr(each) and len(repr(each)) < 400, repr(each)


def test_float16_encoders_compute_in_float32_on_a_cpu(loaded, checkpoint):
    """MLX's CPU backend is forty times slower in float16 with packed weights; and it is the more exact one."""
    import mlx_phi4

    if mx.default_device().type != mx.cpu:
        pytest.skip("a GPU computes in float16")
    half, _ = mlx_phi4.load(checkpoint(), dtype="float16")
    whole, _ = loaded()
    for item in (prepare_picture(PIXELS), prepare_clip((SAMPLES, 16_000))):
        found, expected = (np.array(each.embed_medium(item, "vision-speech")) for each in (half, whole))
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()  # of rounding the weights alone
