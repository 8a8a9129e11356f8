"""What several ranks read and send for a token, what a shared head is worth, and how a queue of work balances.

python benchmarks/distributed.py bytes            # from published shapes, without weights
python benchmarks/distributed.py head             # two ranks on this machine: the head replicated, and shared
python benchmarks/distributed.py queue            # two ranks, one of them slowed to a quarter
"""

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from mlx_phi4.checkpoint.packing import Scheme
from mlx_phi4.synthetic.published import SIZES, tensors

ROOT = Path(__file__).parents[1]
BY_COLUMNS = ("o_proj", "down_proj")
LINEARS = ("qkv_proj", "gate_up_proj", *BY_COLUMNS)


def shape_bytes(shape: tuple[int, ...], bits: int) -> float:
    """Bytes of a matrix in 16 bits, or packed in groups of 64 with scales and biases in 16."""
    if bits == 16 or len(shape) < 2:
        return 2 * math.prod(shape)
    parts = Scheme.of(bits).outputs(shape, "BF16").values()
    return sum({"U32": 4, "BF16": 2}[dtype] * math.prod(dims) for dtype, dims in parts)


def bytes_of_token(ranks: int, bits: int, adapter: str | None, shared_head: bool) -> float:
    """Weight bytes that a rank reads for a token."""
    total = 0.0
    for name, shape in tensors(SIZES["full"], "microsoft").items():
        linear = next((each for each in LINEARS if f".{each}." in name), None)
        if name == "model.embed_tokens.weight":  # which is the head, too
            total += shape_bytes(shape, bits) / (ranks if shared_head else 1)
        elif not name.startswith(("model.layers.", "model.norm")):
            continue
        elif ".lora_" in name:
            if f".{adapter}." in name:
                down = ".lora_A." in name
                total += shape_bytes(shape, bits and max(bits, 8)) / (ranks if down == (linear in BY_COLUMNS) else 1)
        else:
            total += shape_bytes(shape, bits if linear else 16) / (ranks if linear else 1)
    return total


@click.group()
def main():
    """Figures of several ranks."""


@main.command("bytes")
def count_bytes():
    """Bytes per rank and token of the published sizes, over those of one process."""
    sizes = SIZES["full"]
    click.echo(f"{2 * sizes.layers} collectives a token, of {2 * sizes.hidden} bytes each in 16 bits; one more for")
    click.echo(f"the embeddings where rank 0 leads. A shared head gathers {2 * sizes.vocab} bytes of logits a token.")
    for bits in (16, 4):
        for adapter in (None, "vision"):
            alone = bytes_of_token(1, bits, adapter, False)
            packed = ", 8 bits" if adapter and bits < 16 else ""
            click.echo(f"{bits} bits, {adapter or 'no'} adapter{packed}: {alone / 1e6:.0f} MB")
            for ranks in (2, 4, 8):
                found = [bytes_of_token(ranks, bits, adapter, shared) for shared in (False, True)]
                whole, shared = (f"{each / 1e6:.0f} MB, {each / alone:.3f}x" for each in found)
                most = f"at most {alone / found[0]:.2f}x as fast"
                click.echo(f"  {ranks} ranks: head replicated {whole} ({most}), shared {shared}")


def start(command: list, size: int = 2, **environment: str) -> list[subprocess.Popen]:
    """The same command on ranks of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    for each in sockets:
        each.close()
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(hosts, file)
    known = os.environ | {"MLX_HOSTFILE": file.name, "PYTHONPATH": str(ROOT)} | environment
    return [
        subprocess.Popen(command, env=known | {"MLX_RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]


def outputs(ranks: list[subprocess.Popen]) -> list[str]:
    """What each rank printed."""
    return [each.communicate()[0] for each in ranks]


HEAD = """
import sys, time, statistics
import mlx.core as mx, mlx_phi4
from mlx_phi4.decoder.state import RowState, Run
from mlx_phi4.decoder.kv_cache import CacheOptions
group = mx.distributed.init(strict=True, backend="ring")
models = {head: mlx_phi4.load(sys.argv[1])[0] for head in ("replicated", "shared")}
for head, model in models.items():
    model.shard(group, head=head)
times = {head: [] for head in models}
for round in range(6):
    for head, model in models.items():
        state = RowState(None, False, CacheOptions().make(len(model.model.layers)))
        began = time.perf_counter()
        for token in range(20):
            h = model.model.embed_tokens(mx.array([[token]]))
            mx.eval(model.forward(h, [Run(state, 1, 1)]))
        if round:
            times[head].append((time.perf_counter() - began) / 20)
if group.rank() == 0:
    medians = {head: statistics.median(found) for head, found in times.items()}
    print(" ".join(f"{head} {1e3 * found:.2f} ms" for head, found in medians.items()),
          f"ratio {medians['shared'] / medians['replicated']:.2f}")
"""


@main.command()
@click.option("--vocab", default=50_000, show_default=True, help="Rows of the head.")
def head(vocab):
    """Milliseconds a token of two ranks on this machine, head replicated and head shared, alternating."""
    import dataclasses

    from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        sizes = dataclasses.replace(SIZES["reduced"], hidden=512, heads=8, mlp=1024, vocab=vocab)
        write_random_checkpoint(folder, "text", sizes)
        ranks = start([sys.executable, "-c", HEAD, folder])
        click.echo(outputs(ranks)[0].strip())


WORK = """
import sys, time
from mlx_phi4 import distributed
from mlx_phi4.ranks.work import share_out
ranks = distributed.join("data")
ranks.gather(None)
began = time.perf_counter()
def work(order):
    for index in order:
        time.sleep(float(sys.argv[2]) * (4 if ranks.rank else 1))
        yield index, ranks.rank
done = [rank for _, rank in share_out(ranks, [1] * int(sys.argv[1]), work)]
if ranks.rank == 0:
    print(time.perf_counter() - began, done.count(0), done.count(1))
distributed.leave(0)
"""


@main.command()
@click.option("--pieces", default=40, show_default=True)
@click.option("--seconds", default=0.15, show_default=True, help="Of a piece, on rank 0.")
@click.option("--repeat", default=3, show_default=True)
def queue(pieces, seconds, repeat):
    """Two ranks share equal pieces, which take rank 1 four times as long: seconds over those of the ideal split."""
    ratios = []
    for _ in range(repeat):
        ranks = start([sys.executable, "-c", WORK, str(pieces), str(seconds)])
        took, first, second = outputs(ranks)[0].split()
        ratios.append(float(took) / (pieces * seconds / 1.25))
        click.echo(f"{float(took):.2f} s, rank 0 did {first}, rank 1 {second}: {ratios[-1]:.2f}x of the ideal split")
    click.echo(f"median {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main()
