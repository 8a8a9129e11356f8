"""Learning itself: packed rows as inference has them, sums that add up, runs that go on to the bit."""

import json
import signal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from samples import MODES, PICTURE, SOUND

import mlx_phi4
from mlx_phi4 import Phi4Error, Request, batch_generate, train_adapter
from mlx_phi4 import test_adapter as measure_adapter
from mlx_phi4.checkpoint.adapter_files import read_adapter
from mlx_phi4.checkpoint.dense import make_dense
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint
from mlx_phi4.training import checkpoints, loss, run
from mlx_phi4.training.digest import mode_digests
from mlx_phi4.training.examples import make_example
from mlx_phi4.training.features import Media
from mlx_phi4.training.lines import Line
from mlx_phi4.training.packing import hidden_states, make_pack
from mlx_phi4.training.parts import LoraOptions, make_parts
from mlx_phi4.training.slots import Chosen, routed
from mlx_phi4.training.step import Learner, Sums, Updater
from mlx_phi4.training.watch import Watch, guessing_loss

SLOTS = ("text", "vision", "speech")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MLX_PHI4_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Digests of all modes take a second of each run; one test has them."""
    if "every_mode" not in request.node.name:
        monkeypatch.setattr(run, "mode_digests", lambda model, processor: {"text": "not computed"})


def conversation(request, answer):
    asked = request.prompt if isinstance(request.prompt, list) else [{"role": "user", "content": request.prompt}]
    media = {"image": request.images or [], "audio": request.audios or []}
    whole = Request([*asked, {"role": "assistant", "content": answer}], media=media)
    return Line("a test", whole, ask=Request(asked, media=media), answers=(answer,))


class Bench:
    """A reduced model with an adapter for each slot, its learner, and an example of each mode."""

    def __init__(self, folder, options=None, modules=(), slots=SLOTS, checkpoint=False):
        self.model, self.processor = mlx_phi4.load(folder)
        self.parts = make_parts(self.model, dict.fromkeys(slots), modules, options or LoraOptions(rank=4), 0)
        self.learner = Learner(
            self.model, Media(self.model, self.processor, modules), self.parts, checkpoint=checkpoint
        )
        lines = [conversation(request, f"It is {mode}.") for mode, request in MODES.items()]
        examples = [make_example(line, self.processor, 4096) for line in lines]
        self.examples = routed(examples, self.model, Chosen(dict.fromkeys(slots), tuple(modules)))
        # adapters that do something: zeros would hide a wrong route
        self.parameters = {
            name: mx.random.normal(array.shape, key=mx.random.key(number)) * 0.05
            for number, (name, array) in enumerate(self.parts.parameters(self.model).items())
        }


@pytest.fixture(scope="module")
def bench(checkpoint):
    return Bench(checkpoint())


def close(ours, theirs, within=1e-5):
    scale = max(float(mx.abs(each).max()) for each in theirs.values())
    assert ours.keys() == theirs.keys()
    return all(float(mx.abs(ours[name] - theirs[name]).max()) <= within * scale for name in ours)


def test_packed_rows_of_four_modes_have_the_logits_that_inference_gives_each_alone(bench):
    bench.learner.losses(bench.parameters, bench.examples)  # puts the parameters in place
    pack = make_pack(bench.examples)
    assert pack.tokens == sum(each.length for each in bench.examples)  # not one token of padding
    media = [bench.learner.media.embedded(e, bench.learner.media.gathered(e)) for e in pack.examples]
    packed = bench.model.logits(hidden_states(bench.model, pack, media)[None])[0]
    for number, example in enumerate(pack.examples):
        row, _ = bench.processor.conversation(example.line.request)
        alone = bench.processor.batch([Request("x")])
        alone = type(alone)(
            mx.array([example.row.ids]), (0,), (row.mode,),
            tuple(mlx_phi4.inputs.processor.Media(item, 0, start) for start, item in row.media), (example.row.adapter,),
        )  # fmt: skip
        expected = bench.model(alone)[0][mx.array(example.positions)]
        mine = packed[mx.array(np.flatnonzero(np.array(pack.rows) == number))]
        assert float(mx.abs(mine - expected).max()) <= 1e-4 * float(mx.abs(expected).max())


def test_one_batch_trains_rows_of_several_adapters_each_its_own(bench):
    whole = bench.learner.gradients(bench.parameters, bench.examples)
    for example in bench.examples:
        alone = bench.learner.gradients(bench.parameters, [example])
        for name, gradient in alone.gradients.items():
            own = f".{example.row.adapter}." in name
            assert own == bool(mx.abs(gradient).max() > 0), (name, example.row.adapter)
    parts = sum((bench.learner.gradients(bench.parameters, [each]) for each in bench.examples), Sums())
    assert parts.count == whole.count and close(parts.gradients, whole.gradients)
    assert abs(parts.loss.item() - whole.loss.item()) <= 1e-5 * whole.loss.item()


def test_accumulated_batches_are_one_large_batch_whatever_their_lengths(bench):
    """Means of means weigh a short answer's tokens more than a long one's."""
    long = make_example(conversation(Request("Tell."), "one two three four five six"), bench.processor, 99)
    (long,) = routed([long], bench.model, Chosen(dict.fromkeys(SLOTS), ()))
    batches = [bench.examples[:1], [long, bench.examples[2]]]
    together = bench.learner.gradients(bench.parameters, [each for batch in batches for each in batch])
    apart = sum((bench.learner.gradients(bench.parameters, batch) for batch in batches), Sums())
    updated = [
        Updater(bench.parameters, lambda update: 1e-3, 0.01, 1.0).update(bench.parameters, sums)[0]
        for sums in (together, apart)
    ]
    assert close(apart.gradients, together.gradients) and close(*updated)


def test_checkpointing_gives_the_same_bits_for_less_memory(tmp_path):
    sizes = Sizes(hidden=64, layers=12, heads=4, kv_heads=2, mlp=128, vocab=320)
    folder, peaks, found = write_random_checkpoint(tmp_path / "deep", "text", sizes), [], []
    for frugal in (False, True):
        model, processor = mlx_phi4.load(folder)
        parts = make_parts(model, {"text": None}, (), LoraOptions(rank=4), 0)
        learner = Learner(model, Media(model, processor), parts, checkpoint=frugal)
        line = conversation(Request("Tell me of the sea. " * 12), "It is wide.")
        examples = routed([make_example(line, processor, 4096)], model, Chosen({"text": None}, ()))
        parameters = parts.parameters(model)
        for _ in range(2):  # the first one reads the weights
            mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            sums = learner.gradients(parameters, examples)
        found.append(sums)
        peaks.append(mx.get_peak_memory() - before)
    assert all(mx.array_equal(found[0].gradients[name], found[1].gradients[name]) for name in found[0].gradients)
    assert found[0].loss.item() == found[1].loss.item() and peaks[1] < 0.7 * peaks[0]


def test_losses_in_pieces_are_cross_entropy(monkeypatch):
    weight, h = mx.random.normal((50, 8), key=mx.random.key(0)), mx.random.normal((11, 8), key=mx.random.key(1))
    targets = mx.array(np.arange(11) * 3)
    expected = mx.value_and_grad(lambda h: nn.losses.cross_entropy(h @ weight.T, targets, reduction="sum"))(h)
    for size in (50, 150, 10_000):
        monkeypatch.setattr(loss, "LOGITS", size)
        for function in (loss.trained_token_losses, loss.token_losses):
            found = mx.value_and_grad(lambda h: function(lambda x: x @ weight.T, h, targets, 50).sum())(h)  # noqa: B023
            assert all(mx.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("module", ["vision_projector", "vision_encoder", "audio_projectors.speech", "audio_encoder"])
def test_encoders_and_projectors_get_gradients_by_name(checkpoint, module):
    bench = Bench(checkpoint(), modules=(module,), slots=())
    kind = "vision" if "vision" in module else "speech"
    (example,) = (each for each in bench.examples if each.row.mode == kind)
    name = max((n for n in bench.parts.names if n.endswith("weight") and "position" not in n), key=len)
    weights = bench.parts.parameters(bench.model)
    gradient = bench.learner.gradients(weights, [example]).gradients[name]
    step = mx.random.normal(gradient.shape, key=mx.random.key(5))
    ahead, behind = (
        bench.learner.losses(weights | {name: weights[name] + size * step}, [example]).loss.item()
        for size in (1e-3, -1e-3)
    )
    assert (ahead - behind) / 2e-3 == pytest.approx((gradient * step).sum().item(), rel=0.05, abs=2e-3)


def test_frozen_encoders_are_asked_once_by_content_also_in_a_later_run(checkpoint, tmp_path):
    bench = Bench(checkpoint())
    counts = []
    for _ in range(2):
        media = Media(bench.model, bench.processor, (), tmp_path)
        for _ in range(2):
            embedded = [media.embedded(each, media.gathered(each)) for each in bench.examples]
        counts.append(media.encoded)
    assert counts == [2, 0]  # a picture and a recording, each in two requests
    ((_, picture),) = embedded[1]
    row, _ = bench.processor.conversation(bench.examples[1].line.request)
    assert mx.array_equal(picture, bench.model.embed_medium(row.media[0][1], "vision"))


ROWS = [("What?", "blue"), ("Which color?", "red"), ("Tell me.", "a star"), ("Read.", "seven"), ("Add.", "9 and 3")]


def write(folder, rows=ROWS, name="train", **more):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"prompt": asked, "completion": answer} | more) for asked, answer in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


QUICK = {"batch_size": 2, "learning_rate": 1e-3, "rank": 2, "quiet": True, "plot": False, "held_out": 0.0}


def trained(checkpoint, data, folder, **options):
    return train_adapter(checkpoint(), data, adapter_path=folder, **(QUICK | options))


def test_k_and_k_steps_are_2k_steps_to_the_bit(checkpoint, tmp_path, monkeypatch):
    data = write(tmp_path / "data")
    # clipped: the norm is a sum in the order of the parameters, which files have in another one
    usual = {"iters": 8, "grad_accumulation_steps": 2, "save_every": 2, "max_grad_norm": 0.01}
    trained(checkpoint, data, tmp_path / "whole", **usual)
    learnt = Learner.gradients

    def interrupts(self, *given):
        interrupts.left -= 1
        if interrupts.left == 0:
            signal.raise_signal(signal.SIGINT)
        return learnt(self, *given)

    interrupts.left = 5  # in the middle of an update
    monkeypatch.setattr(Learner, "gradients", interrupts)
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint, data, tmp_path / "halves", **usual)
    assert not (tmp_path / "halves" / "adapter_config.json").exists()  # nothing that looks whole
    interrupts.left = 2  # in the last update, after which all is done
    trained(checkpoint, data, tmp_path / "halves", resume=True, **usual)
    for file in ("adapter_model.safetensors", "checkpoints/0000008/optimizer.safetensors"):
        one, other = (mx.load(str(tmp_path / name / file)) for name in ("whole", "halves"))
        assert one.keys() == other.keys() and all(mx.array_equal(one[name], other[name]) for name in one)
    (tmp_path / "halves" / "adapter_config.json").unlink()  # as where the disk was full at last
    trained(checkpoint, data, tmp_path / "halves", resume=True, **usual)
    with pytest.raises(Phi4Error, match="nothing to go on with"):
        trained(checkpoint, data, tmp_path / "halves", resume=True, **usual)
    with pytest.raises(Phi4Error, match="other options: batch_size was 2, now 1"):
        trained(checkpoint, data, tmp_path / "halves", resume=True, **usual, batch_size=1)


@pytest.mark.parametrize(
    "options", [{}, {"fine_tune_type": "dora"}, {"rslora": True, "keys": "qkv_proj", "num_layers": 1}]
)
def test_what_was_trained_is_what_is_served(checkpoint, tmp_path, options):
    folder = tmp_path / "mine"
    trained(checkpoint, write(tmp_path / "data"), folder, iters=4, **options)
    _, processor = mlx_phi4.load(checkpoint())
    data = write(tmp_path / "data", name="test")
    told = measure_adapter(checkpoint(), data, adapter_path=folder, quiet=True)
    arrays = mx.load(str(folder / "checkpoints" / "0000004" / "parameters.safetensors"))
    bench = Bench(checkpoint(), LoraOptions(options.get("fine_tune_type", "lora"), rank=2,
                  rslora=options.get("rslora", False), keys=("qkv_proj",) if "keys" in options else None,
                  num_layers=options.get("num_layers", -1)), slots=("text",))  # fmt: skip
    lines = [conversation(Request(asked), answer) for asked, answer in ROWS]
    examples = routed([make_example(line, processor, 99) for line in lines], bench.model, Chosen({"text": None}, ()))
    assert told.loss == pytest.approx(bench.learner.losses(arrays, examples).mean, rel=1e-5)
    assert read_adapter(folder, processor.config.decoder).is_dora == ("fine_tune_type" in options)


def test_every_mode_keeps_its_bits(checkpoint, tmp_path):
    """By the digests that a run prints, and by a model that serves the adapter beside the rest."""
    folder = tmp_path / "mine"
    result = trained(checkpoint, write(tmp_path / "data"), folder, iters=2)
    before, processor = mlx_phi4.load(checkpoint())
    served, _ = mlx_phi4.load(checkpoint(), adapters={"mine": folder})
    inputs = [processor.batch([request]) for request in MODES.values()]
    assert all(mx.array_equal(before(each), served(each)) for each in inputs)
    assert result.digests.keys() == set(MODES) and len(set(result.digests.values())) == 4
    make_dense(before)  # as it is trained on the CPU
    assert result.digests == mode_digests(before, processor)


def test_a_published_adapter_is_gone_on_with_beside_itself(checkpoint, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    from PIL import Image

    Image.fromarray(PICTURE).save(data / "a.png")
    write(data, ROWS[:2], image="a.png")
    result = trained(checkpoint, data, tmp_path / "mine", iters=1, learning_rate=1e-9)
    model, processor = mlx_phi4.load(checkpoint(), adapters={"mine": tmp_path / "mine"})
    request = Request("What?", images=[PICTURE])
    mine, own = (model(processor.batch([request_with(request, name)])) for name in ("mine", "vision"))
    assert result.folders == {"vision": tmp_path / "mine"} and mx.allclose(mine, own, atol=1e-3)
    with pytest.raises(Phi4Error, match=r"line 1: trains nothing, as tune does not name 'vision'"):
        trained(checkpoint, data, tmp_path / "other", iters=1, tune="audio_encoder")


def request_with(request, adapter):
    return Request(request.prompt, request.images, adapter=adapter)


def test_what_is_hopeless_ends_with_a_reason(checkpoint, tmp_path):
    data = write(tmp_path / "data")
    with pytest.raises(Phi4Error, match=r"stopped in iteration .*not finite any more.*lower --learning-rate"):
        trained(checkpoint, data, tmp_path / "broken", iters=20, learning_rate=1e30, max_grad_norm=0)
    assert not (tmp_path / "broken" / "adapter_config.json").exists()
    watch = Watch(guess=1.0, updates=160, warmup=5)
    for number in range(65):
        assert watch.hopeless() is None, number
        watch.add(1.0 + 0.02 * (-1) ** number)
    assert "guessing blindly gives 1" in watch.hopeless()
    learning = Watch(guess=1.0, updates=80, warmup=0)
    for number in range(80):
        learning.add(3.0 - number / 80)  # slow, and still better each time
        assert learning.hopeless() is None


def test_guessing_counts_tokens_by_their_place(bench):
    lines = [conversation(Request("What?"), answer) for answer in ("a", "b")]
    examples = [make_example(line, bench.processor, 99) for line in lines]
    assert guessing_loss(examples) == pytest.approx(np.log(2) / 2)  # one of two letters, then always the end
    assert guessing_loss(examples[:1] * 5) == 0


def test_the_best_is_kept_and_a_run_that_gets_worse_ends_early(checkpoint, tmp_path):
    write(tmp_path / "data", [("What?", "blue")] * 4)
    write(tmp_path / "data", [("What?", "red")], name="valid")
    options = {"iters": 30, "steps_per_eval": 5, "early_stop": 2, "learning_rate": 3e-3, "val_task": False}
    result = trained(checkpoint, tmp_path / "data", tmp_path / "mine", **options)
    losses = {each["iteration"]: each["val_loss"] for each in result.history if "val_loss" in each}
    assert result.iterations < 30 and result.best["loss"] == min(losses.values())
    best = mx.load(
        str(tmp_path / "mine" / "checkpoints" / f"best-{result.best['iteration']:07d}" / "parameters.safetensors")
    )
    kept = mx.load(str(tmp_path / "mine" / "adapter_model.safetensors"))
    assert any(mx.array_equal(a, b) for a in best.values() for b in kept.values() if a.shape == b.shape)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(checkpoint, tmp_path, monkeypatch):
    def full(path, arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    usual, calls = checkpoints._write_arrays, []
    monkeypatch.setattr(
        checkpoints, "_write_arrays", lambda *a: full(*a) if calls.append(1) or len(calls) > 2 else usual(*a)
    )
    with pytest.raises(Phi4Error, match="No space left on device; the last whole checkpoint is that of iteration 2"):
        trained(checkpoint, write(tmp_path / "data"), tmp_path / "mine", iters=4, save_every=2)
    assert [each.name for each in (tmp_path / "mine" / "checkpoints").iterdir()] == ["0000002"]
    monkeypatch.undo()
    trained(checkpoint, tmp_path / "data", tmp_path / "mine", iters=4, save_every=2, resume=True)


@pytest.mark.parametrize("name", ["a/b", "base", "checkpoints", "a" * 60])
def test_a_lines_adapter_must_have_a_folder_that_loads(checkpoint, tmp_path, name):
    """Found before training: such a run ended without a result, or with one that no name could be given to."""
    write(tmp_path / "data", adapter=name)
    with pytest.raises(Phi4Error, match=r"train\.jsonl, line 1: adapter "):
        trained(checkpoint, tmp_path / "data", tmp_path / "mine", iters=1)
    assert not (tmp_path / "mine").exists()


def test_folders_that_are_taken(checkpoint, tmp_path):
    data = write(tmp_path / "data")
    trained(checkpoint, data, tmp_path / "mine", iters=1)
    with pytest.raises(Phi4Error, match="is taken; --resume goes on with a run, --overwrite replaces it"):
        trained(checkpoint, data, tmp_path / "mine", iters=1)
    trained(checkpoint, data, tmp_path / "mine", iters=2, overwrite=True)
    for folder, said, options in (
        (data, "not written by this command", {"overwrite": True}),
        (data / "train.jsonl", "is a file", {}),
        (tmp_path / "new", "holds no checkpoint", {"resume": True}),
    ):
        with pytest.raises(Phi4Error, match=said):
            trained(checkpoint, data, folder, iters=1, **options)
    assert not (tmp_path / "new").exists()


def test_an_adapter_goes_on_from_another(checkpoint, tmp_path):
    """What is asked of new ones and this one does not have was ignored once."""
    data = write(tmp_path / "data")
    trained(checkpoint, data, tmp_path / "first", iters=2, rank=4, scale=2.0)
    begun = {"resume_adapter_file": tmp_path / "first", "iters": 1}
    trained(checkpoint, data, tmp_path / "second", **begun, rank=4, learning_rate=1e-9)
    first, second = (mx.load(str(tmp_path / name / "adapter_model.safetensors")) for name in ("first", "second"))
    assert all(mx.allclose(first[name], second[name], atol=1e-6).item() for name in first)
    assert any(mx.abs(first[name]).max().item() > 0 for name in first if "lora_B" in name)
    for options, said in (
        ({"rank": 8}, "rank is 8, but .* has 4"),
        ({"fine_tune_type": "dora"}, "is dora, but .* is none"),
    ):
        with pytest.raises(Phi4Error, match=said):
            trained(checkpoint, data, tmp_path / "third", **begun, **({"rank": 4} | options))
    assert not (tmp_path / "third").exists()


def test_preferences_move_answers_apart_and_the_reference_is_the_base(checkpoint, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    lines = [json.dumps({"prompt": asked, "chosen": good, "rejected": "no"}) for asked, good in ROWS]
    (data / "train.jsonl").write_text("\n".join(lines))
    result = trained(checkpoint, data, tmp_path / "mine", iters=12, learning_rate=3e-3, steps_per_report=1, beta=1.0)
    losses = [each["train_loss"] for each in result.history]
    assert losses[0] == pytest.approx(np.log(2), rel=1e-4)  # both policies are the same
    assert losses[-1] < 0.5 * losses[0]


def test_a_mixed_run_writes_an_adapter_for_each_slot(checkpoint, tmp_path):
    data = tmp_path / "data"
    write(data, ROWS)
    import soundfile
    from PIL import Image

    Image.fromarray(PICTURE).save(data / "a.png")
    soundfile.write(data / "a.wav", *SOUND)
    more = [{"question": "What?", "answer": "x", "image": "a.png"}, {"audio": "a.wav", "text": "seven"}]
    more += [{"prompt": "x", "completion": "y", "adapter": "poet"}]
    with (data / "train.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in more)
    result = trained(
        checkpoint, data, tmp_path / "mine", iters=2, batch_size=8, tune=("text", "vision=new", "speech", "poet")
    )
    assert result.folders == {slot: tmp_path / "mine" / slot for slot in ("text", "vision", "speech", "poet")}
    model, processor = mlx_phi4.load(checkpoint(), adapters={f"my-{slot}": f for slot, f in result.folders.items()})
    asked = [Request("x", adapter=f"my-{slot}") for slot in result.folders]
    assert len(batch_generate(model, processor, asked, max_tokens=2)) == 4
