"""Answers of phi4-tiny in MLX to the held-out items: accuracy, interference, agreement with the reference.

    python examples/phi4_tiny/held_out.py --out ITEMS                  # needs the fonts and espeak-ng
    python examples/phi4_tiny/evaluate.py --items ITEMS                # this package and its extra eval
    python examples/phi4_tiny/evaluate.py --items ITEMS --reference ANSWERS   # of evaluate_reference.py

``--bits 4`` converts the base to 4 bits first and computes with the rounded weights (widened again: the CPU
backend is slow at packed ones). ``--adapters`` adds rows with another adapter, or none, in the right one's place.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import jiwer

from mlx_phi4 import MediaCache, Mode, Request, batch_generate, convert, load
from mlx_phi4.decoder.adapters import RoutedLinear
from mlx_phi4.modalities import BASE, adapter_of

MODES = {"text": Mode.TEXT, "pictures": Mode.VISION, "speech": Mode.SPEECH, "joint": Mode.VISION_SPEECH}
ADAPTERS = {"none": BASE, "vision": "vision", "speech": "speech"}
BATCH, MOST = 8, 40  # requests at once, tokens of an answer


def read_items(folder, abilities, count):
    """ability -> its first ``count`` items, as ``held_out.py`` wrote them."""
    found = defaultdict(list)
    for line in (Path(folder) / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        if item["ability"] in abilities and item["index"] < count:
            found[item["ability"]].append(item)
    return found


def answers(model, processor, folder, items, cache, adapter=None):
    """(text, token ids without the end) of each item, greedily, with its mode's adapter or another one."""
    found = []
    for start in range(0, len(items), BATCH):
        requests = [
            Request(
                item["prompt"],
                *([str(Path(folder) / item[kind])] if item[kind] else None for kind in ("picture", "audio")),
                adapter=adapter,
            )
            for item in items[start : start + BATCH]
        ]
        for response in batch_generate(model, processor, requests, max_tokens=MOST, media_cache=cache):
            ended = response.finish_reason == "stop"
            found.append((response.text, response.tokens[:-1] if ended else response.tokens))
    return found


def score(rows, items):
    """Exact share and word error rate."""
    found, expected = [text for text, _ in rows], [item["answer"] for item in items]
    exact = sum(a == b for a, b in zip(found, expected, strict=True)) / len(items)
    return {"exact": exact, "wer": jiwer.wer(expected, found)}


def same_without_adapters(model, processor, folder, items):
    """Share of text items with the same tokens once all adapters are gone; they do not come back."""
    before = answers(model, processor, folder, items, None)
    for module in model.modules():
        if isinstance(module, RoutedLinear):
            module.lora = {}
    after = answers(model, processor, folder, items, None)
    return sum(a == b for a, b in zip(before, after, strict=True)) / len(items)


def model_in_bits(name, bits, dtype):
    """(model, processor), its base rounded to ``bits`` if that is not 16."""
    if bits == 16:
        return load(name, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        packed, wide = Path(folder) / "packed", Path(folder) / "wide"
        convert(name, packed, q_bits=bits, adapter_bits=16, encoder_bits=16, quiet=True)
        convert(packed, wide, dequantize=True, dtype=dtype, quiet=True)
        return load(wide, lazy=False)


def evaluate(options):
    """Print a line per ability and adapter; returns the answers as rows for JSON lines."""
    model, processor = model_in_bits(options.model, options.bits, options.dtype)
    cache, lines = MediaCache(1 << 32), []
    reference = {}
    if options.reference:
        rows = map(json.loads, Path(options.reference).read_text().splitlines())
        reference = {(row["ability"], row["index"]): row["ids"] for row in rows}
    every = read_items(options.items, options.abilities, options.count)
    for ability, items in every.items():
        adapter = adapter_of(MODES[ability]) or BASE
        for name in ("right", *options.adapters):
            chosen = adapter if name == "right" else ADAPTERS[name]
            if name != "right" and chosen == adapter:
                continue
            rows = answers(model, processor, options.items, items, cache, chosen)
            result = score(rows, items)
            line = f"{ability:9} {name:7} exact {result['exact']:.1%}  word errors {result['wer']:.1%}  of {len(items)}"
            if reference and name == "right":
                same = [ids == reference[ability, item["index"]] for (_, ids), item in zip(rows, items, strict=True)]
                line += f"  as the reference {sum(same) / len(same):.1%}"
            print(line, flush=True)
            lines += [
                {"ability": ability, "index": item["index"], "adapter": name, "answer": text, "ids": ids,
                 "expected": item["answer"]}
                for (text, ids), item in zip(rows, items, strict=True)
            ]  # fmt: skip
    if "text" in every:
        same = same_without_adapters(model, processor, options.items, every["text"])
        print(f"text: the same tokens with no adapter loaded: {same:.1%}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", required=True, help="folder that held_out.py wrote")
    parser.add_argument("--model", default="phi4-tiny")
    parser.add_argument("--bits", type=int, default=16, help="of the base; 16: as it is")
    parser.add_argument("--dtype", default="float32", help="float32, or bfloat16 as it is shipped")
    parser.add_argument("--adapters", nargs="+", default=[], choices=list(ADAPTERS))
    parser.add_argument("--abilities", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--reference", help="JSON lines of evaluate_reference.py")
    parser.add_argument("--out", help="JSON lines to write")
    options = parser.parse_args()
    lines = evaluate(options)
    if options.out:
        Path(options.out).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
