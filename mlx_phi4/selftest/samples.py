"""What the built-in model is asked: fixed inputs for every stage, the same on all machines, and the reference's values.

Each stage has inputs of its own, so that a stage before it that is wrong does not make it wrong, too. Numbers come from
raw words of a generator, which no version of numpy changes.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..checkpoint.hub import ASSETS
from ..config import CROP_SIZE, PATCH_SIZE
from ..inputs.processor import Request
from ..vision.preprocess import CELLS, PATCHES, Picture

SAMPLES = ASSETS / "selftest"
BUILT_IN_MODEL = "phi4-tiny"
SPOKEN_COMMAND, SPOKEN_QUESTION, SIGN = "command.flac", "question.flac", "sign.png"
REGIMES = {"short": (0, False), "short, late": (3900, False), "long": (4100, True)}  # first position, table
DECODER_IDS = 48
LONG_MEL = 21  # times the command's features: more than one window of the conformer
CONTEXT = 64  # tokens, in place of the original context of 4,096, so that an answer passes it soon
CROSSING = 58  # tokens of a prompt whose answer passes it
CROSSING_NEW = 12  # tokens of that answer


@dataclass(frozen=True)
class Case:
    """One request of a mode: the prompt, its bundled media, and what the model was trained to answer."""

    name: str
    mode: str
    prompt: str
    answer: str
    image: str | None = None
    audio: str | None = None

    @property
    def request(self) -> Request:
        media = [[str(SAMPLES / each)] if each else None for each in (self.image, self.audio)]
        return Request(self.prompt, *media)


CASES = (
    Case("sum", "text", "What is 27 + 45?", "72"),
    Case("capital", "text", "What is the capital of France?", "Paris"),
    Case("number", "vision", "Read the number.", "7", image=SIGN),
    Case("picture", "vision", "Describe the picture.", "blue star", image=SIGN),
    Case("command", "speech", "Transcribe the audio clip into text.", "turn on the radio", audio=SPOKEN_COMMAND),
    Case("question", "vision-speech", "", "star", image=SIGN, audio=SPOKEN_QUESTION),
)


@cache
def golden() -> dict[str, np.ndarray]:
    """The reference implementation's values by name. Raises OSError or ValueError where the file is damaged."""
    with np.load(SAMPLES / "golden.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def made_for() -> str:
    """SHA-256 of the weights that the golden values belong to."""
    return json.loads((SAMPLES / "made_with.json").read_text())["model.safetensors"]


def words(count: int, seed: int) -> np.ndarray:
    """(count,) int64 of 32 bits."""
    return (np.random.PCG64(seed).random_raw(count) >> np.uint64(32)).astype(np.int64)


def normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """About normal numbers, float32: sums of four uniform ones, of deviation 1."""
    uniform = words(4 * int(np.prod(shape)), seed).reshape(4, *shape) / 2**32
    return ((uniform.sum(0) - 2) * 3**0.5).astype(np.float32)


def ordinary_ids(count: int, seed: int) -> list[int]:
    """Ids of the built-in vocabulary's text, no special tokens."""
    return (words(count, seed) % 700).tolist()


def sign() -> np.ndarray:
    """(260, 448, 3) uint8: the bundled picture."""
    from PIL import Image

    return np.asarray(Image.open(SAMPLES / SIGN).convert("RGB"))


def pictures() -> dict[str, np.ndarray]:
    """Pictures for the views: of one crop, of a little more, of four, and two that have to be resized."""
    plain = sign()
    large = plain.repeat(2, 0).repeat(2, 1)
    resized = {"small": plain[30:230, 60:360], "tall": large[:, 200:420].repeat(2, 0)}
    return {"sign": plain, "high": large[30:490, 200:648], "large": large} | resized


def ready(name: str) -> Picture:
    """A picture that is not resized, cut into views by hand; the global view takes every nth pixel."""
    pixels = pictures()[name]
    rows, columns = (-(-side // CROP_SIZE) for side in pixels.shape[:2])
    canvas = np.full((rows * CROP_SIZE, columns * CROP_SIZE, 3), 255, np.uint8)
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    crops = canvas.reshape(rows, CROP_SIZE, columns, CROP_SIZE, 3).swapaxes(1, 2).reshape(-1, CROP_SIZE, CROP_SIZE, 3)
    scaled = (canvas[::rows, ::columns][:CROP_SIZE, :CROP_SIZE].astype(np.float32) - 127.5) / 127.5
    sides = zip((rows, columns), pixels.shape[:2], strict=True)
    kept = tuple(PATCHES * n - (CROP_SIZE * n - side) // PATCH_SIZE for n, side in sides)
    return Picture(scaled, np.ascontiguousarray(crops), (rows, columns), kept)


def features(picture: Picture, dims: int) -> list[np.ndarray]:
    """Features of a picture's views as an encoder gives them: (cell rows, cell columns, dims) each."""
    full = normal((len(picture.kept_by_view), CELLS, CELLS, dims), 11)
    return [view[: -(-r // 2), : -(-c // 2)] for view, (r, c) in zip(full, picture.kept_by_view, strict=True)]


def kept_embeddings(picture: Picture) -> np.ndarray:
    """Places of a picture's tokens that were kept: every 13th, the first ends of rows, and around both separators."""
    rows, columns = picture.kept_cells
    crops = rows * (columns + 1)
    chosen = [*range(0, picture.tokens, 13), columns, 2 * columns + 1, *range(crops - 2, crops + 2), picture.tokens - 1]
    return np.unique(chosen)


def frames(dims: int) -> np.ndarray:
    """(40, dims): what a conformer might give."""
    return normal((40, dims), 12)


def path(name: str) -> Path:
    """A bundled file."""
    return SAMPLES / name
