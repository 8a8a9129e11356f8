"""Folders that were made to do harm: each ends in one line, before memory, time or the process are gone."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mlx_phi4
from mlx_phi4 import Phi4Error
from mlx_phi4.checkpoint import fit
from mlx_phi4.checkpoint.config_readers import config_from_dict, read_config
from mlx_phi4.checkpoint.tensorfile import read_header
from mlx_phi4.converter.convert import convert
from mlx_phi4.converter.verify import verify
from mlx_phi4.inputs import tokenizer_file
from mlx_phi4.inputs.chat_template import DefaultSystemText, read_default_system
from mlx_phi4.inputs.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A function layout -> a copy that a test may spoil."""

    def make(layout="text"):
        return Path(shutil.copytree(checkpoint(layout), tmp_path / layout))

    return make


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_header(path, change):
    """Change the header of a safetensors file, and nothing else."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])


def refusal(folder):
    """The one line, soon; converting says it, too, and leaves nothing behind."""
    start = time.monotonic()
    with pytest.raises(Phi4Error) as caught:
        mlx_phi4.load(folder)
    assert time.monotonic() - start < 5 and str(caught.value).isprintable()
    before = sorted(folder.parent.iterdir())
    with pytest.raises(Phi4Error):
        convert(folder, folder.parent / "out")
    assert sorted(folder.parent.iterdir()) == before
    return str(caught.value)


# config.json


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1_000_000}, r"5999988 missing: model\.layers\.2\.input_layernorm\.weight"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 10+, expected at most"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"intermediate_size": 1 << 24}, "misshapen"),
        ({"hidden_size": 1 << 20, "head_dim": 32}, "misshapen"),
        ({"vocab_size": 1 << 24}, "misshapen"),
        ({"head_dim": 32, "num_attention_heads": 1 << 20, "num_key_value_heads": 1 << 20}, "beyond any tensor"),
        ({"head_dim": 2_000_000_000, "rope_scaling": None}, "head_dim"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0, expected a positive"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": 1e300}, "rope_theta is 1e.300, expected 1e-30 to 1e.30"),
        ({"rope_theta": True}, "rope_theta is True"),
        ({"partial_rotary_factor": 1.5}, "at most 1"),
        ({"partial_rotary_factor": float("inf")}, "partial_rotary_factor is inf"),
        ({"rms_norm_eps": False}, "rms_norm_eps is False"),
        ({"max_position_embeddings": 10**40}, "digits"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"quantization": 5}, "quantization is 5, expected an object"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "no tensor has scales"),
        ({"mlx_phi4": {"format": 2}}, "mlx_phi4 format is 2, this version of the package reads 1"),
        ({"mlx_phi4": 3}, "mlx_phi4 format is 3"),
        ({"transcription": {"pause": -1}}, "transcription pause is -1"),
        ({"transcription": {"speed": 1}}, "transcription has 'speed'"),
        ({"\ud800": 1}, "half a surrogate pair"),
        ({"model_type": "\x1b[2J"}, r"model_type is '\\x1b\[2J'"),
        ({"model_type": "a" * 3_000_000}, r"model_type is 'aaaa.* \.\.\. "),
    ],
)
def test_configurations_without_bounds(copy, change, message):
    """Each number multiplies work or goes into arithmetic; a million layers took gigabytes of modules."""
    folder = copy()
    edit(folder / "config.json", lambda config: config.update(change))
    with pytest.raises(Phi4Error, match=message):
        raise Phi4Error(refusal(folder))


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
@pytest.mark.parametrize("factor", [0, -1.0, float("inf"), True, "1", None, 1e-40])
def test_rope_factors_are_positive_numbers(checkpoint, name, factor):
    raw = json.loads((checkpoint("text") / "config.json").read_text())
    raw["rope_scaling"][name][3] = factor
    with pytest.raises(Phi4Error, match=f"rope {name} is"):
        config_from_dict(raw)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("vision_lora", "r"), 1 << 24),
        (("speech_lora", "lora_alpha"), True),
        (("img_processor", "num_hidden_layers"), 1 << 24),
        (("img_processor", "intermediate_size"), 1 << 24),
        (("audio_processor", "config", "num_blocks"), 1 << 24),
        (("audio_processor", "config", "kernel_size"), 1 << 24),
        (("audio_processor", "config", "nemo_conv_settings", "conv_channels"), 1 << 24),
        (("audio_processor", "config", "relative_attention_bias_args", "t5_bias_max_distance"), True),
        (("audio_token_id",), -1),
    ],
)
def test_encoders_and_adapters_without_bounds(copy, path, value):
    folder = copy("microsoft")

    def change(config):
        for name in path[:-1]:
            config = config[name]
        config[path[-1]] = value

    edit(folder / "config.json", change)
    assert refusal(folder)


def test_nothing_is_made_before_the_headers_fit(copy, monkeypatch):
    folder = copy()
    edit(folder / "config.json", lambda config: config.update(num_hidden_layers=1000))
    made = []
    monkeypatch.setattr(fit, "Phi4", lambda config: made.append(config) or mlx_phi4.model.Phi4(config))
    refusal(folder)
    assert {config.decoder.num_hidden_layers for config in made} == {1}


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 70 + "1" + "}" * 70,
        '{"vocab_size": ' + "9" * 5000 + "}",
        '{"vocab_size": 1, "vocab_size": 2}',
        '{"a": [' + "{}," * 2_000_000 + "{}]}",
    ],
    ids=["deep", "digits", "twice", "long"],
)
def test_json_without_bounds(copy, text):
    folder = copy()
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", WEIGHTS])
def test_what_is_no_file_is_not_waited_for(copy, name):
    """A pipe never ends, and a device gives as much as is asked for."""
    folder = copy()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "is not a file" in refusal(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert "is not a file" in refusal(folder)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("group_size", 0), ("group_size", 64.0), ("bits", 7), ("bits", True), ("mode", ["affine"]), ("mode", "fp8")],
)
def test_quantization_that_mlx_does_not_have(checkpoint, tmp_path, entry, value):
    """Groups of 0 weights ended the process: a division in MLX."""
    folder = convert(checkpoint(), tmp_path / "packed")
    edit(folder / "config.json", lambda config: config["quantization"].update({entry: value}))
    for use in (mlx_phi4.load, verify):
        with pytest.raises(Phi4Error, match="quantization"):
            use(folder)


def test_a_published_width_that_no_padding_explains(checkpoint, tmp_path):
    """Turning weights back would have filled SigLIP up to it."""
    folder = convert(checkpoint(), tmp_path / "packed")
    edit(folder / "config.json", lambda config: config["mlx_phi4"].update(vision_intermediate_size=1_000_000))
    with pytest.raises(Phi4Error, match="vision_intermediate_size is 1000000, but"):
        convert(folder, tmp_path / "out", dequantize=True)


# safetensors


def first(header):
    return next(entry for name, entry in header.items() if name != "__metadata__")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(more=5),
        lambda header: header.update(more=None),
        lambda header: header.update(more={"dtype": "F32", "shape": [0]}),
        lambda header: header.update(more={"dtype": "F32", "shape": [0], "data_offsets": []}),
        lambda header: header.update(more={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
        lambda header: header.update(more={"dtype": "F32", "shape": [0] + [1] * 100, "data_offsets": [0, 0]}),
        lambda header: header.update(more={"dtype": "F32", "shape": [0, 1 << 40], "data_offsets": [0, 0]}),
        lambda header: header.update(__metadata__=7),
        lambda header: header.update(__metadata__={"format": 7}),
        lambda header: first(header).pop("dtype"),
        lambda header: first(header).update(dtype=[]),
        lambda header: first(header).update(dtype="F4"),
        lambda header: first(header).update(shape=[-1, -128]),
        lambda header: first(header).update(shape=[True, 128]),
        lambda header: first(header).update(shape="ab"),
        lambda header: first(header).update(data_offsets=[-8, 0]),
        lambda header: first(header).update(data_offsets={"a": 1}),
        lambda header: first(header).update(data_offsets=[0, 1 << 62]),
        lambda header: header.pop("model.norm.weight"),
    ],
)
def test_headers_that_lie(copy, change):
    folder = copy()
    edit_header(folder / WEIGHTS, change)
    assert f"{WEIGHTS} is not a complete safetensors file" in refusal(folder)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_headers_of_a_length_that_is_not_there(copy, length):
    folder = copy()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + b"{}")
    assert "its header is said to have" in refusal(folder)


def test_a_name_twice_in_a_header(copy):
    """Of two readers, each would believe another entry."""
    folder = copy()
    content = (folder / WEIGHTS).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    text = content[8:end].rstrip()[:-1] + b',"model.norm.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    assert "names 'model.norm.weight' twice" in refusal(folder)


def test_headers_agree_with_the_library(checkpoint):
    path = checkpoint() / WEIGHTS
    ours, theirs = read_header(path), load_file(path)
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: a.shape for name, a in theirs.items()}
    assert all(np.array_equal(np.array(ours[name].read()), array) for name, array in theirs.items())


def test_tensors_of_another_rank(copy):
    """Axes were changed before shapes were compared."""
    folder = copy("microsoft")

    def flatten(header):
        for name, entry in header.items():
            if name.endswith(("embed.conv.3.weight", "bias_values.weight", "glb_GN")):
                entry["shape"] = [int(np.prod(entry["shape"]))]

    edit_header(folder / WEIGHTS, flatten)
    message = refusal(folder)
    assert "3 misshapen" in message and "embed.conv.3.weight (1024,), expected (32, 32)" in message


def test_a_tensor_under_two_names(copy):
    """Of an adapter's keys with and without its name inside, the last one won."""
    folder = copy("transformers")
    path = folder / "vision-lora" / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file(weights | {name.replace(".weight", ".default.weight"): weights[name]}, path)
    assert "1 repeated: vision-lora/base_model.model.model.layers.0" in refusal(folder)


@pytest.mark.parametrize("name", ["model.layers.02.input_layernorm.weight", "model.layers.#.input_layernorm.weight"])
def test_numbers_of_layers_that_only_look_like_one(copy, name):
    folder = copy()
    edit_header(folder / WEIGHTS, lambda header: header.update({name: header.pop("model.norm.weight")}))
    assert f"1 unexpected: {name}" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../text/model.safetensors", "..", ".", "", "a\0.safetensors", "x" * 5000 + ".safetensors"]
)
def test_an_index_names_files_of_its_folder_only(copy, name):
    folder = copy()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    message = refusal(folder)
    assert "no safetensors file of this folder" in message or "are missing" in message


# tokenizer.json


def added(id, content="<|more|>"):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content} | flags


@pytest.mark.parametrize("id", [320, 5000, 1 << 31, (1 << 32) - 1, 1 << 40, -1, True, None, 1.0])
@pytest.mark.parametrize("where", ["vocabulary", "added"])
def test_ids_that_the_model_has_no_row_for(copy, id, where):
    """They were looked up beyond the embedding: a segmentation fault, or nonsense."""
    folder = copy()

    def change(raw):
        if where == "added":
            raw["added_tokens"].append(added(id))
        raw["model"]["vocab"]["<|more|>"] = id

    edit(folder / "tokenizer.json", change)
    assert "tokenizer.json cannot be used" in refusal(folder)


def test_rows_without_tokens_are_padding(copy):
    """The published embedding has 200,064 rows for 200,029 tokens; the last row may have one."""
    folder = copy()

    def change(raw):
        raw["added_tokens"].append(added(319))
        raw["model"]["vocab"]["<|more|>"] = 319

    edit(folder / "tokenizer.json", change)
    _, processor = mlx_phi4.load(folder)
    assert processor.tokenizer.encode("<|more|>") == [319]


def test_an_added_token_that_the_library_numbers_otherwise(copy):
    """Where the vocabulary lacks it, the library gives the next free id, with a warning at most."""
    folder = copy()
    edit(folder / "tokenizer.json", lambda raw: raw["added_tokens"].append(added(310)))
    assert "'<|more|>' has the id 310, but gets 305" in refusal(folder)


def replacements(count):
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [replace] * count}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", replacements(30)),
        ("normalizer", replacements(1)["normalizers"][0]),
        ("normalizer", {"type": "Sequence", "normalizers": [replacements(2)]}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
        ("normalizer", 5),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTES] * 25}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTES, BYTES]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split(r"(a+)+[^ab]"), BYTES]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split(r"(?:a|aa){1,900}[^ab]"), BYTES]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split(r"a*a*a*a*a*[^a]"), BYTES]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split(r"(a)\1[^a]"), BYTES]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split(["a"]), BYTES]}),
        ("decoder", replacements(1)["normalizers"][0]),
        ("post_processor", {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 99}),
        ("model", {"type": "WordLevel", "vocab": {}, "unk_token": "a"}),
        ("added_tokens", [5]),
        ("added_tokens", [added(7, "x" * 1_000_000)]),
    ],
)
def test_steps_that_multiply_text_or_time(copy, part, value):
    """A normalizer of thirty replacements took 40 s and 6 GB for one word."""
    folder = copy()
    edit(folder / "tokenizer.json", lambda raw: raw.update({part: value}))
    assert "tokenizer.json cannot be used" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"), [("continuing_subword_prefix", "#" * 1000), ("end_of_word_suffix", "x"), ("dropout", 0.5)]
)
def test_options_of_the_vocabulary_that_the_family_does_not_have(copy, name, value):
    """A long prefix ended in a panic of the library, which is no Exception."""
    folder = copy()
    edit(folder / "tokenizer.json", lambda raw: raw["model"].update({name: value}))
    assert f"its model has {name}" in refusal(folder)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s",
    ],
)
def test_patterns_of_the_published_kind_pass(copy, pattern):
    folder = copy()
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split(pattern), BYTES]}
    edit(folder / "tokenizer.json", lambda raw: raw.update(pre_tokenizer=pre_tokenizer))
    assert mlx_phi4.load(folder)[1].tokenizer.encode("Don't 12345")


def test_the_token_for_what_is_unknown_is_known(copy):
    """It was looked up when a character was missing: a bare Exception of the library, in the middle of a chat."""
    folder = copy()
    edit(folder / "tokenizer.json", lambda raw: raw["model"].update(unk_token="<|end|>"))
    assert mlx_phi4.load(folder)
    edit(folder / "tokenizer.json", lambda raw: raw["model"].update(unk_token="nothing"))
    assert "unk_token 'nothing' is not in the vocabulary" in refusal(folder)


def test_a_pattern_that_gives_up_over_a_text_is_an_error(copy, monkeypatch):
    """Whatever the checks let through: the library panics after some millions of steps, and panics are no Exception."""
    folder = copy()
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split(r"(a+)+[^ab]"), BYTES]}
    edit(folder / "tokenizer.json", lambda raw: raw.update(pre_tokenizer=pre_tokenizer))
    monkeypatch.setattr(tokenizer_file, "_check_speed", lambda tokenizer: None)
    monkeypatch.setattr(tokenizer_file, "SLOW", tokenizer_file.re.compile("(?!)"))
    with pytest.raises(Phi4Error, match="cannot split the text"):
        Tokenizer(folder, read_config(folder)).encode("a" * 60)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_forms_of_unicode_are_normalizers_of_bounded_work(copy, form):
    folder = copy()
    edit(folder / "tokenizer.json", lambda raw: raw.update(normalizer={"type": form}))
    assert mlx_phi4.load(folder)


@pytest.mark.parametrize("id", [-1, True, 1 << 40, 0.5, [[1]], {"a": 1}, False])
def test_stop_ids_are_ids(copy, id):
    folder = copy()
    edit(folder / "generation_config.json", lambda raw: raw.update(eos_token_id=id))
    assert "eos_token_id is" in refusal(folder)


@pytest.mark.parametrize("id", [0, 200_020, [5, 200_020], None])
def test_stop_ids_that_never_come_do_no_harm(copy, id):
    folder = copy()
    edit(folder / "generation_config.json", lambda raw: raw.update(eos_token_id=id))
    model, processor = mlx_phi4.load(folder)
    assert processor.tokenizer.stop_ids >= set([] if id is None else id if isinstance(id, list) else [id])
    assert mlx_phi4.generate(model, processor, "Hi", max_tokens=2) is not None


# chat templates

TEMPLATES = {
    "division": "{{ 1 // 0 }}{{ 1 / 0 }}{{ 1 % 0 }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "product": "{{ 'a' * 99999999999 }}",
    "format": "{{ '%99999999999d' % 1 }}{{ '{:99999999999}'.format(1) }}",
    "filter": "{{ 'a' | center(99999999999) }}{{ 'a' | indent(99999999999) }}",
    "method": "{{ 'a'.ljust(99999999999) }}{{ 'a'.zfill(99999999999) }}{{ 'a\t'.expandtabs(99999999999) }}",
    "range": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "doubling": "{% set ns = namespace(a='x') %}" + "{% set ns.a = ns.a ~ ns.a %}" * 60 + "{{ ns.a }}",
    "doubling by +": "{% set ns = namespace(a='x') %}" + "{% set ns.a = ns.a + ns.a %}" * 60 + "{{ ns.a }}",
    "loops": "{% for a in messages + messages + messages + messages %}" * 10 + "x" + "{% endfor %}" * 10,
    "nested lists": "{% set a = ['x'] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
    "nested namespaces": "{% set a = namespace() %}" + "{% set a = namespace(x=a, y=a) %}" * 60 + "{{ a == a }}",
    "macro": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursive loop": "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "sums": "{{ 1" + " + 1" * 7000 + " }}",
    "conditions": "{% if a %}" * 2500 + "{% endif %}" * 2500,
    "digits": "{{ " + "9" * 5000 + " }}",
    "length": "{{ '<|system|>' }}" + "a" * 100_000,
    "include": "{% include '/etc/passwd' %}{% import 'os' as os %}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "half a pair": "\ud800",
}


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_without_bounds_say_nothing(tmp_path, name, file):
    template = TEMPLATES[name]
    text = template if file.endswith("jinja") else json.dumps({"chat_template": template})
    (tmp_path / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    start = time.monotonic()
    assert read_default_system(tmp_path) == DefaultSystemText()
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("content", ['{"a":' * 100_000, "[" * 100_000, "[]", "\ud800", '{"chat_template": 5}'])
def test_a_spoiled_tokenizer_config_says_nothing(tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert read_default_system(tmp_path) == DefaultSystemText()


WRITTEN_OTHERWISE = (
    "{%- set ns = namespace(text='You are') -%}"
    "{%- for m in messages if m.role == 'system' -%}{%- set ns.text = ns.text ~ ' ' ~ (m['content'] | trim) -%}"
    "{%- else -%}{%- set ns.text = ns.text + ' Phi.' -%}{%- endfor -%}"
    "{{- '<|system|>' + ns.text + '<|end|>' -}}"
    "{%- set rest = messages[1:] if messages[0].role == 'system' else messages -%}"
    "{%- for m in rest -%}{%- if 'tools' in m and m.tools is not none -%}{{- raise_exception('tools') -}}"
    "{%- elif not loop.first and loop.index0 % 2 == 0 and m.role.upper() in ['TOOL'] -%}{{- m | tojson -}}"
    "{%- else -%}{{- '<|%s|>' % m.role if x is defined else '<|' ~ m.role.strip() ~ '|>' ~ m.content -}}<|end|>"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt and tools is none -%}<|assistant|>{%- endif -%}"
)


def test_templates_in_other_words_are_understood(tmp_path):
    """What is not known is refused where it is reached, not where it stands."""
    (tmp_path / "chat_template.jinja").write_text(WRITTEN_OTHERWISE)
    assert read_default_system(tmp_path) == DefaultSystemText("You are Phi.", "You are ")


def test_templates_give_what_jinja_gives(tmp_path):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from mlx_phi4.inputs.template_evaluator import evaluate
    from mlx_phi4.synthetic.published_tokenizer import CHAT_TEMPLATE

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "system", "content": " S "}, {"role": "user", "content": "U"}]
    for template in (CHAT_TEMPLATE, WRITTEN_OTHERWISE):
        for given in (messages, messages[1:]):
            values = {"messages": given, "add_generation_prompt": True, "tools": None}
            expected = environment.from_string(template).render(**values)
            assert evaluate(template, values) == expected
