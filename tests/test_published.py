"""Folders built from what is known of the published files (tests/published): they are read, and what is missing, newer
or left out is a clear line."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from samples import MODES

import mlx_phi4
from mlx_phi4 import Phi4Error
from mlx_phi4.checkpoint.config_readers import config_from_dict, read_config
from mlx_phi4.converter.convert import convert
from mlx_phi4.inputs.prompt import render_messages
from mlx_phi4.inputs.tokenizer import Tokenizer
from mlx_phi4.synthetic.published import SIZES
from mlx_phi4.synthetic.published_files import config, other_files

FACTS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "published").glob("*.json")}
TOKENS = FACTS.pop("tokens")["tokens"]
MODELS = sorted(FACTS)
FULL = SIZES["full"]
# a template in our words that says what Phi-4-mini-reasoning's says
OWN_SYSTEM = (
    "{{ '<|system|>SYSTEM' }}{% for m in messages if m['role'] == 'system' %}{{ ' ' + m['content'] }}{% endfor %}"
    "{{ '<|end|>' }}{% for m in messages if m['role'] != 'system' %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def within(facts, made):
    """What of the facts is otherwise in what is made."""
    if isinstance(facts, dict):
        return [f"{name}: {each}" for name in facts for each in within(facts[name], (made or {}).get(name))]
    return [] if facts == made else [f"{made!r}, published is {facts!r}"]


@pytest.fixture
def folder(tmp_path):
    """A function model -> a folder with everything but the weights, at the published sizes."""

    def make(model):
        facts, place = FACTS[model], tmp_path / model
        place.mkdir()
        files = other_files(FULL, facts["layout"]) | {"config.json": config(FULL, facts["layout"], "bfloat16")}
        for name in ("generation_config", "preprocessor_config"):
            if name in facts:
                files[f"{name}.json"] = facts[name]
        if "system" in facts:
            files["tokenizer_config.json"]["chat_template"] = OWN_SYSTEM.replace("SYSTEM", facts["system"])
        for name, content in files.items():
            (place / name).write_text(json.dumps(content))
        return place

    return make


@pytest.mark.parametrize("model", MODELS)
def test_random_checkpoints_say_what_is_published(model):
    facts = FACTS[model]
    files = other_files(FULL, facts["layout"])
    assert not within(facts["config"], config(FULL, facts["layout"], "bfloat16"))
    for name in ("generation_config", "tokenizer_config", "preprocessor_config"):
        assert not within(facts.get(name, {}), files.get(f"{name}.json"))
    made = {each["content"]: each for each in files["tokenizer.json"]["added_tokens"]}
    assert not [difference for token in TOKENS for difference in within(token, made[token["content"]])]


@pytest.mark.parametrize("model", MODELS)
def test_they_are_read(folder, model):
    facts, place = FACTS[model], folder(model)
    read = read_config(place)
    assert (read.decoder.num_hidden_layers, read.decoder.head_dim, read.decoder.rope.dims) == (32, 128, 96)
    assert (read.multimodal, sorted(read.adapters)) == (facts["layout"] != "text", sorted(read.adapters))
    if read.multimodal:
        assert {name: (lora.rank, lora.alpha) for name, lora in read.adapters.items()} == {
            name: tuple(facts["config"][f"{name}_lora"][each] for each in ("r", "lora_alpha"))
            for name in ("vision", "speech")
        }
        assert (read.vision.num_hidden_layers, read.audio.num_blocks) == (27, 24)
    tokenizer = Tokenizer(place, read)
    for token in TOKENS:
        assert tokenizer.encode(token["content"]) == [token["id"]]
        assert tokenizer.encode_plain(token["content"]) != [token["id"]]  # in what a user says it is text
    assert sorted(tokenizer.stop_ids) == sorted(facts["generation_config"]["eos_token_id"])


@pytest.mark.parametrize("model", MODELS)
def test_conversations_become_what_is_published(folder, model):
    place = folder(model)
    tokenizer = Tokenizer(place, read_config(place))
    for messages, text in FACTS[model]["conversations"]:
        assert render_messages(tokenizer, messages) == text


# missing and newer ones, beside weights

MISSING = {
    "config.json": "config.json is missing",
    "tokenizer.json": "tokenizer.json",
    "model.safetensors": "expected *.safetensors, found none",
    "generation_config.json": None,
    "tokenizer_config.json": None,
    "preprocessor_config.json": None,
    "processor_config.json": None,
}
NEWER = {
    "a model of another type": ("config.json", {"model_type": "phi5mm"}, "model_type is 'phi5mm', expected one of"),
    "values that nobody asks for": ("config.json", {"transformers_version": "9.0", "new_option": {"a": 1}}, None),
    "another activation": ("config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
    "another kind of RoPE": ("config.json", {"rope_scaling": {"type": "yarn"}}, "rope type is 'yarn'"),
    "another kind of tokenizer": ("tokenizer.json", {"model": {"type": "Unigram"}}, "its model is not BPE"),
    "ends by name": ("generation_config.json", {"eos_token_id": "<|end|>"}, "eos_token_id"),
    "more ends": ("generation_config.json", {"eos_token_id": [300, 301], "cache_implementation": "new"}, None),
    "more crops": ("preprocessor_config.json", {"dynamic_hd": 64}, "dynamic_hd is 64, only 36 is supported"),
    "longer tokens": ("preprocessor_config.json", {"audio_compression_rate": 16}, "only 8 is supported"),
    "a processor of another name": ("preprocessor_config.json", {"image_processor_type": "Phi5ImageProcessor"}, None),
}


@pytest.fixture
def copy(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint(), tmp_path / "model"))


def opens(folder, expected):
    """It loads, or one line says why it does not."""
    if expected is None:
        mlx_phi4.load(folder)
        return
    with pytest.raises(Phi4Error) as refused:
        mlx_phi4.load(folder)
    assert expected in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize("name", MISSING)
def test_a_file_that_is_missing(copy, name):
    (copy / name).unlink()
    opens(copy, MISSING[name])


@pytest.mark.parametrize("name", NEWER)
def test_a_file_that_is_newer(copy, name):
    file, changed, expected = NEWER[name]
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    opens(copy, expected)


# folders that have lost a modality

LACKS = FACTS["phi-4-multimodal-instruct"]["fine_tuned_on_pictures_lacks"]
WITHOUT = {
    "speech": (LACKS, {"text", "vision"}, "no encoder for a recording"),
    "vision": (
        [each.replace("audio_embed", "image_embed").replace("speech", "vision") for each in LACKS],
        {"text", "speech"},
        "no encoder for a picture",
    ),
}


@pytest.mark.parametrize("lost", WITHOUT)
def test_a_folder_that_lost_a_modality_has_the_others(copy, loaded, tmp_path, lost):
    """As fine-tuning leaves them; also after converting. Answers of the modes that are left stay as they were."""
    marks, left, said = WITHOUT[lost]
    path = copy / "model.safetensors"
    tensors = {name: each for name, each in load_file(path).items() if not any(mark in name for mark in marks)}
    save_file(tensors, path, metadata={"format": "pt"})
    convert(copy, tmp_path / "converted", q_group_size=32)
    for place in (copy, tmp_path / "converted"):
        model, processor = mlx_phi4.load(place)
        assert sorted(model.adapters) == sorted(left - {"text"})
        for mode, request in MODES.items():
            if mode not in left:
                with pytest.raises(Phi4Error, match=said):
                    processor.row(request)
            elif place == copy:
                answers = [
                    mlx_phi4.batch_generate(*pair, [request], max_tokens=2) for pair in (loaded(), (model, processor))
                ]
                assert answers[0][0].text == answers[1][0].text


def test_a_modality_that_lost_a_part_is_refused(copy):
    path = copy / "model.safetensors"
    tensors = {name: each for name, each in load_file(path).items() if ".audio_embed." not in name or ".0.b" in name}
    save_file(tensors, path, metadata={"format": "pt"})
    opens(copy, "missing: audio_encoder")


def test_config_alone_tells_of_both():
    """What is there is told by the tensors, and not by ``config.json``."""
    raw = config(SIZES["reduced"], "microsoft", "float32")
    assert config_from_dict(raw).vision and config_from_dict(raw).audio
