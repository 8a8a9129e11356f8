"""Long recordings cut to pieces: no sound is lost or heard twice, silence is skipped, memory stays small."""

import tracemalloc

import numpy as np
import pytest
import soundfile

from mlx_phi4 import Phi4Error
from mlx_phi4.audio.reader import open_recording
from mlx_phi4.audio.segmentation import pieces

RATE = 8_000  # Hz, half the work of 16 kHz
FRAME = RATE // 40  # samples of the shortest piece that has features, 25 ms
LOUD = 0.2  # amplitude; its tone has -17 dBFS


def tone(seconds, amplitude=LOUD, frequency=440.0):
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def noise(seconds, amplitude, seed=0):
    samples = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return (amplitude / np.sqrt(2) * samples).astype(np.float32)


def silence(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def cut(samples, rate=RATE, **options):
    """The pieces, after checks that hold for all: in order, none overlapping, none too long or short, true samples."""
    with open_recording((samples, rate)) as recording:
        found = list(pieces(recording, **options))
    end = 0
    for piece in found:
        assert piece.start >= end and piece.rate == rate
        end = piece.start + len(piece.samples)
        assert rate // 40 <= len(piece.samples) <= options.get("longest", 30.0) * rate
        assert np.array_equal(piece.samples, samples[piece.start : end])
    return found


def times_heard(found, count):
    """How often each sample is in a piece."""
    heard = np.zeros(count, int)
    for piece in found:
        heard[piece.start : piece.start + len(piece.samples)] += 1
    return heard


def words(levels, gap=0.8, length=0.6):
    """Tones of some amplitudes with pauses before, between and after: samples, and where each tone is."""
    parts, marks, position = [silence(gap)], [], round(gap * RATE)
    for number, level in enumerate(levels):
        word = tone(length, level, 200.0 + 10 * number)
        parts += [word, silence(gap)]
        marks.append((position, position + len(word)))
        position += len(word) + len(parts[-1])
    return np.concatenate(parts), marks


def assert_one_each(found, marks):
    assert len(found) == len(marks)
    for piece, (start, end) in zip(found, marks, strict=True):
        assert piece.start <= start and end <= piece.start + len(piece.samples)


@pytest.mark.parametrize("samples", [tone(100.0), noise(100.0, LOUD), tone(61.0, 0.005), tone(30.005)])
def test_sound_without_pauses_is_cut_at_the_limit_and_nothing_is_lost(samples):
    found = cut(samples)
    assert (times_heard(found, len(samples)) == 1).all()
    assert all(len(piece.samples) >= 15 * RATE for piece in found[:-1])


def test_each_word_is_a_piece_with_some_silence_around():
    samples, marks = words([LOUD] * 20)
    found = cut(samples)
    assert_one_each(found, marks)
    for piece, (start, end) in zip(found, marks, strict=True):
        before, after = (start - piece.start) / RATE, (piece.start + len(piece.samples) - end) / RATE
        assert 0.15 < before < 0.25 and 0.15 < after < 0.25


def test_pauses_shorter_than_the_limit_do_not_cut():
    samples, marks = words([LOUD] * 5, gap=0.4)
    (whole,) = cut(samples)
    assert whole.start <= marks[0][0] and whole.start + len(whole.samples) >= marks[-1][1]
    assert_one_each(cut(samples, pause=0.2), marks)


def test_silence_between_close_words_is_shared_and_not_heard_twice():
    samples, marks = words([LOUD] * 5, gap=0.2)
    found = cut(samples, pause=0.1)
    assert_one_each(found, marks)
    between = times_heard(found, len(samples))[marks[0][0] : marks[-1][1]]
    assert (between == 1).all()


def test_a_long_piece_is_cut_where_it_is_quietest():
    samples = noise(50.0, LOUD)
    dip = slice(24 * RATE, 24 * RATE + RATE // 4)
    samples[dip] *= 0.05
    first, second = cut(samples)
    assert dip.start < second.start < dip.stop and first.start + len(first.samples) == second.start


def test_what_is_left_after_a_cut_is_never_too_short_to_hear():
    """Quietest just before the limit, and 2 ms of sound behind it: less than one frame of features."""
    samples = noise(10.002, LOUD)
    samples[9 * RATE :] *= np.linspace(1, 0.1, len(samples) - 9 * RATE, dtype=np.float32)
    found = cut(samples, longest=10)
    assert len(found) == 2 and (times_heard(found, len(samples)) == 1).all()


@pytest.mark.parametrize("background", [0.0, LOUD / 10 ** (40 / 20), LOUD / 10 ** (28 / 20)])
def test_quiet_speech_is_kept(background):
    """20 dB below the loud words of the same recording."""
    samples, marks = words([LOUD, LOUD, LOUD / 10, LOUD / 10] * 8)
    assert_one_each(cut(samples + noise(len(samples) / RATE, background)), marks)


def test_a_quiet_recording_is_kept_whole():
    samples, marks = words([0.003] * 10)
    assert_one_each(cut(samples), marks)


@pytest.mark.parametrize("ratio", [15, 20, 25])
def test_pauses_are_found_in_noise(ratio):
    """Signal-to-noise ratio in dB, noise of the same level all the time."""
    samples, marks = words([LOUD] * 30)
    assert_one_each(cut(samples + noise(len(samples) / RATE, LOUD / 10 ** (ratio / 20))), marks)


def test_a_voice_after_the_noise_stops_is_kept():
    """The threshold follows noise down at once: what is quieter than noise was is not quieter than noise is."""
    loud, quiet = words([LOUD] * 30), words([LOUD / 20] * 30)
    start = len(loud[0])
    samples = np.concatenate([loud[0] + noise(start / RATE, LOUD / 10), quiet[0]])
    heard = times_heard(cut(samples), len(samples))
    assert all((heard[start + first : start + last] == 1).all() for first, last in quiet[1])


def test_noise_between_words_is_silence_however_long_it_lasts():
    speech, marks = words([LOUD] * 10)
    samples = np.concatenate([speech, silence(90.0), speech])
    samples += noise(len(samples) / RATE, LOUD / 10)
    later = len(speech) + 90 * RATE
    assert_one_each(cut(samples), marks + [(later + first, later + last) for first, last in marks])


@pytest.mark.parametrize(
    "samples", [silence(20.0), silence(20.0) + np.float32(0.3), noise(20.0, 1e-4)], ids=["zeros", "offset", "faint"]
)
def test_silence_gives_no_pieces(samples):
    assert cut(samples) == []


def test_a_click_alone_is_no_piece_but_stays_in_one():
    click, word = tone(0.01), tone(0.6)
    assert cut(np.concatenate([silence(3), click, silence(3)])) == []
    (piece,) = cut(np.concatenate([silence(3), word, silence(0.3), click, silence(3)]))
    assert piece.end_seconds > 3.91
    assert len(cut(np.concatenate([silence(3), tone(0.06), silence(3)]))) == 1


@pytest.mark.parametrize("seed", range(6))
def test_any_recording_is_heard_once(seed):
    """Words, gaps, limits and pauses of any lengths: each sample of sound is in one piece, long gaps in none."""
    random = np.random.default_rng(seed)
    longest, pause = random.uniform(1, 8), random.uniform(0.1, 1.0)
    parts, sound, quiet = [], [], []
    for _ in range(40):
        word = noise(random.exponential(1.0) + 0.06, LOUD * 10 ** random.uniform(-1, 0), seed)
        gap = silence(random.exponential(0.5))
        parts += [word, gap]
        sound += [np.ones(len(word), bool), np.zeros(len(gap), bool)]
        middle = np.zeros(len(gap), bool)
        middle[RATE // 4 : -RATE // 4] = len(gap) > (pause + 0.05) * RATE
        quiet += [np.zeros(len(word), bool), middle]
    samples, sound, quiet = np.concatenate(parts), np.concatenate(sound), np.concatenate(quiet)
    heard = times_heard(cut(samples, longest=longest, pause=pause), len(samples))
    assert (heard[sound] == 1).all() and (heard[quiet] == 0).all()


def test_how_a_recording_is_stored_does_not_matter(tmp_path):
    samples = (words([LOUD] * 5)[0] * 32767).astype(np.int16)
    expected = cut(samples / np.float32(32768))
    for kind in ("WAV", "FLAC", "AIFF"):
        path = tmp_path / kind
        soundfile.write(path, samples, RATE, format=kind)
        for source in (path, path.read_bytes()):
            with open_recording(source) as recording:
                found = list(pieces(recording))
            assert [piece.start for piece in found] == [piece.start for piece in expected]
            assert all(np.array_equal(a.samples, b.samples) for a, b in zip(found, expected, strict=True))


class Endless:
    """Stands in for an open recording of some hours: the same minute again and again."""

    name, rate, duration = "hours", RATE, None

    def __init__(self, minute, minutes):
        self.minute, self.minutes = minute, minutes

    def blocks(self):
        for _ in range(self.minutes):
            for start in range(0, len(self.minute), 32_768):
                yield self.minute[start : start + 32_768]


@pytest.mark.parametrize("kind", ["speech", "silence", "tone"])
def test_memory_does_not_grow_with_length(kind):
    minute = {"speech": words([LOUD] * 40, 0.8, 0.7)[0], "silence": silence(60), "tone": tone(60)}[kind]
    peaks = []
    for minutes in (2, 20):
        tracemalloc.start()
        for _ in pieces(Endless(minute, minutes)):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2 + 100_000
    assert peaks[1] < 3 * (30 + 17) * RATE * 4  # bytes: the longest piece and what is looked ahead, and copies


def test_clips_are_cut_alone_with_times_of_the_recording():
    samples, marks = words([LOUD] * 20)
    first, last = 3.0, 8.0
    found = cut(samples, clips=[(first, last), (20.0, 500.0)])
    heard = times_heard(found, len(samples))
    inside = np.zeros(len(samples), bool)
    inside[round(first * RATE) : round(last * RATE)] = inside[20 * RATE :] = True
    sound = np.zeros(len(samples), bool)
    for start, end in marks:
        sound[start:end] = True
    assert (heard[sound & inside] == 1).all() and (heard[~inside] == 0).all()


def test_a_clip_through_a_word_ends_a_piece_there():
    samples = tone(10.0)
    found = cut(samples, clips=[(1.0, 2.5), (2.5, 4.0)])
    assert [(piece.start_seconds, piece.end_seconds) for piece in found] == [(1.0, 2.5), (2.5, 4.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest": 0.5}, "segment_seconds is 0.5"),
        ({"longest": 41}, "segment_seconds is 41"),
        ({"longest": float("nan")}, "segment_seconds is nan"),
        ({"pause": 0}, "pause is 0"),
        ({"clips": [(2.0, 1.0)]}, "from 2 to 1"),
        ({"clips": [(-1.0, 1.0)]}, "from -1"),
        ({"clips": [(0.0, float("nan"))]}, "nan"),
        ({"clips": [(1.0, 1.01)]}, "shorter than one frame"),
        ({"clips": [(0.0, 2.0), (1.0, 3.0)]}, "starts at 1 s"),
        ({"clips": [(4.0, 5.0), (1.0, 3.0)]}, "starts at 1 s"),
        ({"clips": [(0.0, 1.0), (11.0, 12.0)]}, "ends at 10.00 s"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(options, message):
    with open_recording((tone(10.0), RATE)) as recording, pytest.raises(Phi4Error, match=message) as caught:
        pieces(recording, **options)
    assert "\n" not in str(caught.value)


def test_a_clip_beyond_the_end_is_told_where_the_header_does_not():
    with pytest.raises(Phi4Error, match=r"hours: a clip starts at 90 s, but the recording ends at 60\.00 s"):
        list(pieces(Endless(tone(60), 1), clips=[(1.0, 2.0), (90.0, 91.0)]))


def test_a_recording_shorter_than_a_frame_is_refused():
    with pytest.raises(Phi4Error, match="199 samples at 8000 Hz are shorter than one frame"):
        cut(tone(1.0)[: FRAME - 1])
    cut(tone(1.0)[:FRAME])
