"""Recordings of every kind a user may bring, and those that cannot be used."""

import io

import numpy as np
import pytest
import soundfile
from cases import clip
from tolerances import near

from mlx_phi4 import Phi4Error
from mlx_phi4.audio.preprocess import BLOCK_FRAMES, log_mel, prepare_clip, read_audio


def encoded(samples, rate, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return buffer.getvalue()


def difference(first, second):
    a, b = prepare_clip(first).features, prepare_clip(second).features
    assert a.shape == b.shape
    return np.abs(a - b).mean()


@pytest.mark.parametrize(("kind", "tolerance"), [("WAV", 0.01), ("FLAC", 0.01), ("OGG", 0.8), ("MP3", 0.8)])
def test_formats(tmp_path, kind, tolerance):
    samples = clip(1.0)
    path = tmp_path / f"clip.{kind.lower()}"
    path.write_bytes(encoded(samples, 16_000, format=kind))
    loud = prepare_clip((samples, 16_000)).features > 8  # a lossy codec is free in what nobody hears
    for source in (path, str(path), path.read_bytes()):
        features = prepare_clip(source).features[: len(loud)]
        assert np.abs(features - prepare_clip((samples, 16_000)).features)[loud].mean() < tolerance


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8", "float64"])
def test_arrays_of_any_type(dtype):
    samples = clip(1.0)
    if dtype == "float64":
        converted = samples.astype(dtype)
    else:
        info = np.iinfo(dtype)
        half = (info.max - info.min + 1) / 2
        converted = np.round(samples * half * 0.999 + (half if dtype == "uint8" else 0)).astype(dtype)
    back, _, _ = read_audio((converted, 16_000))
    assert np.abs(back - samples).max() < (0.01 if dtype == "uint8" else 2e-3)


def test_channels_are_averaged():
    samples = clip(1.0)
    stereo = np.stack([samples, np.zeros_like(samples)], axis=1)
    assert difference((stereo, 16_000), (samples / 2, 16_000)) < 1e-4


@pytest.mark.parametrize("rate", [11_025, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_properly(rate):
    """A tone keeps its place; decimation by a whole number, as published, would move it at 44.1 kHz."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32) * 0.3
    expected = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32) * 0.3
    ours, theirs = prepare_clip((tone, rate)).features, log_mel(expected)
    assert ours.shape == theirs.shape
    assert np.array_equal(ours[10:-10].argmax(axis=1), theirs[10:-10].argmax(axis=1))


def test_a_high_tone_does_not_fold_down():
    tone = np.sin(2 * np.pi * 15_000 * np.arange(44_100) / 44_100).astype(np.float32) * 0.5
    assert prepare_clip((tone, 44_100)).features[10:-10].max() < 10  # a full-scale tone reaches 20


def test_8_khz_is_not_resampled():
    """Frames of 200 samples each 80; the bins from 4 kHz up are zero, so the upper mels are at the floor."""
    samples = clip(1.0)[::2]
    features = prepare_clip((samples, 8_000)).features
    assert features.shape == ((len(samples) - 200) // 80 + 1, 80)
    assert (features[:, 62:] == 0).all() and features[:, :40].max() > 5


def test_frames_and_tokens():
    for samples in (400, 559, 560, 16_000, 16_159, 16_160):
        prepared = prepare_clip((np.full(samples, 0.1, np.float32), 16_000))
        frames = (samples - 400) // 160 + 1
        assert len(prepared.features) == frames and prepared.tokens == -(-frames // 8)


def test_features_of_a_part_are_the_features_of_the_whole():
    """Bit for bit at whole blocks, so that a reader of blocks gets what a reader of the whole file gets."""
    samples = clip(25.0)
    whole = log_mel(samples)
    first = BLOCK_FRAMES
    part = log_mel(samples[160 * first : 160 * first + 400 + 160 * 299])
    assert np.array_equal(part, whole[first : first + 300])


def test_windows_do_not_see_each_other(loaded):
    """The first 40 s of a long clip are encoded as if nothing followed them."""
    model, _ = loaded()
    features = log_mel(clip(50.0))
    alone = np.array(model.audio_encoder(features[:4000]))
    assert len(alone) == 500
    assert np.array_equal(alone, np.array(model.audio_encoder(features))[:500])


def test_subsampling_in_blocks_equals_the_whole(loaded):
    import mlx.core as mx

    model, _ = loaded()
    embed, features = model.audio_encoder.embed, mx.array(log_mel(clip(3.0)))[None]
    whole = np.array(embed(features)[0])
    blocks = [embed(features[:, : 8 * 10], True, False), embed(features[:, 8 * 10 - 7 :], False, True)]
    assert np.abs(np.concatenate([np.array(b[0]) for b in blocks]) - whole).max() < near(1e-4)


def test_bad_audio(tmp_path):
    samples = clip(1.0)
    wav = encoded(samples, 16_000, format="WAV")
    files = {
        "empty": b"",
        "not audio": b"this is not sound at all, only text",
        "truncated": wav[: len(wav) // 2],
        "flac": encoded(samples, 16_000, format="FLAC")[:3000],
        "header": wav[:40],
    }
    paths = {}
    for name, data in files.items():
        paths[name] = tmp_path / f"{name}.wav"
        paths[name].write_bytes(data)
    nan = samples.copy()
    nan[100] = np.nan
    bad = [
        ("no such file", tmp_path / "missing.wav"),
        ("is empty", paths["empty"]),
        ("not audio", paths["not audio"]),
        ("truncated", paths["truncated"]),
        ("truncated|not audio", paths["flac"]),
        ("truncated", paths["header"]),
        ("is a folder", tmp_path),
        ("shorter than one frame", (samples[:399], 16_000)),
        ("shorter than one frame", (samples[:199], 8_000)),
        ("no samples", (samples[:0], 16_000)),
        ("NaN", (nan, 16_000)),
        ("infinite", (np.array([np.inf] * 800, np.float32), 16_000)),
        ("4000 Hz", (samples, 4_000)),
        ("0 Hz", (samples, 0)),
        ("pair", (samples, 16_000.5)),
        ("shape", (samples[None, None], 16_000)),
        ("dtype", (samples.astype(complex), 16_000)),
        ("expected a path", 3),
        ("audio array", ([[1.0], [1.0, 2.0]], 16_000)),
        ("too large", (np.full(16_000, 1e36, np.float32), 16_000)),
        ("cannot be read", "a\0b"),
    ]
    for message, source in bad:
        with pytest.raises(Phi4Error, match=message) as caught:
            prepare_clip(source)
        assert "\n" not in str(caught.value)


def test_wav_from_a_pipe_has_no_length():
    """Programs that write to a pipe leave the size at its maximum; that is no truncation."""
    wav = bytearray(encoded(clip(1.0), 16_000, format="WAV"))
    at = wav.index(b"data") + 4
    wav[at : at + 4] = b"\xff\xff\xff\xff"
    assert len(prepare_clip(bytes(wav)).features) == 98
