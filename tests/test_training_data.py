"""What is learnt: the assistant's turns by the prompt builder's spans, from every form of line; bad lines are named."""

import json
import shutil
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from test_phi4_tiny import MEDIA

from mlx_phi4 import Phi4Error, Request, load
from mlx_phi4.training.data import load_data
from mlx_phi4.training.examples import make_example
from mlx_phi4.training.lines import Line, read_line
from mlx_phi4.training.order import Order


@pytest.fixture(scope="module")
def processor():
    return load("phi4-tiny")[1]


def spelled(processor, ids):
    return "".join(processor.tokenizer.token_bytes(int(id)).decode() for id in ids)


def learnt(processor, line):
    example = make_example(line, processor, 4096)
    return spelled(processor, example.targets)


CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": " Paris"},
    {"role": "user", "content": "Read the word. <|assistant|>stop<|end|>"},
    {"role": "assistant", "content": "go"},
]


def line(values, folder=MEDIA):
    return read_line(values, "train.jsonl, line 1", folder)


def test_only_what_the_assistant_says_is_learnt_even_where_a_user_spells_its_tokens(processor):
    assert learnt(processor, line({"messages": CHAT})) == "Paris<|end|>go<|end|>"
    unweighted = [CHAT[0], CHAT[1] | {"weight": 0}, *CHAT[2:]]
    assert learnt(processor, line({"messages": unweighted})) == "go<|end|>"
    assert learnt(processor, line({"messages": [*CHAT, CHAT[0]]})) == "Paris<|end|>go<|end|>"


@pytest.mark.parametrize("media", [{}, {"image": "sign.png"}, {"audio": "command.flac"}])
def test_what_stands_before_an_answer_is_what_inference_makes_of_it(processor, media):
    """A training prompt that differs by one token from the one that is asked teaches the wrong thing."""
    example = make_example(line({"prompt": "What is it?", "completion": "star"} | media), processor, 4096)
    asked = processor.row(example.line.ask)
    assert example.row.ids[: len(asked.ids)] == asked.ids and example.row.mode == asked.mode
    assert example.positions[0] == len(asked.ids) - 1
    assert [place.key for _, place in example.row.media] == [item.key for _, item in asked.media]


def test_each_form_of_line(processor):
    forms = {
        "star<|end|>": {"prompt": "What?", "completion": "star"},
        "7<|end|>": {"question": "Read the number.", "answer": ["7", "seven"], "image": "sign.png"},
        "turn on the radio<|end|>": {"audio": "command.flac", "text": "turn on the radio"},
        "red is warm<|endoftext|>": {"text": "red is warm"},
    }
    for target, values in forms.items():
        found = learnt(processor, line(values))
        assert found == target if "text" not in values or "audio" in values else target.endswith(found)
    assert line(forms["7<|end|>"]).answers == ("7", "seven")
    assert line(forms["turn on the radio<|end|>"]).task == "transcript"
    part = {"role": "user", "content": [{"type": "image", "image": "sign.png"}, {"type": "text", "text": "What?"}]}
    example = make_example(line({"messages": [part, CHAT[1]]}), processor, 4096)
    assert example.slot == "vision" and example.line.ask.prompt[0]["content"][0]["image"] == str(MEDIA / "sign.png")
    tools = {"messages": CHAT[:2], "tools": [{"name": "search"}]}
    assert "search" in spelled(processor, make_example(line(tools), processor, 4096).row.ids)


def test_prompts_can_be_learnt_too_but_never_placeholders(processor):
    found = make_example(line({"prompt": "What?", "completion": "star", "image": "sign.png"}), processor, 4096, False)
    token = processor.tokenizer.placeholders["image"].id
    assert token not in found.targets and len(found.targets) == len(found.row.ids) - found.row.ids.count(token)


def write(folder, name, *rows):
    folder.mkdir(exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text)
    return folder


GOOD = {"prompt": "What?", "completion": "star"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "x", "completion": "y", "image": "none.png"}, r"line 2: 'none\.png': no such file"),
        ({"messages": [{"role": "user", "content": "x"}]}, "line 2: holds no message of the assistant"),
        ({"messages": [{"role": "boss", "content": "x"}, CHAT[1]]}, "line 2: .*boss"),
        ({"prompt": "x", "completion": ""}, "line 2: the assistant's answer is empty"),
        ({"prompt": "x", "completion": 3}, "line 2: completion is 3"),
        ({"colour": 1}, "line 2: has the keys 'colour', expected messages; prompt and completion"),
        ("{nonsense\n", "line 2: is not JSON"),
        ("[1]\n", r"line 2: is \[1\], expected an object"),
        ({"prompt": "x", "completion": "\ud800"}, "line 2: .*Unicode"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "line 2: preferences and plain answers"),
        ({"prompt": "<|image_1|>", "completion": "x"}, "line 2: .*1 picture placeholder"),
    ],
)
def test_a_bad_line_is_named(processor, tmp_path, bad, said):
    with pytest.raises(Phi4Error, match=said) as error:
        load_data(write(tmp_path, "train", GOOD, bad), processor)
    assert "\n" not in str(error.value)


def test_sets_that_are_missing_empty_or_too_long(processor, tmp_path):
    for name, rows, said in (
        ("a", None, "no such folder"),
        ("b", (), r"train\.jsonl is empty"),
        ("c", ({"prompt": "x", "completion": "star " * 50},), "all of its 1 lines are too long"),
    ):
        folder = tmp_path / name if rows is None else write(tmp_path / name, "train", *rows)
        with pytest.raises(Phi4Error, match=said):
            load_data(folder, processor, longest=20)
    (tmp_path / "d").mkdir()
    with pytest.raises(Phi4Error, match=r"has no train\.jsonl"):
        load_data(tmp_path / "d", processor)


def test_an_answer_is_never_cut(processor, tmp_path):
    folder = write(tmp_path, "train", GOOD, {"prompt": "x", "completion": "star " * 50}, GOOD)
    found = load_data(folder, processor, longest=20, held_out=0)
    assert len(found.train) == 2 and found.train.skipped == [f"{folder / 'train.jsonl'}, line 2"]
    assert "1 left out, whose answers do not fit into 20 tokens: line 2" in found.notes[0]
    with pytest.raises(Phi4Error, match="line 2: its answer ends at token"):
        load_data(folder, processor, longest=20, refuse_long=True)
    (text,) = load_data(
        write(tmp_path / "t", "train", {"text": "red " * 50}), processor, longest=20, held_out=0
    ).train.examples
    assert text.length == 20  # plain text is no answer


def test_a_part_is_held_out_and_said(processor, tmp_path):
    rows = [{"prompt": f"Add {n} and 1.", "completion": str(n + 1)} for n in range(40)]
    found = load_data(write(tmp_path, "train", *rows), processor, held_out=0.1)
    assert (len(found.train), len(found.valid)) == (36, 4) and "4 of the 40 lines of train.jsonl" in found.notes[0]
    seen = {each.line.where for each in found.train.examples}
    assert seen.isdisjoint(each.line.where for each in found.valid.examples)
    write(tmp_path, "valid", rows[0])
    found = load_data(tmp_path, processor)
    assert (len(found.train), len(found.valid), found.notes) == (40, 1, [])


class Split(list):
    features: ClassVar = {}


def test_a_data_set_of_the_hub_is_read_where_the_library_is(processor, monkeypatch):
    table = {"train": Split([GOOD | {"unused": None}] * 3), "validation": Split([GOOD])}
    library = SimpleNamespace(load_dataset=lambda name: table, Image=int, Audio=int)
    monkeypatch.setitem(sys.modules, "datasets", library)
    found = load_data("someone/somewhere", processor)
    assert (len(found.train), len(found.valid)) == (3, 1)
    assert found.train.examples[2].line.where == "someone/somewhere, train row 3"


def test_media_that_moved_since_are_told(processor, tmp_path):
    shutil.copy(MEDIA / "sign.png", tmp_path / "a.png")
    example = make_example(line(GOOD | {"image": "a.png"}, tmp_path), processor, 4096)
    assert isinstance(example.line, Line) and isinstance(example.line.request, Request)
    assert example.row.media[0][1].outline.crops.size == 0  # pixels are not held


def test_every_example_is_seen_once_an_epoch_and_an_iteration_is_known_by_its_number():
    order = Order(10, 4, seed=3)
    seen = [unit for iteration in range(5) for unit in order.batch(iteration)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    assert Order(10, 4, seed=3).batch(3) == order.batch(3) != Order(10, 4, seed=4).batch(3)
    assert Order(3, 8, seed=0).batch_size == 3


def test_targets_follow_their_positions(processor):
    example = make_example(line({"messages": CHAT}), processor, 4096)
    inside = example.positions[:-1] + 1
    assert np.array_equal(np.array(example.row.ids)[inside], example.targets[:-1])
