"""mlx_phi4.lora as people run it: twenty words learnt on a 4-bit base, YAML files, and one line for what is wrong."""

import json

import pytest

from mlx_phi4 import Request, batch_generate, convert, load
from mlx_phi4.commands.lora import command
from mlx_phi4.training import run

WORDS = (
    *("stop", "open", "exit", "sale", "bread", "tea", "coffee", "fish", "taxi", "bus"),
    *("hotel", "bank", "park", "zoo", "door", "window", "radio", "phone", "music", "alarm"),
)
COLORS = ("red", "orange", "yellow", "green", "blue")
SEEN = ("What color is a {}?", "Name the color of {}.", "Which color is {}?", "Tell me the color of the {}.")
UNSEEN = "What is the color of a {}?"


def color(word):
    return COLORS[7 * WORDS.index(word) % 5]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_PHI4_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def words(tmp_path):
    lines = [{"prompt": form.format(word), "completion": color(word)} for word in WORDS for form in SEEN]
    (tmp_path / "data").mkdir()
    for name, some in (("train", lines), ("test", lines[:12])):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in some))
    return tmp_path / "data"


def share(model, processor, form, adapter):
    asked = [Request(form.format(word), adapter=adapter) for word in WORDS]
    answers = batch_generate(model, processor, asked, max_tokens=6)
    return sum(answer.text == color(word) for answer, word in zip(answers, WORDS, strict=True)) / len(WORDS)


def test_twenty_words_are_learnt_on_four_bits_and_serve_beside_the_rest(run_command, words, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "mine"
    convert("phi4-tiny", base)
    code, out, err = run_command(
        command, "--train", "--test", "--model", base, "--data", words, "--adapter-path", folder,
        "--iters", 90, "--batch-size", 8, "--learning-rate", 1e-3,
    )  # fmt: skip
    assert code == 0 and out.startswith("test: loss ") and "right answers 100.0 %" in out
    assert "4 of the 80 lines of train.jsonl are held out" in err
    assert "tokens a second" in err and "peak memory" in err and "logits before and after, to the bit: text " in err
    model, processor = load(base, adapters={"words": folder})
    assert share(model, processor, SEEN[0], "base") <= 0.3
    assert min(share(model, processor, form, "words") for form in SEEN) >= 0.95
    assert share(model, processor, UNSEEN, "words") >= 0.8
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")
    figures = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {"train_loss", "tokens_per_second", "peak_memory_gb"} <= figures[1].keys()


def test_a_dry_run_tells_what_it_would_take_and_writes_nothing(run_command, words, tmp_path):
    code, out, _ = run_command(
        command, "--dry-run", "--model", "phi4-tiny", "--data", words, "--adapter-path", tmp_path / "mine"
    )
    assert code == 0 and out.startswith("peak memory about ") and "tokens in the largest batch" in out
    assert not (tmp_path / "mine").exists()


def test_a_yaml_file_as_mlx_lm_has_it(run_command, words, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "mode_digests", lambda model, processor: {"text": "not computed"})
    file = tmp_path / "lora.yaml"
    file.write_text(
        "model: phi4-tiny\ntrain: true\niters: 3\nlearning_rate: 1e-4\noptimizer: adamw\nplot: false\n"
        "lora_parameters: {rank: 4, scale: 20.0, dropout: 0.0, keys: [self_attn.qkv_proj]}\n"
        "optimizer_config: {adamw: {weight_decay: 0.1}}\n"
        "lr_schedule: {name: cosine_decay, warmup: 1, arguments: [1e-3, 3]}\n"
    )
    code, _, err = run_command(command, "-c", file, "--data", words, "--adapter-path", tmp_path / "mine", "--iters", 2)
    assert code == 0 and "iteration 2 of 2" in err  # the command line goes first
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 80, ["qkv_proj"])
    for text, said in (
        ("colour: red", "no option 'colour'"),
        ("- 1", "holds list, expected names and values"),
        ("a: [", "is not YAML"),
        ("lora_parameters: {dropout: 0.1}", "dropout is 0.1, only 0.0 is supported"),
        ("lora_parameters: {colour: 1}", "no 'colour' in lora_parameters"),
        ("lr_schedule: {name: nonsense, arguments: [1]}", "no schedule of mlx_lm's"),
        ("rank: many", "rank is 'many', expected a whole number"),
        ("test: 'no'", "test is 'no', expected true or false"),  # a text is true, whatever it says
    ):
        file.write_text(f"{text}\n")
        code, out, err = run_command(command, "-c", file, "--train", "--model", "phi4-tiny", "--data", words,
                                     "--adapter-path", tmp_path / "other")  # fmt: skip
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
        assert not (tmp_path / "other" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--train, --test or --dry-run says what"),
        (["--train"], "Missing option '--data'"),
        (["--train", "--data", "none"], "none: no such folder"),
        (["--train", "--data", "{data}", "--tune", "smell"], "tune names 'smell', for which there is no example"),
        (["--train", "--data", "{data}", "--fine-tune-type", "full"], "expected lora or dora"),
        (["--train", "--data", "{data}", "--scale", "2", "--alpha", "4"], "scale does not go together with alpha"),
        (["--train", "--data", "{data}", "--num-layers", "99"], "this model has 4"),
        (["--train", "--data", "{data}", "--resume", "--overwrite"], "contradict each other"),
        (["--train", "--data", "{data}", "--resume"], "holds no checkpoint to go on from"),
        (["--train", "--data", "{data}", "--report-to", "paper"], "expected"),
        (["--train", "--data", "{data}", "--resume-adapter-file", "none"], "no such folder"),
        (["--test", "--data", "{data}"], "holds no adapter"),
        (["--train", "--data", "{data}", "--config", "none.yaml"], "is missing"),
    ],
)
def test_what_is_wrong_is_one_line(run_command, words, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    given = [str(words) if each == "{data}" else each for each in arguments]
    code, out, err = run_command(command, *given, "--model", "phi4-tiny", "--adapter-path", tmp_path / "a" / "b")
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    assert not list(tmp_path.glob("a/b/*.json"))
