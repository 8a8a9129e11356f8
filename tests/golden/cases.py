"""The requests that the package and the reference implementation both answer, with their pictures and sounds.

Nothing is stored: pictures come from integer arithmetic and sounds are rounded to 16 bits, so every platform makes
the same ones. Needs numpy only.
"""

from dataclasses import dataclass

import numpy as np

RATE = 16_000  # samples a second

WORDS = """
    the of and to in is on that for with as this by at from the are was which an their has been into more other
    river stone light between seven northern harbour because measure paper window answer quiet engine winter
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Case:
    """One request. Messages are (role, content); placeholders stand in the content as <|image_1|>, <|audio_1|>."""

    name: str
    messages: tuple[tuple[str, str], ...]
    pictures: tuple[tuple[int, int], ...] = ()  # (width, height) in pixels
    clips: tuple[float, ...] = ()  # seconds

    @property
    def mode(self) -> str:
        if self.pictures:
            return "vision_speech" if self.clips else "vision"
        return "speech" if self.clips else "text"

    @property
    def adapter(self) -> str | None:
        return {"text": None, "speech": "speech"}.get(self.mode, "vision")

    def chat(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.messages]

    def images(self) -> list[np.ndarray]:
        return [picture(width, height, seed=i) for i, (width, height) in enumerate(self.pictures)]

    def audios(self) -> list[np.ndarray]:
        return [clip(seconds, seed=i) for i, seconds in enumerate(self.clips)]


def _uniform(seed: int, count: int) -> np.ndarray:
    """`count` integers of 32 bits; raw words of the generator never change between numpy versions."""
    return (np.random.PCG64(seed).random_raw(count) >> np.uint64(32)).astype(np.int64)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: gradients, a checkerboard, discs, lines of text-like strokes and some noise."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    full = np.zeros((height, width), np.int64)
    red = full + x * 255 // max(width - 1, 1)
    green = full + y * 255 // max(height - 1, 1)
    blue = 255 - (red + green) // 2
    pixels = np.stack([red, green, blue], -1)
    draw = _uniform(1000 + seed, 64)
    pixels[((x // 24 + y // 24) % 2 == 0) & (x < width // 3) & (y > height // 2)] += 70
    for i in range(6):
        cx, cy, radius = draw[i] % width, draw[6 + i] % height, 8 + draw[12 + i] % max(min(width, height) // 4, 1)
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = draw[18 + 3 * i : 21 + 3 * i] % 256
    _strokes(pixels[height // 8 : height // 3, width // 2 :], seed)
    noise = _uniform(2000 + seed, 4099) % 25 - 12
    pixels += np.resize(noise, (height, width, 1))  # 4099 is prime: no visible period
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _strokes(pixels: np.ndarray, seed: int):
    """Fill a region with rows of dark 5 x 7 glyphs on white, two pixels a dot, in place."""
    pixels[:] = 250
    rows, columns = pixels.shape[0] // 18, pixels.shape[1] // 12
    dots = _uniform(3000 + seed, max(rows * columns, 1)) % (1 << 31)
    for i in range(rows * columns):
        glyph = (dots[i] * 2654435761 >> np.arange(35)[:, None] % 31) & 1
        ink = np.repeat(np.repeat(glyph.reshape(7, 5), 2, 0), 2, 1).astype(bool)
        top, left = 18 * (i // columns) + 2, 12 * (i % columns) + 1
        if dots[i] % 6:  # one glyph in six is a space
            pixels[top : top + 14, left : left + 10][ink] = 20


def clip(seconds: float, seed: int = 0) -> np.ndarray:
    """(samples,) float32 at 16 kHz in [-1, 1): chirps, voiced syllables with moving formants, pauses, faint noise."""
    count = round(seconds * RATE)
    t = np.arange(count) / RATE
    syllable = np.floor(t / 0.23).astype(np.int64)
    draw = _uniform(4000 + seed, 4 * (int(syllable.max(initial=0)) + 1)).reshape(-1, 4)[syllable]
    pitch = 90 + draw[:, 0] % 90
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    for formant in (300 + draw[:, 1] % 600, 1100 + draw[:, 2] % 1500):
        voice = voice + 0.7 * np.sin(2 * np.pi * np.cumsum(formant) / RATE)
    envelope = np.sin(np.pi * (t / 0.23 - syllable)) ** 2 * (draw[:, 3] % 5 > 0)
    chirp = np.sin(2 * np.pi * (200 * t + 900 * (t % 2.0) ** 2)) * ((t % 3.1) > 2.4)
    noise = (np.resize(_uniform(5000 + seed, 40009), count) / 2**32 - 0.5) * 0.01
    wave = 0.16 * envelope * voice + 0.2 * chirp + noise
    return (np.round(np.clip(wave, -1, 0.999) * 32768) / 32768).astype(np.float32)


def prose(words: int, seed: int = 0) -> str:
    """Running text without meaning."""
    chosen = [WORDS[i] for i in _uniform(6000 + seed, words) % len(WORDS)]
    return " ".join(word + ("." if i % 11 == 10 else "") for i, word in enumerate(chosen))


def _ask(question: str, images: int = 0, audios: int = 0) -> tuple[tuple[str, str], ...]:
    marks = [f"<|image_{i + 1}|>" for i in range(images)] + [f"<|audio_{i + 1}|>" for i in range(audios)]
    return (("user", "".join(marks) + question),)


CASES = (
    Case("text", _ask("What is the distance between the Earth and the Moon, in kilometres?")),
    Case(
        "system",
        (
            ("system", "Ты вежливый помощник. 用一句话回答。"),
            ("user", " \n你好！Сколько будет 12345 × 678? こんにちは、مرحبا 🙂"),  # noqa: RUF001
            ("assistant", "8 369 910."),
            ("user", "Спасибо — and in the other order?"),
        ),
    ),
    # Exactly two crops: nothing is resized but the global view, so logits must agree closely.
    Case("picture_exact", _ask("What is in this picture?", 1), pictures=((896, 448),)),
    Case("picture_wide", _ask("What is in this picture?", 1), pictures=((1000, 300),)),
    Case("picture_tall", _ask("Describe the picture.", 1), pictures=((310, 1200),)),
    Case("picture_small", _ask("Describe the picture.", 1), pictures=((200, 120),)),
    # 10 x 5 crops would be needed: scaled to 9 x 4, the most there can be, with one padded row of patches.
    Case("picture_large", _ask("Read the text.", 1), pictures=((4100, 1800),)),
    Case(
        "pictures",
        (("user", "Compare <|image_1|> with <|image_2|> and the small <|image_3|>, please."),),
        pictures=((640, 480), (300, 500), (64, 64)),
    ),
    Case("clip_1s", _ask("Transcribe the audio.", 0, 1), clips=(1.0,)),
    Case("clip_6s", _ask("Transcribe the audio.", 0, 1), clips=(6.0,)),
    Case("clip_95s", _ask("Summarize the audio.", 0, 1), clips=(95.0,)),
    Case("picture_clip", _ask("Answer the question that is spoken.", 1, 1), pictures=((500, 400),), clips=(2.5,)),
    Case("text_7000", _ask(prose(1906))),
)

# Greedy answers of NEW_TOKENS tokens that begin near 4,000 tokens, and one that begins in the long RoPE regime.
NEW_TOKENS = 300
LONG_CASES = (
    Case("long_text", _ask(prose(1091, seed=31))),
    Case("long_picture", _ask(prose(983, seed=2), 1), pictures=((300, 420),)),
    Case("long_clip", _ask(prose(1037, seed=3), 0, 1), clips=(6.0,)),
    Case("long_5000", _ask(prose(1380, seed=31))),
)
