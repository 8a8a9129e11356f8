"""The live comparison: other weights and other requests than the golden files hold, where torch is installed."""

from importlib.util import find_spec

import numpy as np
import pytest
from adapter_samples import GOLDEN, LOGITS, PEFT, logits
from cases import clip, picture, prose

import mlx_phi4
from mlx_phi4.checkpoint.adapter_files import write_adapter
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

MISSING = [name for name in ("torch", "torchvision", "transformers", "peft") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: see golden/README.md")

REQUESTS = {
    "text": ([("user", prose(40, seed=5))], [], []),
    "system": ([("system", "Ответь кратко."), ("user", "  東京は何語? 🙂")], [], []),
    "vision": ([("user", "<|image_1|> and <|image_2|>?")], [(448, 900), (77, 130)], []),
    "speech": ([("user", "<|audio_1|>Transcribe, please.")], [], [3.3]),
    "long speech": ([("user", "<|audio_1|>Summarize.")], [], [43.0]),
    "vision-speech": ([("user", "<|image_1|><|audio_1|>")], [(700, 300)], [1.7]),
}


ADAPTERS = {  # peft's options, others than the golden adapters have
    "patterns": {
        "r": 6,
        "lora_alpha": 9,
        "target_modules": "all-linear",
        "rank_pattern": {"1.mlp.down_proj": 2},
        "alpha_pattern": {"qkv_proj": 4},
    },
    "dora": {"r": 3, "lora_alpha": 3, "use_dora": True, "use_rslora": True, "target_modules": ["o_proj", "down_proj"]},
    "split": {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "up_proj"], "alpha_pattern": {"up_proj": 3}},
    "split dora": {"r": 2, "lora_alpha": 5, "use_dora": True, "target_modules": ["v_proj", "gate_proj", "down_proj"]},
    "one layer": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": 0},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("live") / "text", "text", "reduced", seed=11)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_equal_pefts_own(text, name, tmp_path):
    import make_adapters

    options = ADAPTERS[name]
    model = make_adapters.base(text)
    adapted = make_adapters.trained(
        make_adapters.split(model) if make_adapters.is_split(options) else model, options, seed=5
    )
    adapted.save_pretrained(tmp_path)
    ids = np.random.default_rng(5).integers(0, 256, 64)
    found = logits(mlx_phi4.load(text, adapters={"mine": tmp_path})[0], "mine", ids)
    assert np.abs(found - make_adapters.logits(adapted, ids)).max() <= 1e-4


@pytest.mark.parametrize("name", PEFT)
def test_peft_reads_what_is_written(checkpoint, name, tmp_path):
    """Over the fused linears, whatever form it was trained in."""
    import make_adapters
    from peft import PeftModel

    model, _ = mlx_phi4.load(checkpoint("text"), adapters={"mine": GOLDEN / name})
    write_adapter(tmp_path / "mine", model.adapters.get_adapter("mine"), model.config.decoder)
    adapted = PeftModel.from_pretrained(make_adapters.base(checkpoint("text")), tmp_path / "mine").eval()
    found = make_adapters.logits(adapted, LOGITS["ids"])[::8]
    assert np.abs(found - LOGITS[name]).max() <= 1e-4


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    from reference import Reference

    folder = tmp_path_factory.mktemp("live")
    write_random_checkpoint(folder / "transformers", "transformers", "reduced", seed=11)
    write_random_checkpoint(folder / "microsoft", "microsoft", "reduced", seed=11)
    return Reference(folder / "transformers"), *mlx_phi4.load(folder / "microsoft")


@pytest.mark.parametrize("name", REQUESTS)
def test_logits_equal_the_reference(both, name):
    reference, model, processor = both
    turns, sizes, seconds = REQUESTS[name]
    messages = [{"role": role, "content": content} for role, content in turns]
    pictures = [picture(*size, seed=9) for size in sizes]
    clips = [clip(length, seed=9) for length in seconds]
    prepared = reference.prepare(messages, pictures, clips)
    inputs = processor(messages, pictures, [(samples, 16_000) for samples in clips])
    assert np.array_equal(np.array(inputs.input_ids[0]), prepared.input_ids[0].numpy())
    difference = np.abs(np.array(model(inputs)[0]) - reference.logits(prepared)).max()
    assert difference <= (0.1 if pictures else 5e-3)
