"""Speculation changes how soon an answer comes, and nothing of the answer."""

import random
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import speculating
from samples import MODES, decoded, run, sequence_of
from tolerances import near

import mlx_phi4
from mlx_phi4 import Phi4Error, PromptCache, Request, batch_generate, generate, load, stream_generate
from mlx_phi4.decoder.kv_cache import WindowKVCache
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.lookup import MOST_COMPARED, PLACES, PairIndex
from mlx_phi4.generation.speculation import FIRST_DRAFTS, REFUSAL, Speculation
from mlx_phi4.generation.step_costs import StepCosts, Wanted, shares

pytestmark = pytest.mark.cpu  # drafts change how many tokens a step has, not which come

PASSAGE = "seven two nine four one six eight three zero five two nine"
COPY = Request(f"Copy the words: {PASSAGE}")


@pytest.fixture(scope="module")
def tiny():
    return load("phi4-tiny", dtype="float32")


@pytest.fixture(scope="module")
def models(checkpoint, tmp_path_factory):
    """A model with a short table of 60 tokens, and another of its vocabulary."""
    folder = tmp_path_factory.mktemp("speculating")
    other = mlx_phi4.load(checkpoint("text"))
    return mlx_phi4.load(speculating.small_context(folder / "model", checkpoint())), other


@pytest.mark.parametrize("seed", range(4))
def test_answers_are_the_same_in_any_batch(models, seed):
    """All modes, caches, grammars, tables and sources of drafts; ``speculating.py`` is the long run."""
    rows = speculating.run_batch(seed, models, rows=6)
    for case, sequence, cut in rows:
        assert speculating.difference(case, sequence, cut) is None, case
    assert sum(sequence.accepted for _, sequence, _ in rows) > 0 < sum(sequence.rejected for _, sequence, _ in rows)


@pytest.mark.parametrize("how", ["lookup", "prediction", "model"])
def test_a_copied_passage_takes_half_the_steps(tiny, how):
    model, processor = tiny
    options = {"prediction": PASSAGE} if how == "prediction" else {"speculation": model if how == "model" else how}
    plain, fast = (sequence_of(processor, COPY, **each) for each in ({"max_tokens": 40}, options | {"max_tokens": 40}))
    steps = [decoded(model, sequence).steps for sequence in (plain, fast)]
    assert processor.tokenizer.decode(plain.tokens) == PASSAGE and fast.tokens == plain.tokens
    assert steps[1] <= 0.5 * steps[0] and fast.accepted >= 5 and fast.rejected == 0


def test_what_a_response_tells_of_drafts(tiny):
    model, processor = tiny
    given = {"prediction": PASSAGE, "logprobs": 3}
    plain = list(stream_generate(model, processor, COPY.prompt, logprobs=3))
    found = list(stream_generate(model, processor, COPY.prompt, **given))
    assert [each.token for each in found] == [each.token for each in plain]
    assert [each.generation_tokens for each in found] == list(range(1, len(found) + 1))
    assert np.allclose([each.logprob for each in found], [each.logprob for each in plain], atol=1e-3)
    assert [[token for token, _ in each.top_logprobs] for each in found] == [
        [token for token, _ in each.top_logprobs] for each in plain
    ]
    assert (plain[-1].accepted_tokens, plain[-1].rejected_tokens) == (0, 0)
    (whole,) = batch_generate(model, processor, [COPY], **given)
    assert whole.accepted_tokens == found[-1].accepted_tokens >= 8 and whole.rejected_tokens == 0


@pytest.mark.parametrize(
    "options", [{"stop": "four one"}, {"stop": "x six"}, {"max_tokens": 5}, {"min_tokens": 20, "max_tokens": 30}]
)
def test_an_end_in_the_middle_of_a_draft(tiny, options):
    """Also with an end token in the prediction's words, and a prediction that goes on behind the end."""
    model, processor = tiny
    texts = PASSAGE, f"{PASSAGE}<|end|>{PASSAGE}", f"{PASSAGE} one two three", "seven two nine one two three"
    ends = [replace(COPY, options=options | {"prediction": text, "prompt_cache": PromptCache()}) for text in texts]
    plain, *found = batch_generate(model, processor, [replace(COPY, options=options), *ends])
    longer = Request(f"{COPY.prompt} one")
    (expected,) = batch_generate(model, processor, [longer], **options)
    for request, answer in zip(ends, found, strict=True):
        assert (answer.tokens, answer.text, answer.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
        cache = request.options["prompt_cache"]
        held = answer.prompt_tokens + len(answer.tokens)
        assert len(cache.tokens) == cache.state.offset == cache.state.caches[0].offset in (held - 1, held)
        # what a wrong draft left there would be read by the next answer
        (again,) = batch_generate(model, processor, [longer], prompt_cache=cache, **options)
        assert again.tokens == expected.tokens and again.reused_tokens > 10


@pytest.mark.parametrize("how", [{"speculation": "lookup"}, {"prediction": f"{PASSAGE[:34]}7 8 {PASSAGE[34:]}"}])
def test_a_grammar_is_asked_before_a_draft_is_made(tiny, how):
    """Digits cannot come, so what holds one is cut; every place of a draft has its own mask."""
    model, processor = tiny
    options = {"regex": "([a-z]+ ){11}[a-z]+", "max_tokens": 40, "logprobs": 0}
    plain, fast = (sequence_of(processor, COPY, **options, **more) for more in ({}, how))
    steps = [decoded(model, sequence).steps for sequence in (plain, fast)]
    assert processor.tokenizer.decode(plain.tokens) == PASSAGE and fast.tokens == plain.tokens
    assert fast.accepted >= 5 and steps[1] <= 0.7 * steps[0]
    assert fast.constraint.accepts([5, 6]) == plain.constraint.accepts([5, 6]) == 0  # drafts were taken back
    beyond = sequence_of(processor, COPY, **options, prediction="7777777")
    decoded(model, beyond)
    assert beyond.tokens == plain.tokens and beyond.accepted == beyond.rejected == 0


def test_sampled_answers_keep_their_distribution(models):
    """Drafts that are right half of the time; each seed's answer is its own, and frequencies are the probabilities."""
    (model, processor), _ = models
    request, count = MODES["text"], 300
    chosen = {"temperature": 1.0, "top_k": 3, "max_tokens": 4, "seed": 11}
    (one,) = batch_generate(model, processor, [request], **chosen)
    plain = batch_generate(model, processor, [request], n=count, **chosen)
    prediction = processor.tokenizer.decode(one.tokens)
    drafted = batch_generate(model, processor, [request], n=count, prediction=prediction, **chosen)
    assert [each.tokens for each in drafted] == [each.tokens for each in plain]
    assert sum(each.accepted_tokens for each in drafted) > count / 20 < sum(each.rejected_tokens for each in drafted)
    firsts = [each.tokens[0] for each in drafted]
    first = max(set(firsts), key=firsts.count)
    forced = replace(request, options={"logit_bias": {first: 1e4}})
    # of the second token, after the first one that came most often
    (known,) = batch_generate(model, processor, [forced], max_tokens=2, logprobs=3)
    probabilities = {token: np.exp(logprob) for token, logprob in known.top_logprobs[1]}
    seconds = [each.tokens[1] for each in drafted if each.tokens[0] == first and len(each.tokens) > 1]
    for token, probability in probabilities.items():
        expected = probability / sum(probabilities.values())
        spread = (expected * (1 - expected) / len(seconds)) ** 0.5
        assert abs(seconds.count(token) / len(seconds) - expected) < 4 * spread


def test_who_does_not_draft_does_not_wait(models):
    """The next step is under way while tokens are read, also beside a row whose lookup finds nothing."""
    (model, processor), _ = models
    rows = [sequence_of(processor, request, text=False, max_tokens=20) for request in MODES.values()]
    quiet = sequence_of(processor, MODES["text"], text=False, max_tokens=20)
    quiet.draft = lambda known: []
    batch, ahead = Batch(model), []
    for row in (*rows, quiet):
        batch.admit(row)
    while batch.active:
        batch.step()
        ahead.append(batch._flight is not None)
    assert ahead == [True] * (len(ahead) - 1) + [False]


def test_drafts_stop_where_they_do_not_pay(tiny):
    """Random answers in a prompt full of pairs that occur in them: the first drafts are tried, then few."""
    model, processor = tiny
    request = Request("seven two nine four one six " * 40)
    sequence = sequence_of(
        processor, request, text=False, max_tokens=300, temperature=5.0, seed=1, speculation="lookup"
    )
    decoded(model, sequence)
    assert sequence.accepted + sequence.rejected < 40
    model_drafts = sequence_of(
        processor, request, text=False, max_tokens=300, temperature=5.0, seed=1, speculation=model
    )
    decoded(model, model_drafts)
    assert model_drafts.tokens == sequence.tokens and 1 <= model_drafts.rejected < 40


def test_the_index_finds_what_a_search_finds():
    rng = random.Random(0)
    for _ in range(60):
        index = PairIndex([rng.randrange(3) for _ in range(rng.randrange(9))])
        for _ in range(25):
            index.append(rng.randrange(3))
            for text in (index.tokens, [rng.randrange(3) for _ in range(9)]):
                assert index.find(text) == searched(index.tokens, text)
        again = PairIndex(index.tokens)
        assert (again._last, again._earlier) == (index._last, index._earlier)


def searched(tokens, text):
    """The longest agreement with the end of a text, of several the last, by looking at all places."""
    last = len(tokens) - (text is tokens)
    places = [place for place in range(1, last) if tokens[place - 1 : place + 1] == text[-2:]][::-1][:PLACES]
    best = 0, 0
    for place in places:
        most = min(MOST_COMPARED, place + 1, len(text))
        count = next((n for n in range(most) if tokens[place - n] != text[-1 - n]), most)
        best = max(best, (place + 1, count), key=lambda each: each[1])
    return best


def costs(seconds_of_a_token, rows=1, noise=()):
    """Costs as they were measured where a drafted token takes so much of a step."""
    found = StepCosts()
    for count in (0, 1, 2, 4, 8, 16):
        for number in range(9):
            found.note(rows, count, (1 + seconds_of_a_token * count) * (7 if number in noise else 1))
    return found


def test_how_far_drafts_go():
    """As far as they pay, by chances and by the cost that was measured, whatever single measurements say."""
    sure, doubtful = [0.98**n for n in range(1, 17)], [0.4**n for n in range(1, 17)]
    free, dear = costs(0.001), costs(1.5)
    assert shares([Wanted(sure)], 1, free) == [16] and shares([Wanted(sure)], 1, dear) == [0]
    assert 1 <= shares([Wanted(doubtful)], 1, costs(0.1))[0] <= 4
    assert shares([Wanted(sure)], 1, costs(0.001, noise=(1, 4, 6))) == [16]
    assert shares([Wanted(doubtful, tried=4)], 1, dear) == [4]  # the first drafts are always made
    both = shares([Wanted(doubtful), Wanted(sure)], 4, costs(0.2, rows=4))
    assert both[0] < both[1]
    assert shares([Wanted(sure)], 4, costs(0.001, rows=2)) == [16]  # another number of rows was not measured yet
    assert shares([Wanted(sure)], 1, StepCosts()) == [16] and shares([], 3, free) == []


def test_drafts_of_which_nothing_may_come_pause():
    """A grammar refused each of them, and each was a wait for the last step's tokens in vain."""
    drafts = Speculation([1, 2] * 9, lookup=True)
    drafts.read(1)
    drafts.read(2)
    for _ in range(FIRST_DRAFTS):
        assert drafts.wanted(8) is not None
        drafts.judged(0, 0)
    for number in range(REFUSAL):
        assert drafts.wanted(8) is None
        drafts.read(1 + number % 2)
    assert drafts.wanted(8).chances


def test_a_window_takes_back_what_came_last():
    """Wrong tokens in a full window displaced others, which nobody could bring back."""
    rng, kept, heads, total = random.Random(1), 4, 2, 90
    for size in (16, 23):
        kv, wrong = (mx.random.normal((1, 2 * heads, total, 8), key=mx.random.key(n)) for n in (1, 2))
        queries, places = mx.random.normal((1, heads, total, 8), key=mx.random.key(3)), mx.arange(total)
        seen = (places <= places[:, None]) & ((places < kept) | (places > places[:, None] - (size - kept)))
        expected = mx.fast.scaled_dot_product_attention(queries, kv[:, :heads], kv[:, heads:], scale=1.0, mask=seen)
        cache, start = WindowKVCache(size), 0
        while start < total:
            count = min(rng.randint(1, 9), total - start, cache.revocable)
            right = rng.randint(1, count)
            stop, mask = start + right, cache.mask(count)
            new = mx.concatenate([kv[:, :, start:stop], wrong[:, :, : count - right]], axis=2)
            keys, values = cache.update(new)
            some = queries[:, :, start : start + count]
            got = mx.fast.scaled_dot_product_attention(some, keys, values, scale=1.0, mask=mask)
            assert mx.abs(got[:, :, :right] - expected[:, :, start:stop]).max().item() < near(1e-5), (size, start)
            assert cache.trimmable(count - right)
            cache.trim(count - right)
            start = stop
        assert cache.parts[0].shape[2] == size


def test_a_long_prompt_is_taken_in_by_a_draft_model_in_pieces(models, monkeypatch):
    """Nobody waits for all of it, and drafts begin once it is in; its own table may end on the way."""
    monkeypatch.setattr("mlx_phi4.generation.draft_model.TAKEN_IN", 16)
    (model, processor), (other, other_processor) = models
    request = Request("Tell me of the sea. " * 8)
    options = {"max_tokens": 30, "rope": "long"}
    expected = sequence_of(processor, request, text=False, **options)
    decoded(model, expected)
    for draft in (model, other, (other, other_processor)):
        sequence = sequence_of(processor, request, text=False, speculation=draft, **options)
        batch = Batch(model)
        batch.admit(sequence)
        run(batch)
        assert sequence.tokens == expected.tokens and sequence.accepted + sequence.rejected > 0


def test_a_draft_model_that_cannot_see_still_drafts(models):
    (model, processor), _ = models
    for mode in ("vision", "speech"):
        plain, drafted = (
            sequence_of(processor, MODES[mode], text=False, max_tokens=12, **each)
            for each in ({}, {"speculation": model})
        )
        decoded(model, plain)
        decoded(model, drafted)
        assert drafted.tokens == plain.tokens and drafted.accepted + drafted.rejected > 0


def test_a_draft_model_that_breaks_ends_those_who_asked_it(models, monkeypatch):
    (model, processor), (other, _) = models
    rows = [sequence_of(processor, MODES["text"], max_tokens=9, speculation=each) for each in (other, None)]
    batch = Batch(model)
    for row in rows:
        batch.admit(row)
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *given: 1 / 0 if self is other else forward(self, *given))
    run(batch)
    assert rows[0].finish_reason == "error" and rows[1].finish_reason == "length"


def test_a_conversation_keeps_what_its_draft_model_saw(models):
    """The second turn's draft model takes in the new tokens only; another cache's text is another text."""
    (model, processor), (other, _) = models
    cache, talk = PromptCache(), [{"role": "user", "content": "Tell me of the sea."}]
    for turn in range(3):
        before = cache.draft
        sequence = sequence_of(processor, Request(talk), max_tokens=9, speculation=other, prompt_cache=cache)
        expected = sequence_of(processor, Request(talk), max_tokens=9)
        decoded(model, expected)
        batch = Batch(model)
        batch.admit(sequence)
        assert turn == 0 or (before.nbytes == 0 and sequence.speculation.model._sure > 10 * turn)
        run(batch)
        assert sequence.tokens == expected.tokens and cache.draft.nbytes > 0
        answer = processor.tokenizer.decode(sequence.tokens)
        talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And of the land?"}]
    cache.clear()
    assert cache.draft is None


def test_a_put_off_row_holds_nothing_of_its_draft_model(models):
    (model, processor), (other, _) = models
    row = sequence_of(processor, MODES["text"], text=False, max_tokens=30, speculation=other)
    expected = sequence_of(processor, MODES["text"], text=False, max_tokens=30)
    decoded(model, expected)
    batch = Batch(model)
    batch.admit(row)
    for _ in range(4):
        batch.step()
    assert row.speculation.nbytes > 0
    batch.preempt(row)
    assert row.nbytes == 0
    batch.admit(row)
    run(batch)
    assert row.tokens == expected.tokens and row.speculation is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculation": "x"}, "speculation is 'x', expected 'lookup', 'none' or a draft model"),
        ({"speculation": True}, "speculation is True"),
        ({"speculation": ("a", "b")}, "speculation is"),
        ({"prediction": 5}, "prediction is 5, expected a string"),
        ({"prediction": ["a"]}, "prediction is .'a'., expected a string"),
    ],
)
def test_bad_options(loaded, options, message):
    with pytest.raises(Phi4Error, match=message):
        generate(*loaded(), "x", **options)


def test_a_draft_model_of_another_vocabulary(loaded, tiny, models):
    model, processor = loaded()
    with pytest.raises(Phi4Error, match="the draft model has a vocabulary of 723 tokens, the model one of"):
        generate(model, processor, "x", speculation=tiny)
    with pytest.raises(Phi4Error, match="the draft model has a vocabulary of 723"):
        generate(model, processor, "x", speculation=tiny[0])
    _, (other, other_processor) = models
    assert other_processor.tokenizer.digest == processor.tokenizer.digest
    other_processor.tokenizer.__dict__["digest"] = "of other words"
    try:
        with pytest.raises(Phi4Error, match="ids mean other tokens"):
            generate(model, processor, "x", speculation=(other, other_processor))
    finally:
        del other_processor.tokenizer.__dict__["digest"]
