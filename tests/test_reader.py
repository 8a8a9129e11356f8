"""Recordings of every format read in blocks: the same samples whichever way, nothing silently left out.

The tests of containers need PyAV (extra ``media``), and are skipped without it.
"""

import io
import os
import struct
import sys
import threading
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import soxr

from mlx_phi4 import Phi4Error
from mlx_phi4.audio.preprocess import BLOCK_FRAMES, feature_blocks, log_mel, read_audio
from mlx_phi4.audio.reader import BLOCK_SAMPLES, MEDIA_SUFFIXES, open_recording

RATE = 44_100  # Hz
# soundfile's arguments; the first are stored without loss, the last three compressed with loss
FORMATS = {
    "wav": {"format": "WAV"}, "rf64": {"format": "RF64"}, "w64": {"format": "W64"}, "aiff": {"format": "AIFF"},
    "au": {"format": "AU"}, "caf": {"format": "CAF"}, "flac": {"format": "FLAC"}, "ogg": {"format": "OGG"},
    "opus": {"format": "OGG", "subtype": "OPUS"}, "mp3": {"format": "MP3"},
}  # fmt: skip
EXACT = [kind for kind in FORMATS if kind not in ("ogg", "opus", "mp3")]


def sound(seconds, rate=RATE, channels=None, seed=0):
    """A tone in noise as int16, (samples,) or (samples, channels), first quiet, then loud."""
    count = round(seconds * rate)
    random = np.random.default_rng(seed)
    shape = (count,) if channels is None else (count, channels)
    tone = np.sin(2 * np.pi * 440 * np.arange(count) / rate).reshape(-1, *[1] * (len(shape) - 1))
    samples = 0.3 * tone + 0.05 * random.standard_normal(shape)
    samples[: count // 2] *= 0.01
    return (samples * 32767).astype(np.int16)


def encoded(samples, rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return buffer.getvalue()


def read(source):
    return read_audio(source)[0]


def assert_refused(source, message):
    """Refused while opened or read, in one line; a block or two may come before."""
    with pytest.raises(Phi4Error, match=message) as caught, open_recording(source) as recording:
        for _ in recording.blocks():
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_have_one_length_and_are_the_whole(kind):
    rate = 48_000 if kind == "opus" else RATE
    data = encoded(sound(5.0, rate), rate, **FORMATS[kind])
    with open_recording(data) as recording:
        assert recording.rate == 16_000 and recording.duration == pytest.approx(5.0, abs=0.02)
        blocks = list(recording.blocks())
        assert all(len(block) == BLOCK_SAMPLES and block.dtype == np.float32 for block in blocks[:-1])
        assert 0 < len(blocks[-1]) <= BLOCK_SAMPLES and sum(map(len, blocks)) / 16_000 == pytest.approx(5.0, abs=0.02)
        again = np.concatenate(list(recording.blocks()))
    decoded = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    # read at once and resampled at once; soundfile's own reading in blocks would change mp3
    whole = soxr.resample(decoded, rate, 16_000)
    assert np.array_equal(np.concatenate(blocks), whole) and np.array_equal(again, whole)


@pytest.mark.parametrize(("rate", "channels"), [(16_000, None), (8_000, 1), (44_100, 2), (11_025, 6), (96_000, 12)])
def test_samples_do_not_depend_on_how_they_are_stored(tmp_path, rate, channels):
    samples = sound(3.0, rate, channels)
    expected = read((samples, rate))
    for kind in EXACT:
        if channels is None or channels <= 2 or kind != "flac":
            path = tmp_path / f"clip.{kind}"
            path.write_bytes(encoded(samples, rate, **FORMATS[kind]))
            for source in (path, str(path), path.read_bytes(), memoryview(path.read_bytes())):
                assert np.array_equal(read(source), expected)
    floats = samples / np.float32(32768)
    assert np.array_equal(read((floats, rate)), expected)
    assert np.array_equal(read((np.asfortranarray(floats), rate)), expected)


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100])
@pytest.mark.parametrize("extra", [-1, 0, 1, 239, 240, 241])
def test_features_of_blocks_are_those_of_the_whole(rate, extra):
    """Bit for bit, around a whole number of blocks of frames, where one more or one less is made."""
    hop = min(rate, 16_000) // 100
    samples = sound((2 * BLOCK_FRAMES * hop + extra) / min(rate, 16_000), rate)
    with open_recording((samples, rate)) as recording:
        blocks = list(feature_blocks(recording))
    assert all(len(block) == BLOCK_FRAMES for block in blocks[:-1])
    whole, found, _ = read_audio((samples, rate))
    assert np.array_equal(np.concatenate(blocks), log_mel(whole, found))
    assert len(log_mel(whole, found)) == (len(whole) - 400 * found // 16_000) // hop + 1


def test_samples_that_are_too_large_are_told_and_warnings_stay_as_they_were():
    """Between two blocks the caller's own arithmetic goes on, with its own treatment of floating-point errors."""
    before = np.geterr()
    with open_recording((np.full(30 * 16_000, 0.1, np.float32), 16_000)) as recording:
        for _ in feature_blocks(recording):
            assert np.geterr() == before
    with (
        open_recording((np.full(16_000, 1e36, np.float32), 16_000)) as recording,
        pytest.raises(Phi4Error, match="too large"),
    ):
        list(feature_blocks(recording))


def test_an_array_stays_as_it_is():
    samples = sound(5.0, 16_000) / np.float32(32768)
    before = samples.copy()
    list(open_recording((samples, 16_000)).blocks())
    assert np.array_equal(samples, before)


def test_memory_does_not_grow_with_length(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.tile(sound(10.0, 16_000), 60), 16_000)
    tracemalloc.start()
    with open_recording(path) as recording:
        assert sum(map(len, recording.blocks())) == 600 * 16_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # bytes; all of it are 38 million


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated_files_are_told(kind, share):
    rate = 48_000 if kind == "opus" else RATE
    data = encoded(sound(4.0, rate), rate, **FORMATS[kind])
    assert_refused(data[: round(len(data) * share)], "audio bytes: is truncated")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF])
@pytest.mark.parametrize(("kind", "mark", "order"), [("WAV", b"data", "<"), ("AIFF", b"SSND", ">")])
def test_sound_from_a_pipe_has_no_length(kind, mark, order, size):
    """Programs leave the size at some maximum: 0x7FFFF000 is that of SoX and eSpeak, once taken for truncation."""
    samples = sound(1.0, 16_000)
    data = bytearray(encoded(samples, 16_000, format=kind))
    at = data.index(mark) + 4
    data[at : at + 4] = struct.pack(f"{order}I", size)
    assert np.array_equal(read(bytes(data)), samples / np.float32(32768))


def test_flac_of_unknown_length():
    """A stream's header names no length: no duration, and no truncation."""
    samples = sound(4.0, 16_000)
    data = bytearray(encoded(samples, 16_000, format="FLAC"))
    data[21] &= 0xF0  # 36 bits of the number of samples
    data[22:26] = bytes(4)
    with open_recording(bytes(data)) as recording:
        assert recording.duration is None
        assert sum(map(len, recording.blocks())) == len(samples)


def variable_mp3(count):
    """An mp3 of variable bitrate, and the same without the frame that counts the others."""
    data = encoded(sound(count), format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    return data, data[data.index(data[:2], 4) :]


def test_mp3_that_does_not_tell_its_length(monkeypatch):
    """libsndfile guesses the length from the first frame and stops there: here with half of the sound unread."""
    _, bare = variable_mp3(10.0)
    assert soundfile.info(io.BytesIO(bare)).duration < 8
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "av", None)
        assert_refused(bare, r'holds 10\.. s, of which .* pip install "mlx_phi4\[media\]"')
    pytest.importorskip("av")
    assert len(read(bare)) / 16_000 == pytest.approx(10.0, abs=0.1)


def test_mp3_files_in_a_row_are_read_to_the_end():
    pytest.importorskip("av")
    data, _ = variable_mp3(5.0)
    tag = b"ID3\x03\0\0" + bytes([0, 0, 20, 0]) + b"\xff" * (20 * 128)
    assert len(read(data + tag + data)) / 16_000 == pytest.approx(10.0, abs=0.2)


def test_tags_at_the_end_of_an_mp3_are_no_sound():
    """Pictures behind the frames once made the guessed length too long, and a whole file 'truncated'."""
    data = encoded(sound(5.0), format="MP3", bitrate_mode="CONSTANT", compression_level=0.3)
    bare = data[data.index(data[:2], 4) :]
    length = len(read(bare))
    assert length / 16_000 == pytest.approx(5.0, abs=0.1)
    tagged = bare + b"APETAGEX" + bytes(30_000) + b"TAG" + bytes(125)
    assert soundfile.info(io.BytesIO(tagged)).duration > 6
    assert len(read(tagged)) == length


def test_ogg_streams_in_a_row_are_read_to_the_end():
    """Recorded radio; libsndfile reads the first of them."""
    pytest.importorskip("av")
    first, second = (encoded(sound(3.0, seed=seed), format="OGG") for seed in (0, 1))
    if first[14:18] == second[14:18]:
        second = renumbered(second, b"next")
    assert len(read(first + second)) / 16_000 == pytest.approx(6.0, abs=0.1)


def renumbered(data, serial):
    """An ogg stream with another serial number, and its pages' checksums."""
    pages, at = [], 0
    while at < len(data):
        count = data[at + 26]
        end = at + 27 + count + sum(data[at + 27 : at + 27 + count])
        page = bytearray(data[at:end])
        page[14:18], page[22:26] = serial, bytes(4)
        check = 0
        for byte in page:
            check ^= byte << 24
            for _ in range(8):
                check = (check << 1 ^ (0x04C11DB7 if check & 0x80000000 else 0)) & 0xFFFFFFFF
        page[22:26] = struct.pack("<I", check)
        pages.append(bytes(page))
        at = end
    return b"".join(pages)


@pytest.mark.parametrize("rate", [0, 7_999, 768_001, 0x7FFFFFFF])
def test_absurd_rates_are_refused(rate):
    data = bytearray(encoded(sound(1.0), format="WAV"))
    data[24:28] = struct.pack("<I", rate)
    assert_refused(bytes(data), f" {rate} Hz")
    assert_refused((sound(1.0), rate), f"{rate} Hz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused_with_their_time(tmp_path, value):
    samples = sound(3.0) / np.float32(32768)
    samples[round(2.25 * RATE) :: 7] = value
    soundfile.write(tmp_path / "bad.wav", samples, RATE, subtype="FLOAT")
    for source, name in ((tmp_path / "bad.wav", "bad.wav"), ((samples, RATE), "audio array")):
        assert_refused(source, name + r": holds NaN or infinite samples, the first at 2\.250 s")
    assert_refused((np.full(1000, 1e300), RATE), "infinite")


def test_what_is_no_recording(tmp_path):
    (tmp_path / "clip.raw").write_bytes(b"\1\2" * 500)
    (tmp_path / "header.wav").write_bytes(encoded(sound(1.0)[:0], format="WAV"))
    (tmp_path / "words.mp3").write_text("no sound at all " * 100)
    (tmp_path / "zeros.m4a").write_bytes(bytes(5000))
    for name, message in [
        ("clip.raw", "is not audio"),
        ("header.wav", "holds no samples"),
        ("words.mp3", "is not audio"),
        ("zeros.m4a", "is not audio|needs PyAV"),
        (".", "is a folder, expected a recording"),
    ]:
        assert_refused(tmp_path / name, message)
    assert_refused("/dev/null", "cannot be read: it is not a file")
    assert_refused(b"", "is empty")
    with open_recording((sound(1.0), RATE)) as recording:
        pass
    with pytest.raises(Phi4Error, match="is closed"):
        recording.blocks()


def test_a_file_that_goes_away_is_told(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, sound(1.0), RATE)
    recording = open_recording(path)
    path.unlink()
    with pytest.raises(Phi4Error, match=r"clip\.wav: cannot be read: No such file"):
        list(recording.blocks())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_read(tmp_path):
    """As in ``mlx_phi4.transcribe <(sox ...)``."""
    path, samples = tmp_path / "pipe", sound(1.0, 16_000)
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(encoded(samples, 16_000, format="WAV"),))
    writer.start()
    assert np.array_equal(read(path), samples / np.float32(32768))
    writer.join()


def container(kind, codec, samples, rate=RATE, picture=False, times=None, layout="mono"):
    """A file of some container, with the sound and (or) a small film in it; times[i]: start of second i."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as out:
        film = out.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p") if picture else None
        stream = out.add_stream(codec, rate=rate, layout=layout) if samples is not None else None
        for number in range(20 if picture else 0):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts = number
            out.mux(film.encode(frame))
        if film:
            out.mux(film.encode(None))
        for second in range(-(-len(samples) // rate) if stream else 0):
            part = samples[second * rate : (second + 1) * rate]
            frame = av.AudioFrame.from_ndarray(part[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round((times[second] if times else second) * rate)
            out.mux(stream.encode(frame))
        if stream:
            out.mux(stream.encode(None))
    return buffer.getvalue()


CONTAINERS = [("ipod", "aac"), ("mov", "aac"), ("adts", "aac"), ("matroska", "aac"), ("mpegts", "aac")]


@pytest.mark.parametrize(("kind", "codec"), CONTAINERS)
def test_containers_hold_the_same_sound(tmp_path, kind, codec):
    """Whatever the suffix says: content decides."""
    samples = sound(4.0)
    path = tmp_path / "clip.wav"
    path.write_bytes(container(kind, codec, samples))
    expected = read((samples, RATE))
    for source in (path, path.read_bytes()):
        found = read(source)
        assert len(found) / 16_000 == pytest.approx(4.0, abs=0.1)
        near = [np.correlate(found[30_000 + lag : 50_000 + lag], expected[30_000:50_000])[0] for lag in range(1500)]
        assert max(near) > 0.95 * (expected[30_000:50_000] ** 2).sum()


@pytest.mark.parametrize(("kind", "codec"), [("matroska", "pcm_s16le"), ("ipod", "alac"), ("matroska", "flac")])
@pytest.mark.parametrize("rate", [RATE, 8_000])
def test_containers_without_loss_give_the_same_samples(kind, codec, rate):
    samples = sound(3.0, rate)
    data = container(kind, codec, samples, rate)
    assert np.array_equal(read(data), read((samples, rate)))
    with open_recording(data) as recording:
        assert recording.duration == pytest.approx(3.0, abs=0.01) and recording.rate == min(rate, 16_000)


def test_a_film_gives_its_sound():
    samples = sound(4.0)
    assert np.array_equal(read(container("matroska", "flac", samples, picture=True)), read((samples, RATE)))


def test_titles_that_are_not_unicode_do_not_matter():
    """As old programs wrote them."""
    data = container("matroska", "flac", sound(1.0))
    assert np.array_equal(read(data.replace(b"Lavf", b"L\xe4vf")), read(data))


def test_sound_may_change_from_one_channel_to_two():
    """As radio does between speech and music."""
    samples = sound(2.0)
    data = [container("adts", "aac", samples, layout=layout) for layout in ("mono", "stereo")]
    assert len(read(b"".join(data))) / 16_000 == pytest.approx(4.0, abs=0.2)


def test_sound_of_an_unknown_kind_is_told():
    data = container("matroska", "flac", sound(1.0)).replace(b"A_FLAC", b"A_NONE")
    assert_refused(data, "its sound is damaged, or coded in a way that PyAV does not know$")


def test_a_film_without_sound_is_told(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(container("mp4", "aac", None, picture=True))
    assert_refused(path, r"film\.mp4: has no sound$")


def test_sound_that_was_switched_off_leaves_silence():
    """Times stay those of the film: sound from 1 s on, and none from 3 to 5 s."""
    samples = sound(4.0, 16_000)
    found = read(container("matroska", "pcm_s16le", samples, 16_000, picture=True, times=[1, 2, 5, 6]))
    second = np.split(samples / np.float32(32768), 4)
    silent = np.zeros(16_000, np.float32)
    assert np.array_equal(found, np.concatenate([silent, *second[:2], silent, silent, *second[2:]]))


@pytest.mark.parametrize(("kind", "codec"), [("ipod", "aac"), ("adts", "aac"), ("matroska", "flac")])
def test_truncated_containers_are_told(kind, codec):
    data = container(kind, codec, sound(10.0))
    assert_refused(data[: round(len(data) * 0.6)], "audio bytes: is truncated")


@pytest.mark.parametrize("suffix", [".m4a", ".mp4", ".webm", ".aac"])
def test_missing_pyav_is_named(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(bytes(100))
    assert_refused(path, rf'clip\{suffix}: needs PyAV to be read: pip install "mlx_phi4\[media\]"')
    assert_refused(b"\0\0\0\x20ftypM4A " + bytes(100), "audio bytes: needs PyAV")
    assert_refused(b"no sound at all " * 100, "audio bytes: is not audio that can be read")


def test_playlists_are_not_followed(tmp_path):
    """FFmpeg would open the files and addresses that they name."""
    pytest.importorskip("av")
    (tmp_path / "clip.ts").write_bytes(container("mpegts", "aac", sound(2.0)))
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2", "#EXTINF:2.0,", "clip.ts", "#EXT-X-ENDLIST", ""]
    (tmp_path / "list.m3u8").write_text("\n".join(lines))
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile clip.ts\n")
    for name in ("list.m3u8", "list.ffconcat"):
        assert_refused(tmp_path / name, f"{name}: is not audio")


def test_suffixes_are_lower_case():
    assert {
        ".wav",
        ".flac",
        ".mp3",
        ".ogg",
        ".opus",
        ".aiff",
        ".m4a",
        ".aac",
        ".mp4",
        ".mov",
        ".webm",
    } <= MEDIA_SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in MEDIA_SUFFIXES)
