"""Generation beside mlx-lm's on the same 4-bit text checkpoints, and the price of adapters and batches.

    python benchmarks/generation.py --work SOME/FOLDER         # needs about 4 GB of disk

Random checkpoints are written and converted once by mlx-lm, so that both load the same folder. Each
round runs both, in turns that swap; printed are medians and, for the ratio of the two (above 1: this
package is faster), the median of the rounds with its 95 % interval by bootstrap.

A full model takes MLX's CPU backend many seconds for each token. At the published width two layers are
run as they are, one layer more is timed apart and added thirty times.

Weights keep float32 scales by default: MLX's CPU backend multiplies 4-bit weights about eight times
faster with them than with bfloat16, so that what surrounds the multiplication weighs more, not less.

On a machine that does other work, too, ``--clock cpu`` counts CPU seconds of all threads instead.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time

import click
import mlx.core as mx
import numpy as np

from mlx_phi4 import Mode, Request, load
from mlx_phi4.converter.convert import convert
from mlx_phi4.decoder.kv_cache import KVCache
from mlx_phi4.decoder.state import RowState, Run, Step
from mlx_phi4.evaluation.speed import machine, weight_bytes
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.inputs.processor import Row
from mlx_phi4.modalities import adapter_of
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

ENCODERS = {
    "vision_hidden": 64, "vision_mlp": 128, "vision_layers": 2, "vision_heads": 4,
    "audio_hidden": 64, "audio_mlp": 96, "audio_blocks": 1, "audio_heads": 4, "audio_channels": 32,
}  # fmt: skip
SMALL = Sizes(hidden=512, layers=4, heads=8, kv_heads=4, mlp=1024, vocab=320, **ENCODERS)
BUILT, PUBLISHED = 2, 32  # decoder layers
FULL = Sizes(layers=BUILT, **ENCODERS)
ADAPTERS = Sizes(layers=BUILT, vocab=320, **ENCODERS)  # the head is measured with FULL
RESAMPLES = 4000
CLOCKS = {"wall": perf_counter, "cpu": process_time}


class Ours:
    """This package, by token ids."""

    def __init__(self, folder: Path, clock: Callable[[], float] = perf_counter):
        self.clock = clock
        self.model, self.processor = load(folder, lazy=False)
        self.layers = self.model.model.layers

    def run(self, ids: list[int], count: int) -> tuple[float, float]:
        """Seconds to the first of ``count`` tokens, and for each later one. One token more is made."""
        batch = Batch(self.model)
        batch.admit(Sequence(Row(tuple(ids)), GenerationOptions(max_tokens=count + 1)))

        def steps() -> Iterator[list]:
            while batch.active:
                yield batch.step()

        return _timed(steps, self.clock)

    def layer(self, h: mx.array, mode: Mode = Mode.TEXT) -> float:
        """Seconds of one layer for h (1, L, D) at the start of a sequence."""
        state = RowState(adapter_of(mode), False, [KVCache()])
        step = Step([Run(state, h.shape[1], h.shape[1])], self.model.model._rope, h.dtype)
        mx.eval(step.rotation)
        return _evaluated(lambda: self.layers[0](h, step, step.caches(0)), self.clock)

    def prompt_layer(self, h: mx.array) -> float:
        """Seconds of one layer for a whole prompt."""
        return self.layer(h)


class Peer:
    """mlx-lm, by token ids."""

    def __init__(self, folder: Path, clock: Callable[[], float] = perf_counter):
        from mlx_lm.utils import load_model

        self.clock = clock
        self.model, _ = load_model(folder)
        self.layers = self.model.layers

    def run(self, ids: list[int], count: int) -> tuple[float, float]:
        """As ``Ours.run``."""
        from mlx_lm.generate import generate_step, generation_stream

        times = _timed(lambda: generate_step(mx.array(ids), self.model, max_tokens=count + 1), self.clock)
        # it has begun one step more than it was asked for, which must not run into the next measurement
        mx.synchronize(generation_stream)
        return times

    def layer(self, h: mx.array) -> float:
        """As ``Ours.layer``."""
        from mlx_lm.models.base import create_attention_mask
        from mlx_lm.models.cache import KVCache

        cache = KVCache()
        mask = create_attention_mask(h, cache)
        return _evaluated(lambda: self.layers[0](h, mask, cache), self.clock)

    def prompt_layer(self, h: mx.array) -> float:
        """mlx-lm computes all but the last token, then the last one."""
        return self.layer(h[:, :-1]) + self.layer(h[:, -1:])


def _timed(steps: Callable, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds to the first token and for each later one but the last, so that a step is on its way at both ends."""
    mx.synchronize()
    began = clock()
    times = [clock() for _ in steps()]
    return times[0] - began, (times[-2] - times[0]) / (len(times) - 2)


def _evaluated(call: Callable[[], mx.array], clock: Callable[[], float]) -> float:
    mx.synchronize()
    began = clock()
    mx.eval(call())
    return clock() - began


def paired(first: Callable[[], dict], second: Callable[[], dict], rounds: int) -> tuple[list[dict], list[dict]]:
    """Measurements of both, in turns whose order swaps; one round before them warms up."""
    found = ([], [])
    for round in range(rounds + 1):
        for which in (0, 1) if round % 2 else (1, 0):
            measured = (first, second)[which]()
            if round:
                found[which].append(measured)
    return found


def interval(values: list[float]) -> tuple[float, float, float]:
    """(median, lower, upper): the 95 % interval of the median by bootstrap, with a fixed seed."""
    values = np.array(values)
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    return float(np.median(values)), *np.quantile(np.median(drawn, axis=1), (0.025, 0.975)).tolist()


def checkpoint(work: Path, name: str, sizes: Sizes, dtype: str, layout: str = "text") -> Path:
    """A 4-bit folder, made once: by mlx-lm from a text model, by this package from a multimodal one."""
    folder = work / f"{name}-{dtype}-4bit"
    if (folder / "config.json").exists():
        return folder
    source = write_random_checkpoint(work / f"{name}-source", layout, sizes, dtype="bfloat16")
    if layout == "text":
        from mlx_lm import convert as peer_convert

        shutil.rmtree(folder, ignore_errors=True)
        peer_convert(str(source), str(folder), quantize=True, q_bits=4, q_group_size=64, dtype=dtype)
    else:
        convert(source, folder, dtype=dtype, adapter_bits=4, overwrite=True)
    shutil.rmtree(source)
    return folder


def measure_small(work: Path, rounds: int, dtype: str, clock, prompt: int = 96, answer: int = 48) -> list[dict]:
    """Prefill and decoding of a small model, whole runs."""
    folder = checkpoint(work, "small", SMALL, dtype)
    ids = _ids(prompt)

    def runner(engine) -> Callable[[], dict]:
        def measured() -> dict:
            first, later = engine.run(ids, answer)
            return {"prefill": prompt / first, "decode": 1 / later}

        return measured

    found = paired(runner(Ours(folder, clock)), runner(Peer(folder, clock)), rounds)
    what = f"small model ({SMALL.layers} layers of {SMALL.hidden})"
    return _compared(what, found, {"prefill": f"{prompt} tokens", "decode": f"{answer} tokens"})


def measure_full(
    work: Path, rounds: int, dtype: str, clock, prompt: int = 8, answer: int = 3
) -> tuple[list[dict], dict]:
    """The published width, composed to its 32 layers; and what of a token's time is not in layers."""
    folder = checkpoint(work, "full", FULL, dtype)
    ids, more = _ids(prompt), PUBLISHED - BUILT
    rng = np.random.default_rng(1)
    h = mx.array(rng.normal(size=(1, prompt, FULL.hidden)), dtype=getattr(mx, dtype))

    def runner(engine) -> Callable[[], dict]:
        def measured() -> dict:
            first, later = engine.run(ids, answer)
            layer = float(np.median([engine.layer(h[:, :1]) for _ in range(3)]))
            return {
                "prefill": prompt / (first + more * engine.prompt_layer(h)),
                "decode": 1 / (later + more * layer),
                "one layer, decode": 1 / layer,
                "head and the rest, decode": 1 / max(later - BUILT * layer, 1e-9),
            }

        return measured

    ours = Ours(folder, clock)
    found = paired(runner(ours), runner(Peer(folder, clock)), rounds)
    head = weight_bytes(ours.model, Mode.TEXT)[0] - _layer_bytes(ours, Mode.TEXT)
    rest = float(np.median([1 / row["head and the rest, decode"] for row in found[0]]))
    what = f"published width, {BUILT} layers composed to {PUBLISHED}"
    notes = {"prefill": f"{prompt} tokens", "decode": f"{answer} tokens"}
    return _compared(what, found, notes), {"head_bytes": head, "rest_seconds": rest}


def _layer_bytes(engine: Ours, mode: Mode) -> int:
    """Bytes of the layers that were built, this mode's adapter included."""
    from mlx.utils import tree_flatten

    head = engine.model.lm_head if "lm_head" in engine.model else engine.model.model.embed_tokens
    apart = sum(a.nbytes for part in (head, engine.model.model.norm) for _, a in tree_flatten(part.parameters()))
    return sum(weight_bytes(engine.model, mode)) - apart


def measure_adapters(work: Path, rounds: int, dtype: str, clock, outside: dict) -> list[dict]:
    """Vision and speech mode over text mode with 4-bit adapters: decoding speed, and bytes read for each token."""
    engine = Ours(checkpoint(work, "adapters", ADAPTERS, dtype, "microsoft"), clock)
    h = mx.array(np.random.default_rng(1).normal(size=(1, 1, ADAPTERS.hidden)), dtype=getattr(mx, dtype))
    read = {
        mode: PUBLISHED // BUILT * _layer_bytes(engine, mode) + outside["head_bytes"]
        for mode in (Mode.TEXT, Mode.VISION, Mode.SPEECH)
    }
    lines = []
    for mode in (Mode.VISION, Mode.SPEECH):

        def measured(mode: Mode) -> Callable[[], dict]:
            return lambda: {"seconds": float(np.median([engine.layer(h, mode) for _ in range(3)]))}

        routed, plain = paired(measured(mode), measured(Mode.TEXT), rounds)
        token = [[PUBLISHED * row["seconds"] + outside["rest_seconds"] for row in rows] for rows in (routed, plain)]
        ratio = interval([b / a for a, b in zip(*token, strict=True)])
        lines.append({
            "what": f"{mode} mode over text mode, 4-bit adapters", "figure": "decode",
            "ours": 1 / float(np.median(token[0])), "peer": 1 / float(np.median(token[1])), "ratio": ratio,
        })  # fmt: skip
        share = read[mode] / read[Mode.TEXT]
        lines.append({
            "what": f"{mode} mode over text mode, 4-bit adapters", "figure": "weight bytes read per token, MB",
            "ours": read[mode] / 1e6, "peer": read[Mode.TEXT] / 1e6, "ratio": (share, share, share),
        })  # fmt: skip
    return lines


def measure_batch(work: Path) -> list[dict]:
    """Decoder steps of a batch of 8 rows of all modes, over the steps of its longest row."""
    folder = work / "reduced"
    model, processor = load(write_random_checkpoint(folder))
    sound = (np.sin(np.arange(16_000) / 30).astype(np.float32), 16_000)
    pixels = np.arange(90 * 90 * 3, dtype=np.uint8).reshape(90, 90, 3)
    media = [{}, {"images": [pixels]}, {"audios": [sound]}, {"images": [pixels], "audios": [sound]}]
    requests = [Request("Tell me of the sea. " * (1 + row), **media[row % 4]) for row in range(8)]
    options = [GenerationOptions(temperature=1.5, seed=row, max_tokens=8 * (row + 1)) for row in range(8)]
    rows = [processor.row(request) for request in requests]
    sequences = [Sequence(row, each, processor.tokenizer) for row, each in zip(rows, options, strict=True)]
    batch = Batch(model)
    for sequence in sequences:
        batch.admit(sequence)
    while batch.active:
        batch.step()
    shutil.rmtree(folder)
    steps, longest = batch.steps - 1, max(len(each.tokens) for each in sequences) - 1  # the prefill gives the first
    return [{
        "what": "batch of 8 mixed rows over its longest row", "figure": "decoder steps",
        "ours": steps, "peer": longest, "ratio": (steps / longest,) * 3,
    }]  # fmt: skip


def _ids(count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, 250, count).tolist()


def _compared(what: str, found: tuple[list[dict], list[dict]], notes: dict[str, str]) -> list[dict]:
    lines = []
    for figure in found[0][0]:
        ours, peer = ([row[figure] for row in rows] for rows in found)
        ratio = interval([a / b for a, b in zip(ours, peer, strict=True)])
        named = f"{figure} ({notes[figure]})" if figure in notes else figure
        lines.append({
            "what": what, "figure": named,
            "ours": float(np.median(ours)), "peer": float(np.median(peer)), "ratio": ratio,
        })  # fmt: skip
    return lines


def table(lines: list[dict]) -> str:
    """Markdown."""
    rows = ["| what | figure | here | compared with | ratio | 95 % interval |", "|---|---|---|---|---|---|"]
    for line in lines:
        middle, low, high = line["ratio"]
        spread = "counted" if low == high else f"{low:.3f} to {high:.3f}"
        figures = f"{line['ours']:.4g} | {line['peer']:.4g} | {middle:.3f}"
        rows.append(f"| {line['what']} | {line['figure']} | {figures} | {spread} |")
    return "\n".join(rows)


PARTS = ("small", "full", "batch")


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints and results.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Repeatable; without it, all.")
@click.option("--rounds", default=9, show_default=True, help="Counted rounds; at full width two thirds of them.")
@click.option("--dtype", default="float32", show_default=True, help="float32 or bfloat16, of scales and activations.")
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help="cpu: CPU seconds.")
def main(work: Path, parts: tuple[str, ...], rounds: int, dtype: str, clock: str):
    """Measure generation beside mlx-lm's; full also measures the adapters."""
    work.mkdir(parents=True, exist_ok=True)
    lines = []
    for part in parts or PARTS:
        if part == "small":
            lines += measure_small(work, rounds, dtype, CLOCKS[clock])
        elif part == "full":
            found, outside = measure_full(work, max(2 * rounds // 3, 3), dtype, CLOCKS[clock])
            lines += found + measure_adapters(work, rounds, dtype, CLOCKS[clock], outside)
        else:
            lines += measure_batch(work)
        click.echo(f"{part}: done", err=True)
    where = machine()
    click.echo(f"{where}\n\n{table(lines)}\n\nTokens per second ({clock} clock) unless a figure says otherwise.")
    results = {"machine": where, "rounds": rounds, "dtype": dtype, "clock": clock, "lines": lines}
    (work / "generation.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
