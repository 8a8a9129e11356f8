"""Spoken digit strings, commands and questions about pictures, made by espeak-ng.

What is held out: the voices, one accent, the bands of speed and pitch, the kinds of background
noise, and a fifth of the commands and of the digit strings.
"""

import subprocess

import numpy as np
import soxr
from data_text import is_held_out
from vocabulary import (
    COMMAND_OBJECTS,
    COMMAND_VERBS,
    DIGIT_WORDS,
    PICTURE_QUESTIONS,
    spoken,
)

RATE = 16000  # samples per second
ACCENTS = ("en-us", "en-us", "en-gb", "en-gb-scotland", "en-029")
HELD_OUT_ACCENTS = ("en-us", "en-gb", "en-gb-x-rp")
VOICES = (
    "m1", "m2", "m3", "m5", "m6", "m7", "f1", "f2", "f5", "Alex", "Alicia", "Andrea", "Andy",
    "Annie", "Denis", "Diogo", "Gene", "Hugo", "Jacky", "Marco", "Mario", "Michael", "adam",
    "anika", "belinda", "benjamin", "david", "ed", "edward", "john", "linda", "max", "michel",
    "norbert", "paul", "quincy", "rob", "robert", "steph", "travis", "victor", "zac",
)  # fmt: skip
HELD_OUT_VOICES = ("m4", "m8", "f3", "f4", "Lee", "Mike", "Gene2", "shelby", "steph2", "pablo")
SPEEDS = (*range(120, 151), *range(166, 203))  # words a minute
HELD_OUT_SPEEDS = (*range(113, 119), *range(153, 164), *range(204, 209))
PITCHES = (*range(25, 45), *range(56, 76))  # espeak-ng's own scale, 0 to 99
HELD_OUT_PITCHES = tuple(range(46, 55))


def sentence(rng, held_out=False):
    """A transcript: three to six digits, a command, or a question about a picture."""
    style = rng.random()
    if style < 0.25:
        kind = rng.choice(list(PICTURE_QUESTIONS))
        return spoken(rng.choice(PICTURE_QUESTIONS[kind]))
    while True:
        if style < 0.65:
            text = " ".join(rng.choice(DIGIT_WORDS) for _ in range(rng.randint(3, 6)))
        else:
            text = f"{rng.choice(COMMAND_VERBS)} the {rng.choice(COMMAND_OBJECTS)}"
        if is_held_out(text) == held_out:
            return text


def passage(rng):
    """What a training clip says: mostly one sentence, at times two or three after each other."""
    return [sentence(rng) for _ in range(rng.choices((1, 2, 3), (80, 14, 6))[0])]


def words():
    """Every word that can be spoken, sorted."""
    text = [*DIGIT_WORDS, *COMMAND_VERBS, *COMMAND_OBJECTS, "the"]
    text += [spoken(q) for questions in PICTURE_QUESTIONS.values() for q in questions]
    return sorted({word for part in text for word in part.split()})


def noise(rng, count, held_out):
    """Background of unit power: white or brown in training, pink with a mains hum held out."""
    source = np.random.default_rng(rng.randrange(2**32))
    white = source.standard_normal(count)
    if not held_out and rng.random() < 0.5:
        shaped = white
    else:
        # 1 / f^2 power is brown, 1 / f is pink
        spectrum = np.fft.rfft(white)
        frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 30.0)
        shaped = np.fft.irfft(spectrum / frequency ** (0.5 if held_out else 1.0), count)
    shaped /= np.sqrt(np.mean(shaped**2)) + 1e-12
    if held_out:
        hum = np.sin(2 * np.pi * rng.choice((50, 60, 100, 120)) * np.arange(count) / RATE)
        shaped = (shaped + 0.5 * hum) / np.sqrt(1 + 0.125)
    return shaped


def speak(text, voice, speed, pitch):
    """espeak-ng's recording of ``text``: float64 samples at 16 kHz."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    wave = subprocess.run(command, capture_output=True, check=True).stdout
    # espeak-ng cannot seek back to fill in the length when it writes to a pipe
    start = wave.index(b"data") + 8
    rate = int.from_bytes(wave[24:28], "little")
    samples = np.frombuffer(wave[start : start + (len(wave) - start) // 2 * 2], "<i2") / 32768
    return soxr.resample(samples, rate, RATE, quality="HQ")


def trimmed(samples):
    """``samples`` without the silence at both ends."""
    loud = np.flatnonzero(np.abs(samples) > 0.003)
    return samples[loud[0] : loud[-1] + 1]


def silenced(rng, speech):
    """``speech`` with digital silence at one end or both, as where recordings were cut and joined: noise that stops."""
    before, after = (np.zeros(round(RATE * rng.uniform(0.05, 0.8)) * rng.randint(0, 1)) for _ in "ba")
    return np.concatenate([before, speech, after])


def recording(rng, sentences, held_out=False):
    """``sentences`` spoken by a random voice, with pauses, silence around and noise behind.

    Training clips are played a little faster or slower than spoken, which moves the voice's
    resonances too: more voices than espeak-ng has. float32 samples at 16 kHz, in -1..1.
    """
    accent = rng.choice(HELD_OUT_ACCENTS if held_out else ACCENTS)
    voice = rng.choice(HELD_OUT_VOICES if held_out else VOICES)
    speed = rng.choice(HELD_OUT_SPEEDS if held_out else SPEEDS)
    pitch = rng.choice(HELD_OUT_PITCHES if held_out else PITCHES)
    parts = []
    for text in sentences:
        pause = rng.uniform(0.2, 0.9) if parts else rng.uniform(0.05, 0.4)
        parts += [np.zeros(round(RATE * pause)), trimmed(speak(text, f"{accent}+{voice}", speed, pitch))]
    speech = np.concatenate([*parts, np.zeros(round(RATE * rng.uniform(0.05, 0.4)))])
    if not held_out:
        speech = soxr.resample(speech, RATE * rng.uniform(0.88, 1.14), RATE, quality="HQ")
    speech = speech * (rng.uniform(0.05, 0.16) / np.sqrt(np.mean(speech**2)))
    if held_out or rng.random() < 0.8:
        ratio = rng.uniform(18, 26) if held_out else rng.uniform(12, 40)  # decibels
        power = np.mean(speech**2) / 10 ** (ratio / 10)
        speech = speech + np.sqrt(power) * noise(rng, len(speech), held_out)
        if not held_out and rng.random() < 0.3:
            speech = silenced(rng, speech)
    # 16-bit, as a file would hold it
    return (np.round(np.clip(speech, -1, 1) * 32767) / 32768).astype(np.float32)
