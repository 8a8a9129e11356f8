"""Adapters at run time: any number of them in one batch, each row as it is alone, and the base never touched."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from adapter_samples import GOLDEN, logits, random_adapter, random_folder
from mlx.utils import tree_flatten
from samples import MODES, decoded, sequence_of, tokens_of
from tolerances import near

import mlx_phi4
from mlx_phi4 import Phi4Error, PromptCache, Request
from mlx_phi4.commands import benchmark, cache_prompt, chat, evaluate, transcribe
from mlx_phi4.commands import generate as generate_command
from mlx_phi4.decoder.adapters import LoRA, Route
from mlx_phi4.decoder.identity import identify
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.server.budget import Budget

RECORDING = Path(__file__).parents[1] / "examples" / "media" / "command.flac"


@pytest.fixture
def model(checkpoint):
    """A model of its own, to which a test may add what it likes, and its processor."""
    return mlx_phi4.load(checkpoint("microsoft"))


def add(model, *names, **options):
    for seed, name in enumerate(names):
        model.add_adapter(name, random_adapter(model.config, seed=seed, **options))


def request(adapter, text="Tell me of the sea."):
    return Request(text, adapter=adapter)


def loras(model, name):
    paths = (each.lora for each in model.modules() if hasattr(each, "lora"))
    return [lora[name] for lora in paths if name in lora]


# rows


def test_every_row_of_a_batch_gets_what_it_gets_alone(model):
    """Eight adapters, LoRA and DoRA, of several ranks and precisions, sums, and rows of every mode beside them."""
    net, processor = model
    add(net, "a", "b", "c")
    net.add_adapter("large", random_adapter(net.config, seed=4, rank=32, scale=1.3))
    net.add_adapter("packed", random_adapter(net.config, seed=5, rank=32), bits=4)
    net.add_adapter("eight", random_adapter(net.config, seed=6, rank=32), bits=8)
    net.add_adapter("dora", random_adapter(net.config, seed=7, dora=True))
    net.add_adapter("part", random_adapter(net.config, seed=8, linears=("layers.1.mlp",)))
    net.add_adapter("sum", "vision+a+part")
    asked = [request(name) for name in ("base", *net.adapters) for _ in range(2)][:18]
    asked += [MODES["vision"], MODES["speech"]]
    alone = [tokens_of(net, processor, each, max_tokens=4)[0] for each in asked]
    sequences = [sequence_of(processor, each, max_tokens=4) for each in asked]
    decoded(net, *sequences)
    assert [each.tokens for each in sequences] == alone
    assert len({tuple(tokens) for tokens in alone}) > 8  # they do differ


def test_rows_without_it_are_bit_equal_to_before(model):
    net, processor = model
    inputs = {name: processor.batch([MODES[name]]) for name in ("text", "vision", "speech")}
    before = {name: np.array(net(each)) for name, each in inputs.items()}
    digest = identify(net)
    add(net, "a", "b", dora=True)
    for name, each in inputs.items():
        assert np.array_equal(np.array(net(each)), before[name])
    both = np.array(net(processor.batch([MODES["text"], request("a"), request("b")])))
    assert np.array_equal(both[0], before["text"][0]) and not np.array_equal(both[1], both[0])
    net.remove_adapter("a")
    net.remove_adapter("b")
    assert identify(net) == digest and loras(net, "a") == []
    assert np.array_equal(np.array(net(processor.batch([MODES["speech"]]))), before["speech"])


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_factors_are_close_and_small(model, bits):
    net, _ = model
    adapter = random_adapter(net.config, rank=64)
    net.add_adapter("plain", adapter)
    net.add_adapter("packed", adapter, bits=bits)
    linear, x = net.model.layers[0].mlp.gate_up_proj, mx.random.normal((1, 9, 128), key=mx.random.key(0))
    base, plain, packed = (linear(x, Route.of([(name, 9)])) for name in (None, "plain", "packed"))
    assert mx.linalg.norm(packed - plain) < (0.2 if bits == 4 else 0.02) * mx.linalg.norm(plain - base)
    assert net.adapters.nbytes("packed") < net.adapters.nbytes("plain") * (bits + 3) / 32
    assert isinstance(loras(net, "packed")[0].up, nn.QuantizedLinear)


def test_a_factor_that_no_group_divides_stays_as_it_is(model):
    """As in the converter: 16 ranks share no scale of 32."""
    net, _ = model
    net.add_adapter("packed", random_adapter(net.config, rank=16), bits=8)
    lora = loras(net, "packed")[0]
    assert isinstance(lora.down, nn.QuantizedLinear) and not isinstance(lora.up, nn.QuantizedLinear)


@pytest.mark.parametrize(("scale", "left"), [(0.5, 1.0), (2.0, 1.0), (1.7, 1.7)])
def test_scales_that_are_powers_of_two_are_folded(model, scale, left):
    net, _ = model
    adapter = random_adapter(net.config, scale=scale)
    net.add_adapter("mine", adapter)
    assert {lora._scale for lora in loras(net, "mine")} == {left}
    assert net.adapters.get_adapter("mine").digest == adapter.digest  # and can be had back


def test_an_adapter_takes_the_models_own_precision(checkpoint):
    net, _ = mlx_phi4.load(checkpoint("text"), dtype="bfloat16")
    for dora in (False, True):
        net.add_adapter(f"mine{dora:d}", random_adapter(net.config, dora=dora))
        route = Route.of([(f"mine{dora:d}", 3)])
        assert net.model.layers[0].mlp.gate_up_proj(mx.ones((1, 3, 128), mx.bfloat16), route).dtype == mx.bfloat16


# sums


def test_a_sum_adds_what_its_parts_add(model, tmp_path):
    net, _ = model
    add(net, "a", scale=1.7)
    net.add_adapter("both", "vision+a")
    linear, x = net.model.layers[0].self_attn.qkv_proj, mx.random.normal((1, 4, 128), key=mx.random.key(0))
    base, *parts = (linear(x, Route.of([(name, 4)])) for name in (None, "vision", "a"))
    both = linear(x, Route.of([("both", 4)], net.adapters.composed))
    assert mx.abs(both - (parts[0] + parts[1] - base)).max() < near(1e-4)
    assert net.adapters.nbytes("both") == 0


def test_a_sum_can_be_taken_elsewhere_as_one_adapter(model, tmp_path):
    from mlx_phi4.checkpoint.adapter_files import write_adapter

    net, _ = model
    add(net, "a", linears=("self_attn",))
    net.add_adapter("both", "vision+a")
    whole = net.adapters.get_adapter("both")
    assert {part.rank for path, part in whole.linears.items() if "mlp" in path} == {16}
    assert {part.rank for path, part in whole.linears.items() if "self_attn" in path} == {20}
    net.add_adapter("again", write_adapter(tmp_path / "both", whole, net.config.decoder))
    assert np.abs(logits(net, "again") - logits(net, "both")).max() < near(1e-4)


def test_sums_that_cannot_be_are_refused(model):
    net, _ = model
    net.add_adapter("dora", random_adapter(net.config, dora=True))
    for parts, message in (
        ("vision+nope", "adapter name is 'nope', this model has"),
        ("vision+vision", "each once"),
        ("vision+dora", "'dora' is a DoRA"),
    ):
        with pytest.raises(Phi4Error, match=message):
            net.add_adapter("sum", parts)
    net.add_adapter("a", random_adapter(net.config))
    net.add_adapter("sum", "vision+a")
    with pytest.raises(Phi4Error, match="part of sum; remove sum first"):
        net.remove_adapter("a")


# names


@pytest.mark.parametrize("name", ["", "base", "a:b", "a+b", "a=b", "a/b", "a b", "a.b", "-a", "x" * 65, "é"])
def test_names_that_cannot_be_are_refused(model, name):
    with pytest.raises(Phi4Error, match="adapter name is"):
        model[0].add_adapter(name, random_adapter(model[0].config))


@pytest.mark.parametrize("name", ["vision", "speech", "mine"])
def test_a_name_that_is_taken_is_refused(model, name):
    net, _ = model
    add(net, "mine")
    with pytest.raises(Phi4Error, match=f"there is an adapter '{name}' already"):
        net.add_adapter(name, random_adapter(net.config))


def test_an_unknown_adapter_is_refused_where_it_is_asked_for(model):
    net, processor = model
    add(net, "mine")
    with pytest.raises(Phi4Error, match="adapter is 'yours', this model has base, mine, speech, vision"):
        mlx_phi4.generate(net, processor, "Hello", adapter="yours")
    for name, message in (("yours", "adapter name is 'yours', this model has"), ("vision", "is the model's own")):
        with pytest.raises(Phi4Error, match=message):
            net.remove_adapter(name)


# in use


def test_an_adapter_in_use_stays(model):
    net, processor = model
    add(net, "mine")
    batch, row = Batch(net), sequence_of(processor, request("mine"), max_tokens=4)
    batch.admit(row)
    batch.step()
    with pytest.raises(Phi4Error, match="'mine' is in use by 1 row; remove it when they ended"):
        net.remove_adapter("mine")
    batch.preempt(row)
    with pytest.raises(Phi4Error, match="in use"):
        net.remove_adapter("mine")
    batch.admit(row)
    while batch.active:
        batch.step()
    net.remove_adapter("mine")
    with pytest.raises(Phi4Error, match="no adapter 'mine'"):
        batch.admit(Sequence(row.row, GenerationOptions(max_tokens=2)))


def test_a_cache_of_one_adapter_is_no_use_to_another_of_its_name(model, tmp_path):
    """Keys and values depend on the adapter's numbers, which its name does not tell."""
    net, processor = model
    add(net, "mine")
    cache = PromptCache()
    options = {"max_tokens": 3, "adapter": "mine"}
    first = list(mlx_phi4.stream_generate(net, processor, "Hello", prompt_cache=cache, **options))
    again = list(mlx_phi4.stream_generate(net, processor, "Hello", prompt_cache=cache, **options))
    assert again[-1].reused_tokens and [each.token for each in again] == [each.token for each in first]
    cache.save(tmp_path / "kept.safetensors", net)
    assert PromptCache.load(tmp_path / "kept.safetensors", net).state.digest == cache.state.digest
    net.remove_adapter("mine")
    with pytest.raises(Phi4Error, match="made with another model, which has an adapter 'mine'"):
        PromptCache.load(tmp_path / "kept.safetensors", net)
    net.add_adapter("mine", random_adapter(net.config, seed=9))
    with pytest.raises(Phi4Error, match="made with another model or another adapter 'mine'"):
        PromptCache.load(tmp_path / "kept.safetensors", net)
    other = list(mlx_phi4.stream_generate(net, processor, "Hello", prompt_cache=cache, **options))
    assert not other[-1].reused_tokens
    assert [each.token for each in other] == tokens_of(net, processor, request("mine", "Hello"), max_tokens=3)[0]


def test_the_servers_budget_counts_adapters(model):
    net, _ = model
    before = Budget.of(net, 1 << 30).total
    add(net, "a", "b")
    assert before - Budget.of(net, 1 << 30).total == net.adapters.nbytes("a") + net.adapters.nbytes("b") > 0


# to train


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_can_be_trained_where_it_is(model, dora):
    """Nothing is folded or cast: what is trained is what is stored, and gives what is served."""
    net, _ = model
    adapter = random_adapter(net.config, dora=dora)
    net.add_adapter("mine", adapter, train=True)
    assert net.adapters.get_adapter("mine").digest == adapter.digest
    net.freeze()
    for lora in loras(net, "mine"):
        lora.unfreeze()
    names = {name.rpartition(".lora.mine.")[2] for name, _ in tree_flatten(net.trainable_parameters())}
    assert names == {"down.weight", "up.weight"} | ({"magnitude"} if dora else set())
    ids = np.arange(20, 40)

    def loss(net):
        inputs = mlx_phi4.Inputs(mx.array(ids)[None], (0,), ("text",), adapters=("mine",))
        return nn.losses.cross_entropy(net(inputs)[0, :-1], mx.array(ids[1:]), reduction="mean")

    value, gradients = nn.value_and_grad(net, loss)(net)
    assert all(mx.abs(each).max() > 0 for _, each in tree_flatten(gradients))
    net.add_adapter("served", net.adapters.get_adapter("mine"))
    assert np.abs(logits(net, "served") - logits(net, "mine")).max() < near(1e-4)
    assert value > 0


def test_adding_draws_no_random_numbers(model):
    """Nothing that another could notice: ``mx.random`` belongs to the caller."""
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(2,)).tolist()
    mx.random.seed(3)
    add(model[0], "mine")
    assert mx.random.uniform(shape=(2,)).tolist() == expected
    assert isinstance(loras(model[0], "mine")[0], LoRA)


# loading and the command


def test_load_takes_adapters_by_name(checkpoint, tmp_path):
    folder = random_folder(tmp_path / "a b", mlx_phi4.load(checkpoint("text"))[0].config)
    net, processor = mlx_phi4.load(
        checkpoint("text"), adapters={"sum": "mine+plain", "mine": folder, "plain": GOLDEN / "plain"}
    )
    assert list(net.adapters) == ["mine", "plain", "sum"] and "mine" in processor.adapters
    with pytest.raises(Phi4Error, match="adapters is 3, expected a dictionary"):
        mlx_phi4.load(checkpoint("text"), adapters=3)
    with pytest.raises(Phi4Error, match="no such folder"):
        mlx_phi4.load("a/model-that-is-never-asked-for", adapters={"mine": tmp_path / "none"})


def test_the_command_uses_an_adapter(checkpoint, run_command, tmp_path):
    text = checkpoint("text")
    folder = random_folder(tmp_path / "mine", mlx_phi4.load(text)[0].config)
    asked = ("--model", text, "-p", "Hello", "-m", "4")

    def run(*options):
        return run_command(generate_command.command, *asked, *options)

    net, processor = mlx_phi4.load(text, adapters={"mine": folder})
    answers = {
        name: mlx_phi4.generate(net, processor, "Hello", adapter=name, max_tokens=4) for name in ("mine", "base")
    }
    assert answers["mine"] != answers["base"]
    one = ("--adapter", f"mine={folder}")
    code, out, _ = run(*one, "--use-adapter", "mine", "--quiet")
    assert (code, out) == (0, answers["mine"] + "\n")
    code, out, said = run(*one)
    assert (code, out) == (0, answers["base"] + "\n") and "mine: loaded, but used by nothing here" in said
    for options, message in (
        ((*one, "--use-adapter", "yours"), "adapter is 'yours', this model has base, mine"),
        (("--use-adapter", "mine"), "adapter is 'mine', this model has base"),
        (("--adapter", "mine"), "'mine' is not NAME=FOLDER"),
        ((*one, *one), "'mine' is given twice"),
        (("--adapter", f"base={folder}"), "adapter name is 'base'"),
        (("--adapter", f"a={tmp_path / 'none'}"), "no such folder"),
        (("--adapter-path", folder), "--adapter NAME=FOLDER loads one"),
    ):
        code, out, said = run(*options)
        assert code == 2 and out == "" and message in said and said.count("\n") == 1, said


QUESTION = '{"question": "Tell me of the sea.", "answer": "x", "id": "q"}'


def test_every_command_uses_an_adapter(checkpoint, run_command, tmp_path):
    """What each gives with one is not what it gives without, and an unknown one is refused in a line."""
    text = checkpoint("text")
    folder = random_folder(tmp_path / "mine", mlx_phi4.load(text)[0].config)
    (tmp_path / "questions.jsonl").write_text(QUESTION + "\n")
    cases = {
        chat: (("--quiet", "-m", "4"), b"Hello\n"),
        evaluate: (("pictures", tmp_path / "questions.jsonl", "--each", "-m", "4"), b""),
    }
    model = ("--model", text)
    for command, (options, stdin) in cases.items():
        group, options = (options[:2], options[2:]) if command is evaluate else ((), options)

        def run(*more, command=command, group=group, options=options, stdin=stdin):
            return run_command(command.command, *group, *model, *options, *more, stdin=stdin)

        one = ("--adapter", f"mine={folder}", "--use-adapter")
        (code, out, _), (_, base, _) = run(*one, "mine"), run(*one, "base")
        assert code == 0 and out.splitlines()[0] != base.splitlines()[0]
        code, _, said = run(*one, "yours")
        assert code == 2 and "adapter is 'yours', this model has base, mine" in said


def test_the_benchmark_counts_an_adapter(checkpoint, run_command, tmp_path):
    text = checkpoint("text")
    model, _ = mlx_phi4.load(text)
    folder = random_folder(tmp_path / "mine", model.config)
    asked = ("--model", text, "--mode", "text", "--prompt-tokens", "24", "--generation-tokens", "2", "--repeat", "1")
    code, out, _ = run_command(
        benchmark.command, *asked, "--json", "--quiet", "--adapter", f"mine={folder}", "--use-adapter", "mine"
    )
    model.add_adapter("mine", folder)
    assert code == 0 and json.loads(out)["results"][0]["adapter_bytes"] == model.adapters.nbytes("mine")


def test_a_prompt_is_cached_by_its_adapter(checkpoint, run_command, tmp_path):
    text = checkpoint("text")
    config = mlx_phi4.load(text)[0].config
    folders = [random_folder(tmp_path / name, config, seed=seed) for seed, name in enumerate(("a", "b"))]
    use = [("--adapter", f"mine={folder}", "--use-adapter", "mine") for folder in folders]
    file = ("--prompt-cache-file", tmp_path / "kept.safetensors")
    code, _, said = run_command(cache_prompt.command, "--model", text, "-p", "Tell me of", *file, *use[0])
    assert code == 0 and "tokens for the mine adapter" in said
    asked = ("--model", text, "-p", "Tell me of the sea.", "-m", "3", *file)
    plain = run_command(generate_command.command, *asked[:-2], *use[0], "--quiet")
    assert run_command(generate_command.command, *asked, *use[0], "--quiet")[:2] == plain[:2]
    code, _, said = run_command(generate_command.command, *asked, *use[1])
    assert code == 2 and "was made with another model or another adapter 'mine'" in said
    code, _, said = run_command(generate_command.command, *asked)
    assert code == 2 and "made with another model, which has an adapter 'mine'" in said


def test_a_transcript_is_made_again_by_another_adapter(checkpoint, run_command, tmp_path):
    config = mlx_phi4.load(checkpoint())[0].config
    folders = [random_folder(tmp_path / name, config, seed=seed, scale=0.1) for seed, name in enumerate(("a", "b"))]

    def run(*options):
        asked = (RECORDING, "--model", checkpoint(), "-o", tmp_path / "out", "-m", "4", "--temperatures", "0")
        code, _, said = run_command(transcribe.command, *asked, *options)
        assert code == 0
        return said

    use = [("--adapter", f"mine={folder}", "--use-adapter", "mine") for folder in folders]
    assert "written to" in run(*use[0]) and "done before" in run(*use[0])
    assert "which another job had made" in run(*use[1]) and "which another job had made" in run()
    assert "done before" in run("--adapter", f"mine={folders[0]}")  # loaded, not used
