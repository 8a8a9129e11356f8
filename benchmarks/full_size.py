"""Real size without real weights: a whole model of the published sizes, from its writing to a new token in every mode.

    python benchmarks/full_size.py --work SOME/FOLDER            # 16 GB of disk

Writes a random checkpoint with the published tensors, converts it to 4 bits, loads it, encodes a picture of several
views and a clip, and takes a few of their tokens, the assistant's turn and one new token per mode through the decoder.
Each stage is a process of its own, whose peak is its largest resident set; MLX counts its own beside it. The answers
mean nothing; that all is finite, of the right shapes, and within memory does.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np

SECONDS_OF_SOUND = 2.0
MEDIA_TOKENS = 2  # of a picture or clip that go through the decoder
MODES = ("text", "vision", "speech", "vision-speech")
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
COLUMNS = ("stage", "wall, s", "CPU, s", "peak of the process, GB", "MLX's own peak, GB", "what came out")


def measured(stage: str, command: list, out: Path | None = None) -> str:
    """Run a process; a row of the table. What it did: its last line, JSON, or the folder that it wrote."""
    began = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"{stage} ended with {os.waitstatus_to_exitcode(status)}")
    told = {"told": weights(out), "peak": None} if out else json.loads(output.splitlines()[-1])
    peak = "" if told["peak"] is None else f"{told['peak'] / 1e9:.2f}"
    wall, used = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    return f"| {stage} | {wall:.0f} | {used:.0f} | {usage.ru_maxrss * RSS_UNIT / 1e9:.2f} | {peak} | {told['told']} |"


def weights(folder: Path) -> str:
    """Bytes of the weight files, for a person."""
    return f"{sum(path.stat().st_size for path in folder.rglob('*.safetensors')) / 1e9:.2f} GB"


# what the processes do: (folder of the model, of what stages leave to each other, size of the picture) -> a sentence


def loading(model: Path, work: Path, size: str) -> str:
    """Open the folder: headers, configuration, tokenizer, and the proof that all tensors fit."""
    from mlx.utils import tree_flatten

    from mlx_phi4 import load

    arrays = tree_flatten(load(model)[0].parameters())
    return f"{len(arrays)} arrays, {sum(array.nbytes for _, array in arrays) / 1e9:.2f} GB, none of them read"


def encoding(kind: str, model: Path, work: Path, size: str) -> str:
    """Encode one medium and keep its first embeddings."""
    import mlx.core as mx

    from mlx_phi4 import Request, load

    loaded, processor = load(model)
    rng = np.random.default_rng(0)
    if kind == "image":
        width, height = map(int, size.split("x"))
        request = Request("What?", images=[rng.integers(0, 256, (height, width, 3), np.uint8)])
    else:
        sound = 0.1 * rng.standard_normal(int(16_000 * SECONDS_OF_SOUND))
        request = Request("What?", audios=[(sound.astype(np.float32), 16_000)])
    row = processor.row(request)
    ((_, item),) = row.media
    found = np.array(loaded.embed_medium(item, row.mode).astype(mx.float32))
    assert found.shape == (item.tokens, loaded.config.decoder.hidden_size) and np.isfinite(found).all()
    np.save(work / f"{kind}.npy", found[:MEDIA_TOKENS])
    views = f"{len(item.crops) + 1} views" if kind == "image" else f"{SECONDS_OF_SOUND:g} s"
    return f"{views}: {len(found)} tokens, deviation {found.std():.2f}"


def decoding(mode: str, model: Path, work: Path, size: str) -> str:
    """Media tokens and the assistant's turn, then one new token."""
    import mlx.core as mx

    from mlx_phi4 import load
    from mlx_phi4.decoder.state import Run
    from mlx_phi4.inputs.processor import Row
    from mlx_phi4.modalities import adapter_of

    loaded, processor = load(model)
    special = processor.tokenizer.special
    row = Row((special["<|user|>"].id, special["<|assistant|>"].id), (), mode, adapter_of(mode))
    media = [np.load(work / f"{kind}.npy") for kind, name in (("image", "vision"), ("audio", "speech")) if name in mode]
    state, h = loaded.new_state(row), loaded.embed(row)
    h = mx.concatenate([h[:, :1], *(mx.array(each)[None].astype(h.dtype) for each in media), h[:, 1:]], axis=1)
    first = loaded.forward(h, [Run(state, h.shape[1], 1)])[0, -1]
    token = int(mx.argmax(first))
    began = time.perf_counter()
    last = loaded.forward(loaded.embed(Row((token,), (), mode, row.adapter)), [Run(state, 1, 1)])[0, -1]
    mx.eval(last)
    assert bool(mx.isfinite(first).all()) and bool(mx.isfinite(last).all()) and last.shape == first.shape
    return f"{h.shape[1]} tokens and a new one, which took {time.perf_counter() - began:.0f} s"


def stage(name: str, *given) -> None:
    """One stage, in the process that was started for it."""
    import mlx.core as mx

    run = {"load": (loading,), "picture": (encoding, "image"), "clip": (encoding, "audio")}.get(name, (decoding, name))
    told = run[0](*run[1:], *given)
    print(json.dumps({"told": told, "peak": mx.get_peak_memory()}))


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints.")
@click.option("--size", default="full", show_default=True, help="Of the checkpoint: full, wide or reduced.")
@click.option("--picture", default="1344x896", show_default=True, help="Its size: each 448 pixels are a view's side.")
@click.option("--encoder-bits", default=16, show_default=True, help="8 is usual, and much slower on a CPU.")
@click.option("--keep", is_flag=True, help="Keep the checkpoints.")
@click.option("--only", hidden=True)
def main(work: Path, size: str, picture: str, encoder_bits: int, keep: bool, only: str | None):
    """Take a model of the published sizes through every stage."""
    source, model = work / "published", work / "converted"
    if only:
        stage(only, model, work, picture)
        return
    work.mkdir(parents=True, exist_ok=True)
    click.echo(f"| {' | '.join(COLUMNS)} |\n|---|--:|--:|--:|--:|---|")
    python = (sys.executable, "-m")
    written = [*python, "mlx_phi4.synthetic.random_checkpoint", source, "--size", size, "--dtype", "bfloat16"]
    click.echo(measured("write", written, source))
    bits = ("--q-bits", 4, "--encoder-bits", encoder_bits, "--overwrite")
    converted = [*python, "mlx_phi4", "convert", "--quiet", "--model", source, "--mlx-path", model, *bits]
    click.echo(measured("convert", converted, model))
    if not keep:
        shutil.rmtree(source)
    for name in ("load", "picture", "clip", *MODES):
        again = [sys.executable, __file__, "--work", work, "--picture", picture, "--only", name]
        click.echo(measured(name, again))
    if not keep:
        shutil.rmtree(model)


if __name__ == "__main__":
    main()
