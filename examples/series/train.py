"""A new modality in the report's stages: the projector, the encoder with it, then the adapter; one folder comes out.

    python examples/series/train.py --work SOME/FOLDER

It takes some minutes on two cores. Each stage goes on from the folder of the one before, and the model that it is added
to is loaded afresh: nothing but that folder is ever changed.
"""

from pathlib import Path

import click
import data
import mlx.core as mx
import series
from mlx.utils import tree_flatten

from mlx_phi4 import Request, add_modality, batch_generate, load, test_adapter, train_adapter
from mlx_phi4.checkpoint.modality_loading import new_modality
from mlx_phi4.training.digest import mode_digests

MODEL = "phi4-tiny"
MEDIA = Path(__file__).parents[1] / "media"
STAGES = {  # what is trained, iterations, highest rate
    "projector": (("series_projector",), 80, 3e-3),
    "encoder": (("series_encoder", "series_projector"), 120, 2e-3),
    "adapter": (("series", "series_encoder", "series_projector"), 420, 1e-3),
}


def opened(folder: Path | None):
    """The model with the modality of a folder, or with an untrained one."""
    model, processor = load(MODEL)
    if folder is None:
        mx.random.seed(0)
        new_modality(model, processor, series.KIND, series.SETTINGS)
    else:
        add_modality(model, processor, folder)
    return model, processor


def measured(folder: Path | None, examples: Path) -> float:
    """The share of held-out series that are named right."""
    model, processor = opened(folder)
    return test_adapter(model, examples, processor=processor, base=True, batch_size=16, cache_features=False).exact


def train(work: Path, examples: Path, share: float = 1.0, quiet: bool = False) -> tuple[Path, list[float]]:
    """All stages -> the folder of the last, and the share of right answers before the first and after each."""
    folder, right = None, [measured(None, examples)]
    for seed, (name, (tune, iterations, rate)) in enumerate(STAGES.items()):
        model, processor = opened(folder)
        result = train_adapter(
            model, examples, processor=processor, adapter_path=work / name, overwrite=True, tune=tune, seed=seed,
            scale=2.0, batch_size=16, iters=max(round(share * iterations), 1), learning_rate=rate,
            steps_per_report=40, cache_features=False, val_task=False, plot=False, quiet=quiet,
        )  # fmt: skip
        folder = result.folders[series.KIND]
        right.append(measured(folder, examples))
    return folder, right


def unchanged(folder: Path) -> bool:
    """Whether all old tensors and the four modes' logits are what they are without the modality, to the bit."""
    (plain, processor), (grown, with_series) = load(MODEL), opened(folder)
    new = dict(tree_flatten(grown.parameters()))
    same = all(mx.array_equal(array, new[name]) for name, array in tree_flatten(plain.parameters()))
    return same and mode_digests(plain, processor) == mode_digests(grown, with_series)


def answers(folder: Path, numbers: list[float]) -> dict[str, str]:
    """One batch with rows of five kinds: mode -> answer."""
    model, processor = opened(folder)
    requests = [
        Request("What is the capital of France?"),
        Request("Read the number.", images=[MEDIA / "sign.png"]),
        Request("Transcribe the audio.", audios=[MEDIA / "command.flac"]),
        Request("", images=[MEDIA / "sign.png"], audios=[MEDIA / "question.flac"]),
        Request("What shape is it?", media={"series": [numbers]}),
    ]
    return {each.mode: each.text for each in batch_generate(model, processor, requests, max_tokens=12)}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the data and the results.")
def main(work: Path):
    """Teach phi4-tiny to name the shape of a noisy series."""
    import numpy as np

    examples = data.write(work / "data")
    folder, right = train(work, examples)
    for name, share in zip(("before", *STAGES), right, strict=True):
        click.echo(f"{name}: {100 * share:.1f} % right")
    click.echo(f"old tensors and logits of the four modes unchanged, to the bit: {unchanged(folder)}")
    for mode, answer in answers(folder, data.draw("triangle", np.random.default_rng(99)).tolist()).items():
        click.echo(f"{mode}: {answer}")
    click.echo(f"the modality is in {folder}")


if __name__ == "__main__":
    main()
