"""``mlx_phi4.benchmark``: what it counts, and its command."""

import json
from functools import partial

import pytest
from cases import clip, picture

from mlx_phi4 import Phi4Error
from mlx_phi4.commands.benchmark import command
from mlx_phi4.evaluation.speed import MODES, benchmark, weight_bytes
from mlx_phi4.synthetic.published import ADAPTERS, SIZES, tensors

SMALL = {"image": picture(90, 90), "audio": (clip(0.6), 16_000)}


def test_every_mode_is_measured(loaded):
    found = benchmark(*loaded(), prompt_tokens=20, generation_tokens=3, repeat=1, **SMALL)
    assert [m.mode for m in found] == list(MODES)
    text, vision, speech, both = found
    assert text.prompt_tokens == speech.prompt_tokens == 20 and both.prompt_tokens > vision.prompt_tokens > 500
    assert text.encoder_seconds < 0.01 < vision.encoder_seconds
    for m in found:
        assert m.generation_tokens == 3 and m.peak_memory > 0
        assert min(m.prompt_tps, m.generation_tps, m.second_question_seconds) > 0
        assert m.first_token_seconds > m.prepare_seconds + m.encoder_seconds
        assert m.second_question_ratio == m.second_question_seconds / m.first_token_seconds
    assert vision.second_question_ratio < 0.7  # the picture is neither encoded nor prefilled again


def test_weight_bytes_are_those_of_the_checkpoint(loaded):
    sizes = SIZES["reduced"]
    decoder = tensors(sizes, "text")
    shapes = {name: shape for name, shape in tensors(sizes, "microsoft").items() if ".lora_" in name}

    def total(found):
        return sum(4 * shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in found)

    adapters = {
        name: total(shape for key, shape in shapes.items() if f".{name}." in key and "layers" in key)
        for name in ADAPTERS
    }
    expected = {"text": 0, "vision": adapters["vision"], "speech": adapters["speech"]}
    expected["vision-speech"] = expected["vision"]
    for mode, adapter in expected.items():
        assert weight_bytes(loaded()[0], mode) == (total(decoder.values()), adapter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "smell"}, "mode is 'smell'"),
        ({"repeat": 0}, "repeat is 0"),
        ({"generation_tokens": 1}, "generation_tokens is 1"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"prompt_tokens": 131_072, "mode": "text"}, "the context holds"),
        ({"mode": "text", "image": picture(90, 90)}, "no use"),
        ({"kv_bits": 5}, "kv_bits is 5"),
    ],
)
def test_bad_values_are_refused(loaded, options, message):
    with pytest.raises(Phi4Error, match=message):
        benchmark(*loaded(), **options)
    with pytest.raises(TypeError, match="temperature"):
        benchmark(*loaded(), temperature=1.0)


def test_text_only_models(loaded):
    (text,) = benchmark(*loaded("text"), prompt_tokens=9, generation_tokens=2, repeat=1, kv_bits=8, kv_group_size=32)
    assert text.mode == "text" and text.adapter_bytes == 0
    with pytest.raises(Phi4Error, match="text-only"):
        benchmark(*loaded("text"), mode="vision")


@pytest.fixture
def run(run_command):
    """A function (arguments) -> (exit code, stdout, stderr)."""
    return partial(run_command, command)


def test_the_command(run, checkpoint, tmp_path):
    small = ("--model", checkpoint(), "--mode", "text", "--prompt-tokens", 9, "--generation-tokens", 2, "--repeat", 2)
    code, out, err = run(*small)
    assert code == 0 and "measured on " in out and "text: prompt 9 tokens" in out and "round 2 of 2" in err
    code, out, err = run(*small, "--json", "--quiet")
    found = json.loads(out)
    assert (code, err) == (0, "") and found["device"] in ("cpu", "metal", "cuda") and found["mlx"]
    assert found["results"][0]["mode"] == "text" and found["options"]["repeat"] == 2
    for arguments, message in (
        ((*small, "--repeat", 0), "repeat is 0"),
        (("--model", tmp_path / "none"), "no such"),
        (("--model", checkpoint(), "--mode", "vision", "--image", tmp_path / "none.png"), "no such file"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "") and message in err.strip().splitlines()[-1] and "Traceback" not in err
