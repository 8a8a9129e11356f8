"""What quantization costs in logits: base bits x adapter bits x encoder bits, per mode.

    python benchmarks/convert_error.py --work SOME/FOLDER                     # random layers of the published width
    python benchmarks/convert_error.py --work SOME/FOLDER --model some/folder --items items/folder     # trained ones

Each combination is converted, turned back into float32 (so that only the weights' rounding is seen,
not the kernels'), and compared with the unconverted weights in float32 at every position of four
requests, or at those that predict the answers of a folder of items. Printed, per mode: largest and
mean difference of logits, both divided by the standard deviation of the reference's logits, and at
how many positions the top token is the same.
"""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import click
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_phi4 import load
from mlx_phi4.converter.convert import convert
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

WIDE_AS_PUBLISHED = Sizes(layers=2, vocab=8192, vision_layers=3, audio_blocks=2)
TEXT = "The harbour was quiet, and between seven stones the northern river measured its own paper window."
RATE = 16_000  # Hz


def picture() -> np.ndarray:
    """(448, 448, 3) uint8: gradients and a disc."""
    y, x = np.mgrid[:448, :448]
    disc = ((x - 200) ** 2 + (y - 260) ** 2 < 9000) * 120
    return np.stack([x * 255 // 447, y * 255 // 447, 255 - disc], -1).astype(np.uint8)


def clip() -> tuple[np.ndarray, int]:
    """Three seconds of a rising, trembling tone."""
    t = np.arange(3 * RATE) / RATE
    return (0.3 * np.sin(2 * np.pi * (200 * t + 150 * t**2)) * (1 + 0.5 * np.sin(20 * t))).astype(np.float32), RATE


def made_requests() -> dict[str, list[dict]]:
    """Mode -> one request without an answer, from the media above."""
    images, audios = {"images": [picture()]}, {"audios": [clip()]}
    media = {"text": {}, "vision": images, "speech": audios, "vision-speech": images | audios}
    return {mode: [{"prompt": TEXT, "answer": None} | some] for mode, some in media.items()}


def read_requests(folder: Path, count: int) -> dict[str, list[dict]]:
    """Mode -> requests with their answers, from ``items.jsonl`` as examples/phi4_tiny/held_out.py writes it."""
    found: dict[str, list[dict]] = {"text": [], "vision": [], "speech": [], "vision-speech": []}
    for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        images = {"images": [str(folder / item["picture"])]} if item["picture"] else {}
        audios = {"audios": [str(folder / item["audio"])]} if item["audio"] else {}
        mode = ("vision-speech" if audios else "vision") if images else "speech" if audios else "text"
        if len(found[mode]) < count:
            found[mode].append({"prompt": item["prompt"], "answer": item["answer"]} | images | audios)
    return found


def fast_linears() -> None:
    """Multiply with NumPy's BLAS where MLX has no GPU: its CPU backend takes minutes for one of these requests."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return

    def product(x, weight):
        return mx.array(np.array(x, copy=False) @ np.array(weight, copy=False).T)

    def linear(self, x):
        y = product(x, self.weight)
        return y + self.bias if "bias" in self else y

    nn.Linear.__call__ = linear
    nn.Embedding.as_linear = lambda self, x: product(x, self.weight)


def logits(folder: Path, requests: dict[str, list[dict]]) -> dict[str, np.ndarray]:
    """Mode -> (positions, V) float32: all of a request, or those that predict its answer and its end."""
    model, processor = load(folder, dtype="float32")
    modes = requests if processor.config.multimodal else ["text"]
    return {mode: np.concatenate([_one(model, processor, **request) for request in requests[mode]]) for mode in modes}


def _one(model, processor, prompt: str, answer: str | None, **media) -> np.ndarray:
    inputs = processor(prompt, **media)
    if answer is None:
        return np.array(model(inputs)[0])
    ids = mx.array([processor.tokenizer.encode_plain(answer)], inputs.input_ids.dtype)
    longer = dataclasses.replace(inputs, input_ids=mx.concatenate([inputs.input_ids, ids], axis=1))
    return np.array(model(longer)[0, inputs.input_ids.shape[1] - 1 :])


def compare(found: np.ndarray, expected: np.ndarray) -> tuple[float, float, float]:
    """Largest and mean difference in deviations of the expected logits, share of equal top tokens."""
    difference = np.abs(found - expected) / expected.std()
    return difference.max(), difference.mean(), (found.argmax(-1) == expected.argmax(-1)).mean()


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints.")
@click.option("--model", type=click.Path(path_type=Path), help="Trained weights in place of random ones.")
@click.option("--items", type=click.Path(path_type=Path), help="Folder of requests with answers (items.jsonl).")
@click.option("--count", default=50, show_default=True, help="Items per mode.")
@click.option("--base", type=numbers, default="4,8", show_default=True)
@click.option("--adapters", type=numbers, default="4,8,16", show_default=True)
@click.option("--encoders", type=numbers, default="8,16", show_default=True)
def main(work: Path, model: Path | None, items: Path | None, count: int, **bits: list[int]):
    """Print the table of errors by bits."""
    mx.set_cache_limit(0)
    fast_linears()
    work.mkdir(parents=True, exist_ok=True)
    if model is None:
        model = write_random_checkpoint(work / "wide", size=WIDE_AS_PUBLISHED, dtype="bfloat16")
    requests = read_requests(items, count) if items else made_requests()
    expected = logits(model, requests)
    click.echo("| base | adapters | encoders | " + " | ".join(expected) + " |")
    click.echo("|---|---|---|" + "---|" * len(expected))
    packed, back = work / "packed", work / "back"
    for base, adapters, encoders in itertools.product(bits["base"], bits["adapters"], bits["encoders"]):
        options = {"q_bits": base, "adapter_bits": adapters, "encoder_bits": encoders}
        convert(model, packed, overwrite=packed.exists(), **options)
        convert(packed, back, dequantize=True, dtype="float32", overwrite=back.exists())
        found = logits(back, requests)
        cells = [compare(found[mode], expected[mode]) for mode in expected]
        shown = " | ".join(f"{largest:.2f} / {mean:.3f} / {same:.0%}" for largest, mean, same in cells)
        click.echo(f"| {base} | {adapters} | {encoders} | {shown} |")
    for folder in (packed, back):
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
