"""Rows of a batch: each joins, decodes, fails and leaves by itself, and gets what it gets alone."""

import dataclasses
import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from samples import MODES, decoded, run, sequence_of, tokens_of

import mlx_phi4
from mlx_phi4 import MediaCache, Phi4Error, PromptCache, Request, batch_generate
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.sequence import Sequence
from mlx_phi4.inputs.processor import Row
from mlx_phi4.synthetic.published import Sizes
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

pytestmark = pytest.mark.cpu  # rows alone and in batches are compared by their bits

ORIGINAL = 60  # tokens of the short table, small enough that rows cross its end


@pytest.fixture(scope="module")
def small_context(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(checkpoint(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"original_max_position_embeddings": ORIGINAL}))
    return mlx_phi4.load(folder)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """One narrow layer: twenty thousand tokens are taken in within a second."""
    sizes = Sizes(hidden=32, layers=1, heads=2, kv_heads=1, mlp=32, vocab=320)
    return mlx_phi4.load(write_random_checkpoint(tmp_path_factory.mktemp("shallow"), "text", sizes))


def alone(model, sequence):
    """The tokens of the same request in a batch of its own."""
    copy = Sequence(sequence.row, sequence.options, stop_ids=sequence.stop_ids)
    decoded(model, copy)
    return copy.tokens


def random_request(rng):
    """A request of any mode and length with any options."""
    words = "Tell me of the sea and of all that swims in it. " * 4
    mode = rng.choice(list(MODES))
    request = dataclasses.replace(MODES[mode], prompt=words[: int(rng.integers(1, 90 if mode == "text" else 20))])
    caches = [{}, {"kv_bits": 8, "kv_group_size": 32}, {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 30}]
    caches += [{"max_kv_size": int(rng.integers(16, 80))}]
    choices = [{}, {}, {"temperature": 1.2, "seed": int(rng.integers(99))}, {"repetition_penalty": 1.4}]
    choices += [{"temperature": 0.8, "seed": 1, "top_p": 0.9, "presence_penalty": 0.5}, {"min_tokens": 3}]
    options = {"max_tokens": int(rng.integers(1, 24)), "prefill_step_size": int(rng.choice([3, 17, 64, 2048]))}
    options |= {"rope": str(rng.choice(["auto", "auto", "long"]))}
    return request, options | caches[rng.integers(len(caches))] | choices[rng.integers(len(choices))]


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_join_and_leave_at_random_get_what_they_get_alone(small_context, seed):
    """All modes, both tables and the way from one to the other, any cache, any pieces, some rows cut off half-way."""
    model, processor = small_context
    rng = np.random.default_rng(seed)
    asked = [random_request(rng) for _ in range(9)]
    waiting = [sequence_of(processor, request, **options) for request, options in asked]
    batch, running, cut = Batch(model, token_budget=int(rng.choice([20, 300, 2048]))), [], set()
    while waiting or batch.active:
        while waiting and (not batch.active or rng.random() < 0.4):
            running.append(waiting.pop())
            batch.admit(running[-1])
        if rng.random() < 0.04 and batch.sequences:
            chosen = batch.sequences[int(rng.integers(len(batch.sequences)))]
            batch.retire(chosen)
            cut.add(chosen)
        batch.step()
    for number, sequence in enumerate(running):
        expected = alone(model, sequence)
        got = sequence.tokens
        assert got == (expected[: len(got)] if sequence in cut else expected), f"seed {seed}, row {number}"
        assert sequence.finish_reason == ("cancelled" if sequence in cut else sequence.finish_reason)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rows_stay_close_to_alone(checkpoint, dtype):
    """Kernels change with the number of tokens; what moves is within the dtype."""
    model, processor = mlx_phi4.load(checkpoint(), dtype=dtype)
    requests = [MODES["text"], MODES["speech"], *[Request("A few words more. " * n) for n in (1, 3, 9)]]
    together = batch_generate(model, processor, requests, max_tokens=1, logprobs=0)
    for request, answer in zip(requests, together, strict=True):
        (one,) = batch_generate(model, processor, [request], max_tokens=1, logprobs=5)
        close = dict(one.top_logprobs[0])
        assert answer.tokens[0] in close and close[answer.tokens[0]] == pytest.approx(answer.logprob[0], abs=0.15)


def test_rows_leave_the_batch_as_they_end(loaded):
    model, processor = loaded()
    limits = [3, 9, 2, 5, 1, 4, 9, 2]
    requests = list(MODES.values()) * 2
    rows = [sequence_of(processor, r, text=False, max_tokens=n) for r, n in zip(requests, limits, strict=True)]
    batch = Batch(model)
    for row in rows:
        batch.admit(row)
    seen = [[token.sequence for token in tokens] for tokens in run(batch)]
    assert [sum(row in step for step in seen) for row in rows] == limits
    assert batch.steps == max(limits) and not batch.sequences


def test_rows_with_their_own_options_get_what_they_get_alone(loaded):
    model, processor = loaded()
    own = [{"temperature": 1.2, "seed": 3}, {"max_tokens": 3}, {"repetition_penalty": 1.4}, {"min_tokens": 2}]
    requests = [dataclasses.replace(r, options=o) for r, o in zip(MODES.values(), own, strict=True)]
    for answer, request in zip(batch_generate(model, processor, requests, max_tokens=7), requests, strict=True):
        options = {"max_tokens": 7} | request.options
        assert answer.tokens == tokens_of(model, processor, request, **options)[0]


def test_no_row_waits_longer_than_one_piece(shallow):
    """Four rows decode while 20,000 tokens come in, and while one of them is computed again beyond 4,096."""
    model, _ = shallow
    options = {"prefill_step_size": 512}
    rows = [Sequence(Row(tuple(range(20 + i))), GenerationOptions(max_tokens=80, **options)) for i in range(3)]
    crossing = Sequence(Row((7,) * 4090), GenerationOptions(max_tokens=80, **options))
    batch = Batch(model)
    for row in (*rows, crossing):
        batch.admit(row)
    while not crossing.tokens:
        batch.step()
    long = Sequence(Row(tuple(i % 300 for i in range(20_000))), GenerationOptions(max_tokens=2, **options))
    batch.admit(long)
    steps = [[token.sequence for token in tokens] for tokens in run(batch)]
    taken_in = next(number for number, step in enumerate(steps) if long in step)
    assert taken_in >= 20_000 // 512
    for row in rows:
        present = [number for number, step in enumerate(steps) if row in step]
        assert present == list(range(len(present))) and len(present) + 1 >= 40
    gaps = np.diff([number for number, step in enumerate(steps) if crossing in step])
    # its own 4,096 tokens take 9 pieces, in turns with those of the long prompt
    assert sorted(gaps)[-2] == 1 and 9 <= max(gaps) <= 20 and crossing.finish_reason == "length"


def test_rows_do_not_wait_for_all_of_a_picture(loaded):
    """With ``media_slices`` a picture is encoded a few views a step; the answer is the same."""
    model, processor = loaded()
    views = np.zeros((1300, 1300, 3), np.uint8)  # nine crops and the global view
    expected = tokens_of(model, processor, Request("What?", images=[views]), max_tokens=2)[0]
    batch = Batch(model, media_slices=1)
    text = sequence_of(processor, MODES["text"], text=False, max_tokens=30)
    picture = sequence_of(processor, Request("What?", images=[views]), text=False, max_tokens=2)
    batch.admit(text)
    batch.step()
    batch.admit(picture)
    steps = [[token.sequence for token in tokens] for tokens in run(batch)]
    first = next(number for number, step in enumerate(steps) if picture in step)
    assert first >= 10 // 4 and all(text in step for step in steps[:first])
    assert picture.tokens == expected


def test_a_short_prompt_does_not_wait_for_a_long_one(shallow):
    model, _ = shallow
    batch = Batch(model)
    long = Sequence(Row((5,) * 6000), GenerationOptions(max_tokens=1, prefill_step_size=256))
    short = Sequence(Row((5,) * 30), GenerationOptions(max_tokens=1, prefill_step_size=256))
    batch.admit(long)
    batch.step()
    batch.admit(short)
    steps = [[token.sequence for token in tokens] for tokens in run(batch)]
    assert next(number for number, step in enumerate(steps) if short in step) <= 3 < len(steps) - 10


def test_several_answers_to_one_prompt_are_prefilled_once(loaded):
    model, processor = loaded()
    request = MODES["vision"]
    options = {"temperature": 1.3, "seed": 11, "max_tokens": 6}
    answers = batch_generate(model, processor, [request, MODES["text"]], n=3, **options)
    assert len(answers) == 6 and len({tuple(answer.tokens) for answer in answers[:3]}) > 1
    for i, answer in enumerate(answers):
        asked = request if i < 3 else MODES["text"]
        assert answer.tokens == tokens_of(model, processor, asked, **(options | {"seed": 11 + i % 3}))[0]
    batch, first = Batch(model), sequence_of(processor, request, text=False, max_tokens=3)
    batch.admit(first, *(Sequence(first.row, first.options) for _ in range(4)))
    run(batch)
    assert batch.steps == 3  # one for the prompt, two for all answers


def test_the_first_of_several_answers_may_leave_before_its_prompt_is_in(loaded):
    model, processor = loaded()
    first = sequence_of(processor, MODES["text"], text=False, max_tokens=4, prefill_step_size=2)
    others = [Sequence(first.row, first.options) for _ in range(2)]
    batch = Batch(model)
    batch.admit(first, *others)
    batch.step()
    batch.retire(first)
    run(batch)
    assert first.tokens == [] and [each.tokens for each in others] == [alone(model, first)] * 2


def test_one_prompt_cache_serves_all_rows_of_a_batch(loaded):
    """It used to be refused for more than one sequence."""
    model, processor = loaded()
    cache = PromptCache()
    talk = [{"role": "user", "content": "Tell me of the sea."}]
    tokens_of(model, processor, Request(talk), max_tokens=3, prompt_cache=cache)
    asked = [
        [*talk, {"role": "assistant", "content": "Wide."}, {"role": "user", "content": q}] for q in ("Why?", "How?")
    ]
    answers = batch_generate(model, processor, [Request(turns) for turns in asked], max_tokens=4, prompt_cache=cache)
    for turns, answer in zip(asked, answers, strict=True):
        assert answer.tokens == tokens_of(model, processor, Request(turns), max_tokens=4)[0]
        assert answer.reused_tokens > 5
    assert cache.tokens[: len(processor(asked[0]).rows[0].ids)] == list(processor(asked[0]).rows[0].ids)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.1, "seed": 5},
        {"repetition_penalty": 1.5},
        {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 24},
        {"max_kv_size": 30},
    ],
)
@pytest.mark.parametrize("mode", ["text", "speech"])
def test_drafts_change_the_steps_and_not_the_tokens(small_context, mode, options):
    """Right and wrong drafts, up to the table's end and beyond it, beside a row that has none."""
    model, processor = small_context
    options = options | {"max_tokens": 70}
    plain = sequence_of(processor, MODES[mode], text=False, **options)
    decoded(model, plain)

    def draft(known):
        future = plain.known[len(known) : len(known) + 4]
        return [*future[:3], *(token ^ 1 for token in future[3:])]  # the fourth is wrong

    drafted = Sequence(plain.row, plain.options, draft=draft)
    other = sequence_of(processor, MODES["vision"], text=False, max_tokens=9)
    expected = alone(model, other)
    batch = decoded(model, drafted, other)
    assert drafted.tokens == plain.tokens and other.tokens == expected
    assert batch.steps < (70 if "max_kv_size" in options else 45)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.1, "seed": 5}, {"repetition_penalty": 1.5}])
def test_nobody_can_tell_that_a_row_was_put_off(small_context, options):
    """Taken out while it prefills, decodes, or has passed the table's end, and computed again later."""
    model, processor = small_context
    rng = np.random.default_rng(len(options))
    rows = [sequence_of(processor, request, max_tokens=60, text=False, **options) for request in MODES.values()]
    expected = [alone(model, row) for row in rows]
    batch, put_off = Batch(model), []
    for row in rows:
        batch.admit(row)
    while batch.active or put_off:
        if batch.sequences and rng.random() < 0.1:
            put_off.append(batch.sequences[int(rng.integers(len(batch.sequences)))])
            batch.preempt(put_off[-1])
            assert put_off[-1].nbytes == 0
        if put_off and rng.random() < 0.3:
            batch.admit(put_off.pop(0))
        batch.step()
    assert [row.tokens for row in rows] == expected


class OnlyEven:
    """Every other token; complains when it is told of any other."""

    def __init__(self, vocabulary, broken_at=None):
        self.mask = np.arange(vocabulary) % 2 == 0
        self.told, self.broken_at = [], broken_at

    def allowed(self):
        if len(self.told) == self.broken_at:
            raise RuntimeError("a grammar that cannot go on")
        return self.mask

    def advance(self, token):
        assert token % 2 == 0
        self.told.append(token)


def test_a_constraint_holds_its_row_and_no_other(loaded):
    model, processor = loaded()
    constraint = OnlyEven(model.config.decoder.vocab_size)
    free = sequence_of(processor, MODES["vision"], text=False, max_tokens=8)
    held = sequence_of(processor, MODES["text"], text=False, max_tokens=8)
    held.constraint = constraint
    expected = alone(model, free)
    batch = decoded(model, free, held)
    assert constraint.told == held.tokens and len(held.tokens) == 8
    assert free.tokens == expected and batch.steps == 8


def breaks(*args, **kwargs):
    raise RuntimeError("broken on purpose")


@pytest.fixture
def no_medium_in(loaded, monkeypatch):
    """A function (mode): media of requests in this mode cannot be encoded."""
    kind = type(loaded()[0])
    embed = kind.embed_slices

    def install(mode):
        monkeypatch.setattr(
            kind, "embed_slices", lambda self, item, of: breaks() if of == mode else embed(self, item, of)
        )

    return install


@pytest.mark.parametrize("what", ["sampler", "constraint", "medium", "text", "draft", "wrong draft"])
def test_what_breaks_in_one_row_ends_that_row_alone(loaded, no_medium_in, what):
    model, processor = loaded()
    rows = {mode: sequence_of(processor, request, max_tokens=6) for mode, request in MODES.items()}
    expected = {mode: tokens_of(model, processor, request, max_tokens=6)[0] for mode, request in MODES.items()}
    broken = "vision" if what == "medium" else "text"
    batch = Batch(model)
    for row in rows.values():
        batch.admit(row)
    if what == "sampler":
        rows[broken].options = GenerationOptions(max_tokens=6, temperature=1.0)
        rows[broken].sampler = breaks
    elif what == "constraint":
        rows[broken].constraint = OnlyEven(model.config.decoder.vocab_size, broken_at=2)
    elif what == "medium":
        no_medium_in("vision")
    elif what == "text":
        rows[broken].text.add = breaks
    else:
        rows[broken].draft = breaks if what == "draft" else lambda known: [10**6]
    last = {token.sequence: token for tokens in run(batch) for token in tokens}
    ended = last[rows[broken]]
    assert (
        ended.finish_reason == "error"
        and isinstance(ended.error, Phi4Error if what == "wrong draft" else RuntimeError)
        and ended.token is None
    )
    for mode, row in rows.items():
        assert mode == broken or row.tokens == expected[mode]


def test_batch_generate_gives_the_error_in_the_rows_place(loaded, no_medium_in):
    model, processor = loaded()
    no_medium_in("speech")
    answers = batch_generate(model, processor, list(MODES.values()), max_tokens=3)
    assert [answer.finish_reason == "error" for answer in answers] == [mode == "speech" for mode in MODES]
    assert "on purpose" in str(answers[2].error) and answers[2].tokens == []


def test_what_a_batch_refuses(loaded):
    """One clear error for the one request; the rows that are there go on."""
    model, processor = loaded()
    batch, good = Batch(model), sequence_of(processor, MODES["text"], max_tokens=5)
    batch.admit(good)
    window = model.config.decoder.max_position_embeddings
    row = processor.row(MODES["text"])
    for bad, message in (
        (Sequence(dataclasses.replace(row, adapter="music")), "no adapter 'music'"),
        (Sequence(row, GenerationOptions(max_tokens=window)), "exceed the context"),
        (Sequence(Row(())), "prompt is empty"),
        (Sequence(row, GenerationOptions(kv_bits=8)), "kv_group_size is 64"),
        (good, "admitted before"),
    ):
        with pytest.raises(Phi4Error, match=message):
            batch.admit(bad)
    run(batch)
    assert good.tokens == tokens_of(model, processor, MODES["text"], max_tokens=5)[0]
    batch.close()
    with pytest.raises(Phi4Error, match="closed"):
        batch.admit(Sequence(row))
    with pytest.raises(Phi4Error, match="adapter is 'music', this model has base, speech, vision"):
        processor.row(Request("x", adapter="music"))


def test_a_request_names_its_adapter(loaded):
    """Text through the vision adapter, and a picture through none: each row its own."""
    model, processor = loaded()
    requests = [Request("What?", adapter=name) for name in (None, "base", "vision", "speech")]
    answers = batch_generate(model, processor, requests, max_tokens=4, logprobs=0)
    assert answers[0].logprob == answers[1].logprob != answers[2].logprob != answers[3].logprob
    assert [answer.mode for answer in answers] == ["text"] * 4


def test_a_step_that_breaks_closes_the_batch(loaded, monkeypatch):
    model, processor = loaded()
    batch, cache = Batch(model), PromptCache()
    row = sequence_of(processor, MODES["text"], max_tokens=5, prompt_cache=cache)
    batch.admit(row)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="on purpose"):
        patch.setattr(type(model), "forward", breaks)
        batch.step()
    assert not batch.active and cache.state is None and row.finish_reason == "cancelled"
    again = sequence_of(processor, MODES["text"], max_tokens=5)
    decoded(model, again)
    assert again.tokens == tokens_of(model, processor, MODES["text"], max_tokens=5)[0]


def test_memory_of_a_batch_is_that_of_its_rows(loaded):
    """No rectangle of padding: one long row does not make the others as long."""
    model, processor = loaded("text")
    rng = np.random.default_rng(0)
    rows = [Row(tuple(rng.integers(0, 250, length).tolist())) for length in (1500, 30, 40, 50, 60, 70, 80, 90)]
    model(processor("x"))

    def peak(*some):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        batch = Batch(model)
        for row in some:
            batch.admit(Sequence(row, GenerationOptions(max_tokens=4)))
        run(batch)
        return mx.get_peak_memory() - before

    peak(rows[0])
    apart = sum(peak(row) for row in rows)
    assert peak(*rows) <= 1.1 * apart


def test_memory_does_not_grow_with_the_number_of_requests(loaded):
    """``benchmarks/memory.py`` counts a thousand."""
    model, processor = loaded()
    media = MediaCache()

    def active():
        batch_generate(model, processor, list(MODES.values()) * 2, max_tokens=3, media_cache=media)
        return mx.get_active_memory()

    active()
    first = active()
    for _ in range(12):
        last = active()
    assert last <= first


def test_a_wrong_draft_packs_no_keys_too_early(loaded):
    """Keys that a wrong token pushed over ``quantized_kv_start`` used to be packed, and kept for the right ones."""
    model, processor = loaded()
    row = processor.row(MODES["text"])
    options = {"max_tokens": 12, "kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": len(row.ids) + 4}
    plain = Sequence(row, GenerationOptions(logprobs=0, **options))
    logprobs = {}
    for name, draft in (("plain", None), ("drafted", lambda known: [*plain.known[len(known) :][:1], 5, 6])):
        sequence = Sequence(row, plain.options, draft=draft) if draft else plain
        batch = Batch(model)
        batch.admit(sequence)
        logprobs[name] = [token.logprob for tokens in run(batch) for token in tokens]
    assert np.allclose(logprobs["plain"], logprobs["drafted"], atol=1e-4)


def test_nothing_is_held_once_all_rows_have_ended(loaded):
    """The look-ahead step held the keys and values of a row that a stop token had ended."""
    model, processor = loaded()
    sequence = sequence_of(processor, MODES["text"], text=False, max_tokens=50)
    batch = Batch(model)
    batch.admit(sequence)
    batch.step()
    batch.step()
    batch.retire(sequence)
    assert not batch.active and batch._flight is None


def test_requests_with_prompt_caches_of_their_own(loaded):
    model, processor = loaded()
    caches = [PromptCache(), PromptCache()]
    requests = [Request("Tell me of the sea.", options={"prompt_cache": cache}) for cache in caches]
    batch_generate(model, processor, requests, max_tokens=3)
    assert len(caches[0].tokens) == len(caches[1].tokens) > 10


def test_progress_that_fails_ends_its_row_alone(loaded):
    model, processor = loaded()
    rows = [sequence_of(processor, MODES["text"], max_tokens=3, progress=breaks)]
    rows.append(sequence_of(processor, MODES["vision"], max_tokens=3))
    expected = tokens_of(model, processor, MODES["vision"], max_tokens=3)[0]
    batch = Batch(model)
    for row in rows:
        batch.admit(row)
    run(batch)
    assert rows[0].finish_reason == "error" and rows[1].tokens == expected


def test_a_constraint_that_allows_nothing_ends_its_row(loaded):
    model, processor = loaded()
    for mask in (np.zeros(model.config.decoder.vocab_size, bool), np.ones(1, bool)):
        sequence = sequence_of(processor, MODES["text"], max_tokens=3)
        sequence.constraint = OnlyEven(1)
        sequence.constraint.mask = mask
        batch = Batch(model)
        batch.admit(sequence)
        last = [token for tokens in run(batch) for token in tokens][-1]
        assert isinstance(last.error, Phi4Error) and "constraint allows" in str(last.error)
