"""Training beside mlx_lm.lora's on the same text model and data, in one run: tokens a second and peak memory.

    python benchmarks/training.py --work SOME/FOLDER

A random float32 text checkpoint that both load, the same rows of mixed lengths, the same rank on the same linears and
AdamW. Each round trains with both, in turns that swap, each in a process of its own, so that peaks do not mix. A token
counts where its loss is learnt: of plain text all, of answers with the prompts masked in both. Ratios above 1 in speed
and below 1 in memory speak for this package; medians of rounds, with 95 % intervals by bootstrap.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
from generation import interval, paired

from mlx_phi4.evaluation.speed import machine
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

SIZES = Sizes(hidden=128, layers=4, heads=4, kv_heads=2, mlp=384, vocab=2000)
RANK, BATCH, LONGEST = 8, 4, 256
EPOCH = 16  # iterations
KINDS = ("text", "answers")
KEYS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def write_data(folder: Path, kind: str, rows: int = 64) -> Path:
    """Rows of 20 to 200 characters, a token each, with long prompts where answers are learnt."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def words(length: int) -> str:
        return "".join(rng.choice(list("abcdefgh ijklm nop"), length))

    lengths = np.exp(rng.uniform(np.log(20), np.log(200), rows)).astype(int)
    lines = [
        {"text": words(n)} if kind == "text" else {"prompt": words(int(0.8 * n)), "completion": words(int(0.2 * n) + 1)}
        for n in lengths
    ]
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def ours(model: Path, data: Path, kind: str, iterations: int) -> dict:
    """This package: tokens a second after a warm-up, and the peak above what is loaded."""
    import tempfile

    import mlx.core as mx

    from mlx_phi4.training import run
    from mlx_phi4.training.report import Report
    from mlx_phi4.training.train import train_adapter

    run.mode_digests = lambda model, processor: {}
    found = _Meter(iterations)
    told = Report.add
    Report.add = lambda self, loss, count, seconds: (told(self, loss, count, seconds), found.add(count, seconds))
    mx.reset_peak_memory()
    train_adapter(
        model, data, adapter_path=tempfile.mkdtemp(), iters=iterations, batch_size=BATCH, rank=RANK, scale=20.0,
        learning_rate=1e-5, weight_decay=0.01, max_seq_length=LONGEST, lr_schedule="constant", warmup=0, val_batches=0,
        val_task=False, held_out=0.0, steps_per_eval=10**6, save_every=10**6, quiet=True, plot=False, max_grad_norm=0.0,
        stop_hopeless=False,
    )  # fmt: skip
    return found.figures(mx.get_peak_memory())


def peer(model: Path, data: Path, kind: str, iterations: int) -> dict:
    """mlx_lm.lora's own trainer on the same rows."""
    import tempfile
    import types

    import mlx.core as mx
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset
    from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load

    loaded, tokenizer = load(str(model))
    rows, _, _ = load_local_dataset(data, tokenizer, types.SimpleNamespace(mask_prompt=kind == "answers"))
    loaded.freeze()
    table = {"rank": RANK, "scale": 20.0, "dropout": 0.0, "keys": set(KEYS)}
    linear_to_lora_layers(loaded, len(loaded.layers), table)
    found = _Meter(iterations)

    class Callback(TrainingCallback):
        def on_train_loss_report(self, info: dict) -> None:
            found.add(info["trained_tokens"] - sum(found.counts), 1 / info["iterations_per_second"])

    mx.reset_peak_memory()
    arguments = TrainingArgs(
        batch_size=BATCH, iters=iterations, steps_per_report=1, steps_per_eval=10**6, steps_per_save=10**6,
        max_seq_length=LONGEST, adapter_file=f"{tempfile.mkdtemp()}/adapters.safetensors",
    )  # fmt: skip
    train(loaded, optimizers.AdamW(1e-5), CacheDataset(rows), None, arguments, training_callback=Callback())
    return found.figures(mx.get_peak_memory())


class _Meter:
    """Tokens and seconds of iterations; the first epoch warms up: mlx_lm.lora compiles each shape that it meets."""

    def __init__(self, iterations: int):
        self.warm, self.counts, self.seconds = min(EPOCH, iterations // 2), [], []

    def add(self, count: int, seconds: float) -> None:
        self.counts.append(count)
        self.seconds.append(seconds)

    def figures(self, peak: int) -> dict:
        return {
            "tokens a second": sum(self.counts[self.warm :]) / sum(self.seconds[self.warm :]),
            "peak memory, MB": peak / 1e6,
        }


def measured(who: str, model: Path, data: Path, kind: str, iterations: int) -> dict:
    """One of the two in a fresh process."""
    arguments = [sys.executable, __file__, "--one", who, "--kind", kind, "--work", str(model.parent)]
    done = subprocess.run([*arguments, "--iterations", str(iterations)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{who}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint and the data.")
@click.option("--rounds", default=5, show_default=True, help="Counted rounds; one more warms up.")
@click.option("--iterations", default=40, show_default=True, help="Of a run, of which the first epoch warms up.")
@click.option("--kind", type=click.Choice(KINDS), help="Only these rows.")
@click.option("--one", type=click.Choice(["ours", "peer"]), hidden=True)
def main(work: Path, rounds: int, iterations: int, kind: str | None, one: str | None):
    """Measure training beside mlx_lm.lora's."""
    model = work / "text"
    if one:
        click.echo(json.dumps({"ours": ours, "peer": peer}[one](model, work / kind, kind, iterations)))
        return
    if not (model / "config.json").exists():
        write_random_checkpoint(model, "text", SIZES, dtype="float32")
    click.echo("| rows | figure | mlx_phi4 | mlx_lm.lora | ratio | 95 % interval |\n|---|---|--:|--:|--:|---|")
    began = time.perf_counter()
    for each in [kind] if kind else KINDS:
        data = write_data(work / each, each)
        runs = [
            lambda who=who, data=data, each=each: measured(who, model, data, each, iterations)
            for who in ("ours", "peer")
        ]
        found = paired(*runs, rounds)
        for figure in found[0][0]:
            mine, theirs = ([row[figure] for row in rows] for rows in found)
            ratio, low, high = interval([a / b for a, b in zip(mine, theirs, strict=True)])
            middle = f"{np.median(mine):.4g} | {np.median(theirs):.4g} | {ratio:.3f}"
            click.echo(f"| {each} | {figure} | {middle} | {low:.3f} to {high:.3f} |")
    click.echo(f"{rounds} rounds in {time.perf_counter() - began:.0f} s on {machine()}", err=True)


if __name__ == "__main__":
    main()
