"""The converter at full size, beside mlx-lm's: wall time, CPU time, peak memory, output size.

    python benchmarks/convert.py --work SOME/FOLDER            # needs about 30 GB of disk, an hour on two slow cores

Builds random checkpoints of the published sizes (11.1 GB and 7.7 GB, bfloat16), converts each in a
process of its own, and prints one line per run. The text model is converted by mlx-lm and by this
package in turn, several rounds, so that both meet the same machine. Peak memory is the process's
largest resident set, as the system counts it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

OURS = (sys.executable, "-m", "mlx_phi4", "convert", "--quiet")
PEER = (sys.executable, "-m", "mlx_lm", "convert", "-q")
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss

# One token through a loaded folder: how much memory text needs. Printed: MLX's own peak, in bytes.
ONE_TOKEN = """
import sys, mlx.core as mx
from mlx_phi4 import load
mx.reset_peak_memory()
model, processor = load(sys.argv[1])
mx.eval(model(processor("x", raw=True)))
print(mx.get_peak_memory())
"""


def measure(command: list[str]) -> dict:
    """Run a process: wall and CPU seconds, peak resident bytes, what it printed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)}\n{errors}")
    return {
        "wall": time.perf_counter() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * RSS_UNIT,
        "output": output,
    }


def conversion(name: str, command: tuple[str, ...], source: Path, out: Path, keep: bool = False) -> dict:
    """Convert once, print a line, and return the measurements with the bytes read and written."""
    shutil.rmtree(out, ignore_errors=True)
    found = measure([*command, "--model", str(source), "--mlx-path", str(out)])
    found |= {"in": weights(source), "out": weights(out)}
    click.echo(
        f"{name:<34} wall {found['wall']:7.1f} s  cpu {found['cpu']:7.1f} s  "
        f"{found['in'] / found['wall'] / 1e6:6.0f} MB/s  peak {found['memory'] / 1e9:5.2f} GB  "
        f"out {found['out'] / 1e9:5.3f} GB"
    )
    if not keep:
        shutil.rmtree(out)
    return found


def weights(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def build(work: Path, layout: str, size: str) -> Path:
    """A random checkpoint in bfloat16, made once."""
    folder = work / f"{layout}-{size}"
    if not (folder / "complete").exists():
        made = [sys.executable, "-m", "mlx_phi4.synthetic.random_checkpoint", str(folder), "--dtype", "bfloat16"]
        measure([*made, "--layout", layout, "--size", size])
        (folder / "complete").touch()
    return folder


def text_use(folder: Path) -> tuple[int, int]:
    """(peak resident bytes, MLX's peak bytes) of one token of text."""
    found = measure([sys.executable, "-c", ONE_TOKEN, str(folder)])
    return found["memory"], int(found["output"])


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints and results.")
@click.option("--size", default="full", show_default=True, help="Of the checkpoints: full, wide or reduced.")
@click.option("--rounds", default=2, show_default=True, help="Conversions of the text model by each.")
@click.option("--keep", is_flag=True, help="Keep the random checkpoints.")
def main(work: Path, size: str, rounds: int, keep: bool):
    """Measure the converter beside mlx-lm's."""
    work.mkdir(parents=True, exist_ok=True)
    click.echo(f"{os.cpu_count()} cores, load average {' '.join(f'{x:.1f}' for x in os.getloadavg())}")
    text = build(work, "text", size)
    peers, ours = [], []
    for _ in range(rounds):
        peers.append(conversion("text, mlx-lm", PEER, text, work / "peer"))
        ours.append(conversion("text, mlx_phi4", OURS, text, work / "text", keep=True))
    if not keep:
        shutil.rmtree(text)
    multimodal = build(work, "microsoft", size)
    small = conversion("multimodal, 4-bit adapters", (*OURS, "--adapter-bits", "4"), multimodal, work / "small")
    whole = conversion("multimodal, defaults", OURS, multimodal, work / "multimodal", keep=True)
    if not keep:
        shutil.rmtree(multimodal)
    click.echo(f"load average {' '.join(f'{x:.1f}' for x in os.getloadavg())}")

    def best(runs, what):
        return min(run[what] for run in runs)

    rate = (best(ours, "wall") / best(peers, "wall"), best(ours, "cpu") / best(peers, "cpu"))
    click.echo(f"text: wall {rate[0]:.2f}x, cpu {rate[1]:.2f}x of mlx-lm (best of {rounds})")
    click.echo(f"text: peak memory {best(ours, 'memory') / best(peers, 'memory'):.2f}x of mlx-lm")
    for what in ("wall", "cpu"):
        peer = best(peers, what) / peers[0]["in"]
        click.echo(f"multimodal: {what} {whole[what] / whole['in'] / peer:.2f}x of mlx-lm's rate per input byte")
    in_text, in_whole = text_use(work / "text"), text_use(work / "multimodal")
    for what, a, b in zip(("resident", "MLX"), in_whole, in_text, strict=True):
        click.echo(f"one token of text, {what} peak: multimodal {a / 1e9:.3f} GB, text {b / 1e9:.3f} GB, {a / b:.3f}x")
    results = {"text": ours, "mlx_lm": peers, "small": small, "multimodal": whole, "use": [in_text, in_whole]}
    (work / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    for name in ("text", "multimodal"):
        shutil.rmtree(work / name)


if __name__ == "__main__":
    main()
