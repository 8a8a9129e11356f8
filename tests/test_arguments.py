"""Whatever is given for an argument of a public function works, or is refused by a Phi4Error that names it.

A value of another kind once came out as an AttributeError from the depths, or, worse, as another answer: ``raw="no"``
was true, ``max_tokens=3.5`` and a threshold of NaN were taken.
"""

import inspect
import io
import math
import sys

import mlx.core as mx
import numpy as np
import pytest
from cases import clip, picture

import mlx_phi4
from mlx_phi4 import Phi4Error, Request, batch_generate, generate
from mlx_phi4.arguments import kinds
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.training.options import TrainingOptions
from mlx_phi4.transcription.transcriber import Transcriber


class Anything:
    def __init__(self, *given):
        pass


PICTURE, SOUND = picture(30, 30), (clip(0.2), 16_000)
WRONG = {
    "None": None, "True": True, "0": 0, "-1": -1, "3": 3, "3.5": 3.5, "NaN": math.nan, "inf": math.inf, "1j": 1j,
    "empty string": "", "string": "nonsense", "surrogate": "\ud800", "bytes": b"x", "empty list": [],
    "list": [object()], "nested": [[1], "a"], "dict": {1: 2}, "object": object(), "class": Anything,
    "function": lambda *given: 0,
    "numpy": np.array([1.0, math.nan]), "mlx": mx.array([1, 2]), "range": range(3), "set": {3},
}  # fmt: skip
NOT_FUNCTIONS = {"GenerationResponse", "Mode", "Phi4Error"}  # an answer, a label and an error
METHODS = (
    "Processor.__call__", "Processor.batch", "Chat.attach_image", "Chat.attach_audio", "Chat.send", "Chat.save",
    "PromptCache.save", "PromptCache.load", "Transcript.to_srt", "Transcript.to_vtt", "Transcript.render",
    "Transcript.from_json", "Phi4.__call__", "Phi4.add_adapter", "Phi4.remove_adapter",
)  # fmt: skip
NAMES = [*sorted(set(mlx_phi4.__all__) - NOT_FUNCTIONS), *METHODS]
OTHER_NAMES = [
    ("generate", "temp", "temperature"), ("generate", "image", "images"), ("generate", "audio", "audios"),
    ("stream_generate", "max_new_tokens", "max_tokens"), ("stream_generate", "messages", "prompt"),
    ("generate", "draft_model", "speculation"), ("batch_generate", "max_token", "max_tokens"),
    ("batch_generate", "num_return_sequences", "n"),
    ("cache_prompt", "image", "images"), ("load", "path_or_hf_repo", "path_or_hub_id"), ("load", "verbose", "quiet"),
    ("transcribe", "temperature", "temperatures"), ("transcribe", "path_or_hf_repo", "model"),
    ("transcribe", "initial_prompt", "context"), ("transcribe", "language", "to"), ("convert", "hf_path", "model"),
    ("convert", "verbose", "quiet"), ("Request", "image", "images"), ("Processor.__call__", "audio", "audios"),
    ("Chat", "system_prompt", "system"), ("chat", "image", "images"), ("benchmark", "kv_bit", "kv_bits"),
    ("MediaCache", "max_byte", "max_bytes"), ("evaluate_asr", "batchsize", "batch_size"),
]  # fmt: skip


@pytest.fixture(scope="module")
def valid(loaded, checkpoint, tmp_path_factory):
    """A function's name -> the function and arguments that it takes; the costly ones end before they begin."""
    model, processor = loaded()
    folder = tmp_path_factory.mktemp("arguments")
    (folder / "taken").mkdir()
    (folder / "taken" / "file").touch()
    talk, cache = mlx_phi4.Chat(model, processor, max_tokens=1), mlx_phi4.PromptCache()
    transcript, inputs = mlx_phi4.Transcript([mlx_phi4.Segment(0, 1, "word")], 1.0), processor("x")
    both = {"model": model, "processor": processor}
    asked = both | {"prompt": "x", "max_tokens": 1}
    list(mlx_phi4.stream_generate(**asked, prompt_cache=cache))
    cache.save(folder / "cache.safetensors", model)
    given = {
        "Chat": both, "Chat.attach_image": {"path": "none.png"}, "Chat.attach_audio": {"path": "none.wav"},
        "Chat.save": {"path": folder / "chat.json"}, "Chat.send": {"text": "x"}, "MediaCache": {}, "PromptCache": {},
        "Inputs": {"input_ids": inputs.input_ids, "padding": (0,), "modes": ("text",)},
        "Phi4": {"config": None}, "Phi4.__call__": {"inputs": inputs},
        "Phi4.add_adapter": {"name": "mine", "adapter": "none"}, "Phi4.remove_adapter": {"name": "mine"},
        "Processor": {"config": processor.config, "tokenizer": processor.tokenizer},
        "Processor.__call__": {"prompt": "x"}, "Processor.batch": {"requests": ["x"]}, "Request": {"prompt": "x"},
        "PromptCache.load": {"path": folder / "cache.safetensors", "model": model},
        "PromptCache.save": {"path": folder / "other.safetensors", "model": model},
        "ToolCall": {"name": "f", "arguments": {}},
        "Segment": {"start": 0, "end": 1, "text": "word"}, "Transcript": {"segments": [], "duration": 1},
        "Transcript.from_json": {"text": transcript.to_json()}, "Transcript.render": {"format": "srt"},
        "batch_generate": both | {"requests": ["x"], "max_tokens": 1}, "cache_prompt": asked | {"max_tokens": 1},
        "benchmark": both | {"mode": "text", "image": PICTURE, "prompt_tokens": 1, "generation_tokens": 2,
                                                                         "repeat": 1},
        "chat": both, "generate": asked,
        "convert": {"model": checkpoint(), "mlx_path": folder / "taken"}, "load": {"path_or_hub_id": checkpoint()},
        "live": both,
        "evaluate_asr": both | {"manifest": "none.jsonl"}, "evaluate_pictures": both | {"manifest": "none.jsonl"},
        "evaluate_text": both | {"tasks": ["no such task"]}, "stream_generate": asked,
        "Video": {"source": "none.mp4"}, "self_test": {"model": "none", "stages": ["model-rows"]},
        "train_adapter": both | {"data": "none", "adapter_path": folder / "taken" / "file"},
        "predict_training": both | {"data": "none", "adapter_path": folder / "taken" / "file"},
        "test_adapter": both | {"data": "none"}, "add_modality": both | {"folder": "none"},
        "transcribe": both | {"source": SOUND, "max_tokens": 1, "temperatures": 0},
    }  # fmt: skip
    owners = {"Processor": processor, "Chat": talk, "PromptCache": cache, "Transcript": transcript, "Phi4": model}

    def find(name):
        owner, _, method = name.partition(".")
        function = getattr(owners[owner], method) if method else getattr(mlx_phi4, name)
        return function, given.get(name, {})

    return find


def parameters(function):
    """Names of a function's arguments, those that it hands on included."""
    found = list(inspect.signature(function).parameters.values())
    names = [each.name for each in found if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    if function is mlx_phi4.transcribe:
        names += inspect.signature(Transcriber).parameters
    elif function in (mlx_phi4.Chat, mlx_phi4.chat):
        names += inspect.signature(GenerationOptions).parameters
    elif function in (mlx_phi4.train_adapter, mlx_phi4.predict_training, mlx_phi4.test_adapter):
        names += inspect.signature(TrainingOptions).parameters
    return dict.fromkeys(names)


def words(parameter, value):
    """What names an argument in a message; a path that leads nowhere, or a missing name, is told itself."""
    yield parameter.removesuffix("s")
    yield from {
        "clip_timestamps": ("a clip starts at",),
        "overwrite": ("overwritten",),
        "adapter_path": ("no such folder",),  # of the data, which is looked at next
        "text": ("a transcript", "nothing to send"),
    }.get(parameter, ())
    if isinstance(value, str) and value:
        yield value.encode("utf-8", "backslashreplace").decode()


def outcome(function, arguments):
    """What a Phi4Error says, or None if there was an answer."""
    try:
        answer = function(**arguments)
        if inspect.isgenerator(answer):
            list(answer)
    except Phi4Error as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_taken_or_refused_by_its_name(valid, name, monkeypatch, tmp_path):
    function, arguments = valid(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    usual, problems = outcome(function, arguments), []
    for parameter in parameters(function):
        for kind, value in WRONG.items():
            monkeypatch.setattr(sys, "stdin", io.StringIO())
            case = f"{parameter}={kind}"
            try:
                said = outcome(function, arguments | {parameter: value})
            except Exception as error:
                problems.append(f"{case}: {type(error).__name__}: {error}")
                continue
            # what is usually said means that the value was taken
            named = said in (None, usual) or any(word in said for word in words(parameter, value))
            if not named or (said and ("\n" in said or len(said) > 600)):
                problems.append(f"{case}: {said}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_keyword_is_a_type_error(valid, name):
    function, arguments = valid(name)
    with pytest.raises(TypeError, match="colour"):
        outcome(function, arguments | {"colour": 1})


@pytest.mark.parametrize(("name", "theirs", "ours"), OTHER_NAMES)
def test_names_of_other_libraries_are_refused_with_ours(valid, name, theirs, ours):
    """Two names for one thing would both have to be documented, and one day mean two things."""
    function, arguments = valid(name)
    with pytest.raises(TypeError, match=f"unknown option '{theirs}'; is '{ours}' meant?"):
        outcome(function, arguments | {theirs: 1})


def test_a_word_for_what_has_no_counterpart(valid):
    function, arguments = valid("generate")
    with pytest.raises(TypeError, match="'verbose'; nothing is printed here"):
        outcome(function, arguments | {"verbose": True})


def test_modes_are_named():
    for value in (3, None, "nonsense", b"text", object()):
        with pytest.raises(Phi4Error, match="expected text, vision, speech, vision-speech"):
            mlx_phi4.Mode(value)


def test_all_options_are_in_the_signatures():
    for function in (generate, mlx_phi4.stream_generate, batch_generate, mlx_phi4.cache_prompt):
        names = set(inspect.signature(function).parameters)
        assert set(inspect.signature(GenerationOptions).parameters) <= names and "options" not in names


def test_numbers_of_numpy_and_mlx_are_numbers(loaded):
    """A seed of numpy's once overflowed in the middle of an answer."""
    model, processor = loaded()
    plain = {"max_tokens": 5, "temperature": 0.5, "seed": 7, "top_k": 3, "top_p": 0.5}
    expected = generate(model, processor, "x", **plain)
    for whole, part in ((np.int64, np.float32), (np.uint8, np.float16), (mx.array, mx.array), (np.array, np.array)):
        given = {name: (part if isinstance(value, float) else whole)(value) for name, value in plain.items()}
        assert generate(model, processor, "x", **given, raw=np.bool_(False)) == expected
    assert GenerationOptions(**plain) == GenerationOptions(**given)


def test_the_least_temperature_is_the_likeliest_token(loaded):
    greedy = generate(*loaded(), "x", max_tokens=5)
    assert generate(*loaded(), "x", max_tokens=5, temperature=1e-310) == greedy
    assert generate(*loaded(), "x", max_tokens=5, temperature=1e-30) == greedy


def test_biases_as_json_has_them(loaded):
    model, processor = loaded()
    end = processor.tokenizer.special["<|end|>"].id
    assert generate(model, processor, "x", logit_bias={str(end): 1e4}) == ""
    assert GenerationOptions(logit_bias=None).logit_bias == {}
    for wrong in ({"x": 1}, {"-1": 1}, {5: "1"}, {5: math.nan}, {5: math.inf}, {True: 1}, {5.0: 1}, [5], "5"):
        with pytest.raises(Phi4Error, match=r"logit_bias is .*, expected a dictionary of token ids"):
            GenerationOptions(logit_bias=wrong)
    never = {token: -math.inf for token in range(processor.config.decoder.vocab_size) if token != end}
    assert generate(model, processor, "x", logit_bias=never) == ""


def test_requests_are_strings_conversations_or_requests(loaded):
    model, processor = loaded()
    messages = [{"role": "user", "content": "b"}]
    expected = [
        each.tokens for each in batch_generate(model, processor, [Request("a"), Request(messages)], max_tokens=2)
    ]
    for given in (["a", messages], (each for each in ("a", "b")), ("a", Request("b"))):
        assert [each.tokens for each in batch_generate(model, processor, given, max_tokens=2)] == expected
    for given in ("a", Request("a")):
        assert [each.tokens for each in batch_generate(model, processor, given, max_tokens=2)] == expected[:1]
    for given, message in (
        ([3], r"requests\[0\] is 3"),
        (3, "requests is 3"),
        ([], "at least one"),
        (messages, "requests"),
    ):
        with pytest.raises(Phi4Error, match=message):
            batch_generate(model, processor, given)


def test_thresholds_may_be_infinite_but_never_nan():
    """NaN is neither above nor below: no guard would ever be met, and nobody would know."""
    for name in ("logprob_threshold", "compression_ratio_threshold", "segment_seconds", "pause", "clip_timestamps"):
        with pytest.raises(Phi4Error, match=name):
            Transcriber(**{name: math.nan})
    Transcriber(logprob_threshold=-math.inf, compression_ratio_threshold=math.inf, temperatures=np.float32(0.5))


def test_what_cannot_be_printed_is_spelled_out():
    class Strange:
        def __repr__(self):
            raise RuntimeError("no")

    for value in (Strange(), [Strange()], "\ud800" * 999, b"\xff" * 999, 10**999, np.zeros(9), {"a": [[[1]]]}):
        assert len(kinds.shown(value)) < 300
        str(Phi4Error(f"x is {kinds.shown(value)}\nand\r\nmore")).encode()
    assert str(Phi4Error("bad\udcff name\nhere")) == "bad\\udcff name here"
