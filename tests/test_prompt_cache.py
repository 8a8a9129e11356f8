"""What is reused between requests, and what never is."""

import json

import mlx.core as mx
import pytest
from samples import MODES, OTHER, PICTURE, SOUND, sequence_of, tokens_of

import mlx_phi4
from mlx_phi4 import MediaCache, Phi4Error, PromptCache, Request, cache_prompt, generate, stream_generate
from mlx_phi4.commands.cache_prompt import command
from mlx_phi4.commands.generate import command as generate_command
from mlx_phi4.decoder.state import Run
from mlx_phi4.generation.batch import Batch
from mlx_phi4.modalities import projector_of
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

pytestmark = pytest.mark.cpu  # what is reused changes how many tokens a step has, not which come


@pytest.fixture
def spy(loaded, monkeypatch):
    """How many pictures and clips were encoded."""
    model, _ = loaded()
    counts = []
    embed = type(model).embed_slices

    def counted(self, item, mode):
        counts.append(projector_of(item, mode))
        return embed(self, item, mode)

    monkeypatch.setattr(type(model), "embed_slices", counted)
    return counts


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def asked(question, *media):
    return [{"type": kind, kind: source} for kind, source in media] + [{"type": "text", "text": question}]


def check_turns(loaded, turns):
    """Answer message lists one after another with one cache and without any; the answers must not differ."""
    model, processor = loaded()
    cache, reused = PromptCache(), []
    for messages in turns:
        expected = [r.token for r in stream_generate(model, processor, messages, max_tokens=5)]
        responses = list(stream_generate(model, processor, messages, max_tokens=5, prompt_cache=cache))
        assert [r.token for r in responses] == expected
        reused.append(responses[-1].reused_tokens)
    return reused


def test_a_conversation_reuses_its_prefix(loaded):
    first = chat(("user", "Tell me of the sea."))
    second = [*first, *chat(("assistant", "It is wide."), ("user", "And deep?"))]
    changed = chat(("user", "Tell me of the moon."))
    reused = check_turns(loaded, [first, second, first, changed])
    prompt = loaded()[1]("Tell me of the sea.").lengths[0]
    assert reused[0] == 0 and reused[1] >= prompt - 1 and reused[2] == prompt - 1 and 0 < reused[3] < prompt


def test_a_second_question_about_a_picture_encodes_nothing(loaded, spy):
    model, processor = loaded()
    cache = PromptCache()
    for question in ("What is this?", "Which colour?"):
        list(stream_generate(model, processor, question, images=[PICTURE], max_tokens=2, prompt_cache=cache))
    assert spy == ["picture"]


def test_a_media_cache_alone_is_filled_and_used(loaded, spy):
    """An empty cache is false in Python's eyes; it used to be taken for none at all."""
    model, processor = loaded()
    cache = MediaCache()
    for question in ("What is this?", "Which colour?"):
        generate(model, processor, question, images=[PICTURE], max_tokens=2, media_cache=cache)
    assert spy == ["picture"] and len(cache) == 1


def test_nothing_is_reused_across_another_picture(loaded):
    turns = [chat(("user", asked("What is this?", ("image", image)))) for image in (PICTURE, OTHER, PICTURE)]
    reused = check_turns(loaded, turns)
    assert reused == [0, 1, 1]  # only the <|user|> token stands before the picture


def test_media_that_join_a_conversation(loaded, spy):
    """Sound keeps the vision adapter and its cache; a picture changes the adapter, and the sound's projector."""
    picture_first = chat(("user", asked("See?", ("image", PICTURE))))
    then_sound = [*picture_first, *chat(("assistant", "Yes."), ("user", asked("Hear?", ("audio", SOUND))))]
    reused = check_turns(loaded, [picture_first, then_sound])
    assert reused[1] > 200
    sound_first = chat(("user", asked("Hear?", ("audio", SOUND))))
    then_picture = [*sound_first, *chat(("assistant", "Yes."), ("user", asked("See?", ("image", PICTURE))))]
    text = chat(("user", "Hi"))
    assert check_turns(loaded, [sound_first, then_picture, text]) == [0, 0, 0]
    assert "speech" in spy and "vision" in spy


def test_reuse_across_the_original_context(checkpoint, tmp_path):
    """A sequence in one RoPE regime is of no use in the other; in the long one it is reused again."""
    import shutil

    folder = shutil.copytree(checkpoint(), tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"original_max_position_embeddings": 40}))
    short = chat(("user", "Tell me of the sea."))
    long = [*short, *chat(("assistant", "Wide."), ("user", "And how deep is it, would you say?"))]
    longer = [*long, *chat(("assistant", "Very."), ("user", "Why?"))]
    pair = mlx_phi4.load(folder)
    reused = check_turns(lambda: pair, [short, long, longer])
    assert reused[:2] == [0, 0] and reused[2] > 40
    crossing, _ = tokens_of(*pair, Request(short), max_tokens=30)
    cache = PromptCache()
    assert [r.token for r in stream_generate(*pair, short, max_tokens=30, prompt_cache=cache)] == crossing
    assert cache.state.long
    always, _ = tokens_of(*pair, Request(short), max_tokens=3, rope="long")
    inputs = pair[1](short)
    row = inputs.rows[0]
    logits = pair[0].forward(pair[0].embed(row), [Run(pair[0].new_state(row, long=True), len(row.ids), 1)])
    assert always[0] == logits[0, -1].argmax().item()


def test_interrupted_generation_leaves_a_usable_cache(loaded):
    model, processor = loaded()
    cache = PromptCache()
    responses = stream_generate(model, processor, "Tell me of the sea.", max_tokens=9, prompt_cache=cache)
    first = [next(responses).token for _ in range(3)]
    responses.close()
    assert cache.state is not None and cache.tokens[-len(first) :][0] in first
    again = [
        r.token for r in stream_generate(model, processor, "Tell me of the sea.", max_tokens=9, prompt_cache=cache)
    ]
    assert again[:3] == first


def test_a_step_that_broke_leaves_nothing_behind(loaded, monkeypatch):
    """Ctrl-C between two layers leaves caches of different length; they used to be reused."""
    from mlx_phi4.decoder.decoder import Block

    model, processor = loaded()
    expected, _ = tokens_of(model, processor, MODES["text"], max_tokens=9)
    cache, calls, block = PromptCache(), [], Block.__call__

    def breaking(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return block(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Block, "__call__", breaking)
        tokens_of(model, processor, MODES["text"], max_tokens=9, prompt_cache=cache)
    assert cache.state is None
    assert tokens_of(model, processor, MODES["text"], max_tokens=9, prompt_cache=cache)[0] == expected


@pytest.mark.parametrize("mode", MODES)
def test_cache_files(loaded, tmp_path, mode, spy):
    model, processor = loaded()
    request = MODES[mode]
    path = tmp_path / "prompt.safetensors"
    cache_prompt(model, processor, request.prompt, request.images, request.audios).save(path, model)
    expected, _ = tokens_of(model, processor, request, max_tokens=5)
    spy.clear()
    read = PromptCache.load(path, model)
    got, last = tokens_of(model, processor, request, max_tokens=5, prompt_cache=read)
    assert got == expected and last.reused_tokens == processor.batch([request]).lengths[0] - 1
    assert spy == []  # what the file covers is not encoded again
    assert not list(tmp_path.glob("*partial*"))


def test_cache_files_of_others_are_refused(loaded, tmp_path, monkeypatch):
    model, processor = loaded()
    path = tmp_path / "prompt.safetensors"
    cache_prompt(model, processor, "Hi", images=[PICTURE]).save(path, model)
    with pytest.raises(Phi4Error, match="vision adapter"):
        generate(model, processor, "Hi", prompt_cache=PromptCache.load(path, model))
    with pytest.raises(Phi4Error, match="--kv options"):
        generate(
            model, processor, "Hi", [PICTURE], prompt_cache=PromptCache.load(path, model), kv_bits=8, kv_group_size=32
        )
    with pytest.raises(Phi4Error, match="another model"):
        PromptCache.load(path, loaded("microsoft", "wide")[0])
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"a": mx.zeros(1)})
    with pytest.raises(Phi4Error, match="not a prompt cache"):
        PromptCache.load(tmp_path / "x.safetensors", model)
    with monkeypatch.context() as patch:
        patch.setattr("mlx_phi4.generation.prompt_cache.FILE_FORMAT", "of another time")
        with pytest.raises(Phi4Error, match="this version"):
            PromptCache.load(path, model)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(Phi4Error, match="not a prompt-cache file"):
        PromptCache.load(tmp_path / "junk.safetensors", model)
    with pytest.raises(Phi4Error, match="no such"):
        PromptCache.load(tmp_path / "none.safetensors", model)
    with pytest.raises(Phi4Error, match="cannot be written"):
        cache_prompt(model, processor, "Hi").save(tmp_path / "no" / "folder.safetensors", model)
    with pytest.raises(Phi4Error, match="must end in"):
        PromptCache.load(tmp_path / "prompt.bin", model)
    with pytest.raises(Phi4Error, match="nothing"):
        PromptCache().save(path, model)


def test_media_cache_forgets_the_least_recently_used(loaded):
    model, _ = loaded()
    cache = MediaCache(max_bytes=3 * 4_000)
    for key in "abc":
        cache.put((key, "picture"), mx.zeros((10, 100)))
    cache.get(model, ("x", "picture"))  # another model than before: everything goes
    assert len(cache) == 0
    for key in "abc":
        cache.put((key, "picture"), mx.zeros((10, 100)))
    cache.get(model, ("a", "picture"))
    cache.put(("d", "picture"), mx.zeros((10, 100)))
    assert cache.get(model, ("b", "picture")) is None and cache.get(model, ("a", "picture")) is not None
    assert cache.nbytes <= cache.max_bytes


def test_keys_that_were_packed_later_serve_no_shorter_prompt(loaded):
    """Cut below ``quantized_kv_start`` they were used all the same: another answer than alone."""
    model, processor = loaded()
    options = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 40, "max_tokens": 12}
    cache = PromptCache()
    long = Request("Tell me of the sea and all that swims in it, and of the boats.")
    tokens_of(model, processor, long, prompt_cache=cache, **options)
    short = Request("Tell me of the sea and all things")
    expected = tokens_of(model, processor, short, **options)[0]
    assert tokens_of(model, processor, short, prompt_cache=cache, **options)[0] == expected


def test_another_models_cache_is_no_use(loaded, tmp_path):
    model, processor = loaded()
    other = mlx_phi4.load(write_random_checkpoint(tmp_path / "other", seed=5))
    cache = PromptCache()
    tokens_of(model, processor, MODES["text"], max_tokens=2, prompt_cache=cache)
    tokens, last = tokens_of(*other, MODES["text"], max_tokens=4, prompt_cache=cache)
    assert last.reused_tokens == 0 and tokens == tokens_of(*other, MODES["text"], max_tokens=4)[0]


def test_a_stopped_prefill_keeps_what_it_has(loaded):
    """Interrupted in the middle of a long prompt, a conversation used to lose all that was computed."""
    model, processor = loaded()
    cache = PromptCache()
    request = Request("Tell me of the sea. " * 5)
    batch = Batch(model)
    sequence = sequence_of(processor, request, max_tokens=2, prompt_cache=cache, prefill_step_size=10)
    batch.admit(sequence)
    batch.step()
    batch.retire(sequence)
    assert len(cache.tokens) >= 10
    tokens, last = tokens_of(model, processor, request, max_tokens=3, prompt_cache=cache)
    assert last.reused_tokens >= 10 and tokens == tokens_of(model, processor, request, max_tokens=3)[0]


def test_files_of_other_programs_are_refused(loaded, tmp_path):
    model, _ = loaded()
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"a": mx.zeros(1)}, {"format": "mlx"})
    with pytest.raises(Phi4Error, match="of this version"):
        PromptCache.load(tmp_path / "x.safetensors", model)


def test_the_command(run_command, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ("--model", checkpoint(), "-p", "Tell me of the sea.")
    for _ in range(2):  # an earlier prompt cache may be replaced
        code, out, err = run_command(command, *model, "--prompt-cache-file", "sea.safetensors")
        assert (code, out) == (0, "") and err.startswith("sea.safetensors: ") and err.endswith(" tokens\n")
    answer = run_command(generate_command, *model, "-m", 3, "--prompt-cache-file", "sea.safetensors")
    assert answer[0] == 0 and "from the cache" in answer[2]
    (tmp_path / "weights.safetensors").write_bytes((checkpoint() / "model.safetensors").read_bytes())
    before = (tmp_path / "weights.safetensors").read_bytes()
    code, _, err = run_command(command, *model, "--prompt-cache-file", "weights.safetensors")
    assert code == 2 and "--overwrite replaces it" in err and (tmp_path / "weights.safetensors").read_bytes() == before
    assert run_command(command, *model, "--prompt-cache-file", "weights.safetensors", "--overwrite")[0] == 0
