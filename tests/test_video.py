"""Videos are lists of their frames as pictures, whatever form they come in, and cost memory for those only."""

import base64
import json
import math
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from serving import running

from mlx_phi4 import Chat, Phi4Error, Request, Video, stream_generate
from mlx_phi4.commands import generate as generate_command
from mlx_phi4.vision.preprocess import picture_tokens, prepare_picture
from mlx_phi4.vision.video import MOST_TOKENS

RATE = 10  # frames a second
SIZE = 64, 48


def picture(index, size=SIZE):
    """A frame that tells its number by its shade, with a corner that tells which way is up."""
    pixels = np.full((size[1], size[0], 3), 40 + 2 * (index % 100), np.uint8)
    pixels[: size[1] // 4, : size[0] // 4] = (255, 0, 0)
    return pixels


def write(path, frames=40, size=SIZE, codec="libx264", rotation=None, sound=False, times=None, gop=12, video=True):
    """A video of so many frames at 10 a second, or at ``times`` in seconds."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        if video:
            stream = container.add_stream(codec, rate=RATE)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            stream.gop_size = gop
            if rotation is not None:
                stream.set_display_rotation(rotation)
        if sound:
            heard = container.add_stream("aac" if path.suffix == ".mp4" else "libopus", rate=48_000)
            heard.layout = "mono"
        for index in range(frames if video else 0):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
            frame.pts = round(1000 * (times[index] if times else index / RATE))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        if video:
            container.mux(stream.encode())
        if sound:
            tone = (np.sin(np.arange(48_000 * frames // RATE) / 10) * 9000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
            frame.sample_rate = 48_000
            container.mux(heard.encode(frame))
            container.mux(heard.encode())
    return path


def decoded(path):
    """All frames of a file from its beginning, without seeking."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_image()) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "film.mp4", frames=120, sound=True)


@pytest.mark.parametrize("name", ["film.mp4", "film.webm", "film.mkv"])
def test_a_video_is_its_frames_as_pictures(tmp_path, loaded, name):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = write(tmp_path / name, frames=120, codec=codec)
    frames = decoded(path)
    wanted = [(index + 0.5) * 12 / 4 for index in range(4)]
    expected = [max(frame for frame in frames if frame[0] <= time)[1] for time in wanted]
    seen = Video(path, frames=4).read()
    assert seen.times == tuple(max(time for time, _ in frames if time <= each) for each in wanted)
    assert [each.key for each in seen.pictures] == [prepare_picture(each).key for each in expected]
    assert len({each.key for each in seen.pictures}) == 4  # the order is told by different frames
    _, processor = loaded()
    for crops in (None, 1):
        row = processor.row(Request("What happens?", videos=[Video(path, frames=4)], max_crops=crops))
        same = processor.row(Request("What happens?", images=list(expected), max_crops=crops))
        part = {"type": "video", "video": str(path), "frames": 4}
        asked = [{"role": "user", "content": [part, {"type": "text", "text": "What happens?"}]}]
        for other in (same, processor.row(Request(asked, max_crops=crops))):
            assert row.ids == other.ids and row.mode == other.mode == "vision"
            assert [(start, item.key) for start, item in row.media] == [(at, item.key) for at, item in other.media]
    assert seen.tokens == Video(path, frames=4).count_tokens() == 4 * picture_tokens(*SIZE)


def test_a_rate_counts_from_the_start(film, tmp_path):
    assert Video(film, fps=0.5).read().times == (0, 2, 4, 6, 8, 10)
    assert len(Video(film).read().pictures) == 16  # the report's number
    short = write(tmp_path / "short.mp4", frames=9)
    seen = Video(short, frames=500).read()
    assert len(seen.pictures) == 9 and seen.tokens == Video(short, frames=500).count_tokens()  # each frame once
    with pytest.raises(Phi4Error, match="give one"):
        Video(film, frames=3, fps=1)


def test_sound_makes_it_vision_speech(film, loaded):
    _, processor = loaded()
    row = processor.row(Request("What?", videos=Video(film, frames=2, with_sound=True)))
    assert row.mode == "vision-speech" and [type(item).__name__ for _, item in row.media] == ["Picture"] * 2 + ["Clip"]
    assert row.media[-1][1].tokens == pytest.approx(12 * 12.5, abs=2)


def corner(seen):
    """Where the red corner is in the first frame: (row, column), each 0 or 1."""
    crop = seen.pictures[0].crops[0]
    rows, columns = (14 * side for side in seen.pictures[0].kept)
    red = (crop[:rows, :columns, 0] > 200) & (crop[:rows, :columns, 1] < 90)
    at = np.argwhere(red).mean(axis=0) / (rows, columns)
    return tuple(int(each > 0.5) for each in at)


def test_a_rotated_video_is_upright(tmp_path):
    """A phone writes its frames lying, and beside them which way is up."""
    for rotation, place in ((0, (0, 0)), (90, (1, 0)), (-90, (0, 1)), (180, (1, 1))):
        seen = Video(write(tmp_path / f"{rotation}.mp4", frames=3, rotation=rotation), frames=1).read()
        assert corner(seen) == place
        assert seen.size == (SIZE if rotation in (0, 180) else SIZE[::-1])


def test_a_variable_rate_goes_by_time(tmp_path):
    times = [0, 0.1, 0.2, 5, 9, 9.5, 9.8]
    path = write(tmp_path / "variable.mp4", frames=7, times=times)
    seen = Video(path, fps=1).read()
    assert seen.times == pytest.approx((0, 0.2, 5, 9))  # the frame that is shown then, each once


def test_what_is_cut_off_is_seen_as_far_as_it_goes(tmp_path, run_command):
    path = write(tmp_path / "whole.mp4", frames=200, size=(320, 240), gop=10)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    seen = Video(cut, frames=4).read()
    assert len(seen.times) == 4 and seen.duration < 17 and max(seen.times) < seen.duration
    assert "is cut off" in seen.warnings[0]


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png"])
def test_animations(tmp_path, name):
    images = [Image.fromarray(picture(20 * index)) for index in range(5)]
    path = tmp_path / name
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 300, 100, 400, 100], lossless=True)
    seen = Video(path, frames=10).read()
    assert seen.duration == pytest.approx(1.0) and seen.times == pytest.approx((0, 0.1, 0.4, 0.5, 0.9))
    expected = [prepare_picture(image).key for image in images]
    if name.endswith("gif"):  # 256 colours, of which these few are exact
        assert [each.tokens for each in seen.pictures] == [prepare_picture(image).tokens for image in images]
    else:
        assert [each.key for each in seen.pictures] == expected
    with pytest.raises(Phi4Error, match="has no sound"):
        Video(path, with_sound=True).read()


def test_a_long_video_costs_memory_for_its_frames_only(tmp_path):
    """Ten minutes: the sampled frames, one more, and nothing of what lies between."""
    path = write(tmp_path / "long.mp4", frames=1200, times=[index / 2 for index in range(1200)], gop=20)
    Video(path, frames=1).read()
    tracemalloc.start()
    seen = Video(path, frames=8).read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = sum(each.crops.nbytes + each.global_view.nbytes for each in seen.pictures)
    assert seen.duration == pytest.approx(600, abs=1) and peak < 1.6 * held + 20e6


def test_too_many_tokens_are_refused_before_they_are_made(film):
    with pytest.raises(Phi4Error, match=rf"at most 512|more than any context holds \({MOST_TOKENS}\)"):
        Video(film, fps=100).read()


def test_bad_videos_are_one_sentence(tmp_path, run_command):
    song = write(tmp_path / "song.mp4", video=False, sound=True)
    silent = write(tmp_path / "silent.mp4", frames=5)
    (tmp_path / "text.mp4").write_text("no video at all " * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "damaged.mp4").write_bytes(silent.read_bytes()[:200])
    for arguments, said in {
        ("song.mp4",): "has no video; it is a recording, which --audio takes",
        ("silent.mp4", "--with-sound"): "has no sound",
        ("text.mp4",): "is not a video that can be read",
        ("empty.mp4",): "is empty",
        ("damaged.mp4",): "damaged",
        ("none.mp4",): "no such file",
        ("silent.mp4", "--frames", 0): "frames is 0, expected between 1 and 512",
        ("silent.mp4", "--max-crops", 37): "max_crops is 37, expected between 1 and 36",
        ("silent.mp4", "--frames", 2, "--fps", 1): "give one",
    }.items():
        path, *options = arguments
        code, out, error = run_command(
            generate_command.command, "--model", "phi4-tiny", "-p", "x", "--video", tmp_path / path, *options
        )
        (line,) = [each for each in error.splitlines() if each.startswith("error: ")]
        assert code == 2 and not out and said in line, line
    assert song.exists()


def test_the_command_tells_the_tokens_before_they_are_spent(film, checkpoint, run_command):
    arguments = ("--video", film, "--frames", 2, "--max-crops", 1, "--with-sound", "-p", "Name the color.", "-m", 3)
    code, out, error = run_command(generate_command.command, "--model", checkpoint(), *arguments)
    assert code == 0 and out
    told = [
        index for index, line in enumerate(error.splitlines()) if "2 frames of 64 x 48" in line and "tokens" in line
    ]
    spent = [index for index, line in enumerate(error.splitlines()) if line.startswith("vision-speech: prompt")]
    assert told < spent and len(told) == len(spent) == 1


def test_a_chat_keeps_a_video_and_saves_its_path(film, loaded, tmp_path):
    model, processor = loaded()
    talk = Chat(model, processor, max_tokens=3, max_crops=1)
    talk.attach_video(Video(film, frames=2))
    answer = "".join(talk.send("Name the color."))
    saved = json.loads(talk.save(tmp_path / "talk.json").read_text())
    assert saved[0]["content"][0] == {"type": "video", "path": str(film), "frames": 2, "max_crops": 1}
    again = stream_generate(model, processor, saved[:1], max_tokens=3)
    assert "".join(response.text for response in again) == answer


def test_the_server_takes_videos(film, loaded):
    address = f"data:video/mp4;base64,{base64.b64encode(film.read_bytes()).decode()}"
    text = {"type": "text", "text": "Name the color."}

    def body(**settings):
        part = {"type": "video_url", "video_url": {"url": address} | settings}
        return {"model": "phi4-tiny", "max_tokens": 2, "messages": [{"role": "user", "content": [part, text]}]}

    with running(loaded()) as server:
        counts = [
            server.post(body(frames=2, max_crops=1, with_sound=sound)).json()["usage"]["prompt_tokens"]
            for sound in (False, True)
        ]
        assert counts[1] - counts[0] == pytest.approx(12 * 12.5, abs=2)
        assert counts[0] > 2 * picture_tokens(*SIZE, 1)
        for settings, said in (
            ({"frames": 0}, "frames is 0"),
            ({"fps": 1e6}, "fps"),
            ({"fps": 1, "frames": 1}, "give one"),
        ):
            refused = server.post(body(**settings))
            assert refused.status_code == 400 and said in refused.json()["error"]["message"]
        refused = server.post(body(url=f"data:video/mp4;base64,{base64.b64encode(b'x' * 500).decode()}"))
        assert refused.status_code == 400 and "not a video" in refused.json()["error"]["message"]
        refused = server.post(body(url="file:///etc/passwd"))
        assert refused.status_code == 400
    assert math.isclose(Video(film).read().duration, 12, abs_tol=0.1) and Path(film).exists()
