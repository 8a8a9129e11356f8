"""Kinds of what people ask: requests, lines of training data, adapters in folders."""

import json
import shutil
from functools import cache
from pathlib import Path
from random import Random

import mlx.core as mx
import numpy as np
from adapter_samples import random_folder
from driver import Kind
from made_up import MEDIA, lines, requests
from mutations import spoiled_bytes, spoiled_json, spoiled_safetensors

import mlx_phi4
from mlx_phi4 import Request
from mlx_phi4.training.data import load_data

PART = b"\n--part--\n"  # between a file's name and its content
TURNS = ("<|user|>", "<|assistant|>", "<|end|>")


@cache
def tiny():
    return mlx_phi4.load("phi4-tiny")


def read_a_request(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted is ids that the model has, each medium in its place, and no turn but those that were said."""
    _, processor = tiny()
    given = json.loads(content)
    if not isinstance(given, dict) or not all(isinstance(name, str) and name.isidentifier() for name in given):
        return  # Python itself refuses these
    try:
        request = Request(**given)
    except TypeError as error:
        assert "unknown option" in str(error) or "unexpected keyword" in str(error), error
        return
    row = processor.row(request)
    assert all(0 <= id < processor.config.decoder.vocab_size for id in row.ids)
    special = processor.tokenizer.special
    for kind, token in processor.tokenizer.placeholders.items():
        held = sum(item.tokens for start, item in row.media if row.ids[start] == token.id)
        assert row.ids.count(token.id) == held, f"{kind}: {held} places for {row.ids.count(token.id)} tokens"
    if isinstance(request.prompt, str) and not request.raw:
        counts = [row.ids.count(special[turn].id) for turn in TURNS]
        assert counts == [1, 1, 1 + bool(request.system is not None or request.tools)], counts


def training_lines(folder: Path) -> list[bytes]:
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "star", "weight": 1}]
    part = [{"type": "image", "image": "sign.png"}, {"type": "text", "text": "What?"}]
    found = (
        {"messages": chat, "tools": [{"name": "search", "description": "x", "parameters": {"q": {"type": "str"}}}]},
        {"messages": [{"role": "user", "content": part}, chat[1]]},
        {"prompt": "What?", "completion": "star", "image": "sign.png"},
        {"question": "Read.", "answer": ["7", "seven"], "images": ["sign.png"]},
        {"audio": "command.flac", "text": "turn on the radio", "language": "en"},
        {"text": "red is warm"},
        {"prompt": "x", "chosen": "a", "rejected": "b"},
        {"prompt": chat[:1], "chosen": [chat[1]], "rejected": [chat[1]], "adapter": "mine"},
    )
    return [json.dumps(each).encode() for each in found]


def read_lines(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted has targets at places that are there."""
    _, processor = tiny()
    for name in ("sign.png", "command.flac"):
        (scratch / name).symlink_to(MEDIA / name)
    (scratch / "train.jsonl").write_bytes(content)
    data = load_data(scratch, processor, wanted=("train",), held_out=0.0)
    for example in data.train.examples:
        assert len(example.positions) == len(example.targets) > 0
        assert max(example.positions) < len(example.row.ids)


def spoiled_lines(random: Random, content: bytes) -> bytes:
    made = spoiled_json(random, content)
    return spoiled_bytes(random, made) if random.random() < 0.1 else made


@cache
def adapters(folder: Path) -> list[bytes]:
    """Each file of folders in peft's and mlx-lm's form, after its folder and name."""
    config, found = text_model(folder)[1].config, []
    for form in ("peft", "mlx-lm"):
        for dora in (False, True):
            place = folder / f"adapter-{form}{'-dora' * dora}"
            if not place.exists():
                random_folder(place, config, form=form, dora=dora)
            found += [
                f"{place.name}/{each.name}".encode() + PART + each.read_bytes() for each in sorted(place.iterdir())
            ]
    return [each for each in found if each.partition(PART)[0].endswith((b".json", b".safetensors"))]


@cache
def text_model(folder: Path):
    return mlx_phi4.load(folder / "text")


def spoiled_adapter(random: Random, content: bytes) -> bytes:
    place, _, content = content.partition(PART)
    spoil = spoiled_json if place.endswith(b".json") else spoiled_safetensors
    return place + PART + spoil(random, content)


def read_an_adapter(content: bytes, scratch: Path, folder: Path) -> None:
    """What is accepted answers, and leaves the model as it was."""
    place, _, content = content.partition(PART)
    name, _, file = place.decode().partition("/")
    adapters(folder)
    shutil.copytree(folder / name, scratch / "mine")
    (scratch / "mine" / file).write_bytes(content)
    model, processor = text_model(folder)
    inputs = processor("Tell me of the sea.")
    before = np.array(model(inputs))
    try:
        model.add_adapter("mine", scratch / "mine")
        mx.eval(model(processor("Tell me of the sea.", adapter="mine")))
    finally:
        if "mine" in model.adapters:
            model.remove_adapter("mine")
        assert (np.array(model(inputs)) == before).all()


ASKED_KINDS = [
    Kind("request", 200, read_a_request, strategy=requests),
    # hundreds of pictures that the context has room for take their time
    Kind("line", 150, read_lines, training_lines, spoiled_lines, seconds=25, megabytes=2000),
    Kind("made-up-line", 100, read_lines, strategy=lines, seconds=25),
    Kind("adapter", 150, read_an_adapter, adapters, spoiled_adapter),
]
