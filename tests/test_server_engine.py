"""The engine thread: every answer under load is the answer alone, within a budget of memory."""

import queue
import threading
import time

import mlx.core as mx
import numpy as np
import pytest
from cases import clip, picture
from mlx.utils import tree_flatten
from samples import MODES, tokens_of

from mlx_phi4 import MediaCache, Request
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.server.budget import slice_bytes
from mlx_phi4.server.engine import Engine
from mlx_phi4.server.jobs import Job, ServerError
from mlx_phi4.server.rows import Limits, Rows


def weights(model):
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


@pytest.fixture
def start(loaded):
    """A function (limits, options) -> a running engine on the reduced random model, stopped at the end."""
    engines = []

    def begin(limits=None, **options):
        engines.append(Engine(*loaded(), limits, **options))
        engines[-1].start()
        return engines[-1]

    yield begin
    for engine in engines:
        engine.stop()


def ask(engine, processor, request, n=1, salt="", **options):
    """Submit a request; its job, and a queue of what comes."""
    came = queue.Queue()
    answers = [GenerationOptions(**options) for _ in range(n)]
    job = Job(processor.row(request), answers, came.put, salt)
    engine.submit(job)
    return job, came


def answers(came, n=1):
    """Tokens of each answer, and how each ended."""
    tokens, reasons = [[] for _ in range(n)], [None] * n
    while True:
        delivery = came.get(timeout=60)
        if delivery.token is not None:
            tokens[delivery.answer].append(delivery.token)
        reasons[delivery.answer] = delivery.error or delivery.finish_reason
        if delivery.last:
            return tokens, reasons


def test_answers_under_load_and_pressure_are_those_alone(loaded, start, monkeypatch):
    """Joins, cancels, reuse and rows that are put off: nothing shows in an answer, and the budget is kept."""
    model, processor = loaded()
    budget = 2_200_000
    engine = start(Limits(rows=8, memory=weights(model) + budget, reserve=0))
    seen, held = [], []
    step = Batch.step

    def watched(self):
        rows = engine._rows
        held.append(rows.used + rows._kept if len(rows) > 1 else 0)
        tokens = step(self)
        seen.append(sum(sequence.nbytes for sequence in rows._jobs) + rows.prefixes.nbytes + rows.media.nbytes)
        return tokens

    monkeypatch.setattr(Batch, "step", watched)
    rng = np.random.default_rng(3)
    asked = []
    for number in range(48):
        mode = list(MODES)[number % 4]
        options = {"max_tokens": int(rng.integers(1, 40))}
        if number % 3 == 0:
            options |= {"temperature": 1.1, "seed": number}
        grows = Request(f"{number % 5}" * 235, raw=True)  # into its second block of keys and values, with its answer
        asked.append((grows, options | {"max_tokens": 50}) if number % 2 else (MODES[mode], options))
    found, media = {}, MediaCache()

    def client(number):
        request, options = asked[number]
        job, came = ask(engine, processor, request, **options)
        if number % 12 == 5:
            time.sleep(0.05)
            engine.cancel(job)
            return
        found[number] = answers(came)[0][0]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    counts = engine.snapshot().counts
    assert len(found) == sum(number % 12 != 5 for number in range(48))
    for number, tokens in found.items():
        request, options = asked[number]
        assert tokens == tokens_of(model, processor, request, media_cache=media, **options)[0], number
    assert counts["preemptions"] > 0 and counts["evictions"] > 0 and engine._rows.prefixes.hits > 0, counts
    assert max(held) <= budget and max(seen) <= budget
    deadline = time.monotonic() + 10
    while not engine.idle and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.idle and not engine._rows.used
    prefixes = engine._rows.prefixes
    assert prefixes.nbytes == sum(prefix.state.nbytes for prefix in prefixes._held)


def test_figures_are_read_from_other_threads_without_walking_over_rows(loaded):
    """Rows join and leave while the metrics are asked for: a changing dictionary cannot be walked over."""
    engine = Engine(*loaded())

    class Changing(dict):
        def __iter__(self):
            raise RuntimeError("dictionary changed size during iteration")

    engine._rows._jobs = Changing()
    shown = engine.snapshot()
    assert (shown.prefix_bytes, shown.media_bytes, shown.row_bytes) == (0, 0, 0)


def test_evictions_count_what_was_let_go(loaded):
    """A look in vain is none."""
    rows = Rows(*loaded(), Limits())
    assert not rows._let_go() and rows.counts["evictions"] == 0


def test_prefixes_are_compared_with_a_prompt_one_by_one_so_there_are_not_too_many(loaded, start, monkeypatch):
    """Without a bound every step and every prompt took longer than the one before, as long as memory lasted."""
    monkeypatch.setattr("mlx_phi4.server.prefixes.MOST", 3)
    _, processor = loaded()
    engine = start()
    for number in range(6):
        answers(ask(engine, processor, Request(f"{number}" * 20, raw=True), max_tokens=2)[1])
    store = engine._rows.prefixes
    while not engine.idle:
        time.sleep(0.01)
    assert len(store) == 3 and store.nbytes == sum(prefix.state.nbytes for prefix in store._held)


@pytest.mark.parametrize(
    "request_",
    [
        Request("a", images=[picture(900, 900)]),
        Request("a", audios=[(clip(40.0), 16_000)]),
    ],
    ids=["views", "window"],
)
def test_the_reserve_holds_what_an_encoder_takes(loaded, request_):
    """Under --memory-limit a picture alone went beyond it: only the decoder's step was counted."""
    model, processor = loaded()
    row = processor.row(request_)
    ((_, item),) = row.media
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(model.embed_medium(item, row.mode))
    assert mx.get_peak_memory() - before <= slice_bytes(model.config, 4)


def test_what_begins_alike_is_computed_once_and_never_across_salts(loaded, start):
    model, processor = loaded()
    engine = start()
    request = Request("Tell me of the sea, and of all the fish that swim in it.")
    expected = tokens_of(model, processor, request, max_tokens=5)[0]
    cached = []
    for salt in ("", "", "other", ""):
        job, came = ask(engine, processor, request, salt=salt, max_tokens=5)
        assert answers(came)[0] == [expected]
        cached.append(job.cached_tokens)
    length = len(processor.row(request).ids)
    assert cached == [0, length - 1, 0, length - 1]


def test_several_answers_to_one_prompt(loaded, start):
    model, processor = loaded()
    engine = start()
    job, came = ask(engine, processor, MODES["speech"], n=3, max_tokens=4)
    assert answers(came, 3) == ([tokens_of(model, processor, MODES["speech"], max_tokens=4)[0]] * 3, ["length"] * 3)
    assert job.completion_tokens == 12


def test_what_can_never_fit_is_refused_with_both_numbers(loaded, start):
    model, processor = loaded()
    engine = start(Limits(memory=weights(model) + 1_000_000, reserve=0))
    with pytest.raises(ServerError, match=r"2100 tokens take 2\.\d MB of memory; the server has 1\.0 MB") as caught:
        ask(engine, processor, Request("x" * 2000, raw=True), max_tokens=100)
    assert caught.value.status == 400
    row = processor.row(MODES["text"])
    assert engine.room(row) + len(row.ids) <= 1024
    _, came = ask(engine, processor, MODES["text"], max_tokens=3)
    assert answers(came)[1] == ["length"]


def test_a_full_queue_says_when_to_come_back(loaded, start):
    _, processor = loaded()
    engine = start(Limits(rows=1), max_queue=2)
    jobs = [ask(engine, processor, MODES["text"], max_tokens=400)]
    while not engine.running:
        time.sleep(0.01)
    jobs += [ask(engine, processor, MODES["text"], max_tokens=5) for _ in range(2)]
    with pytest.raises(ServerError) as caught:
        ask(engine, processor, MODES["text"], max_tokens=5)
    assert caught.value.status == 429 and 1 <= caught.value.retry_after <= 600
    for job, _ in jobs:
        engine.cancel(job)


def test_a_cancelled_row_is_free_within_a_step(loaded, start):
    _, processor = loaded()
    engine = start()
    job, came = ask(engine, processor, MODES["text"], max_tokens=5000)
    came.get(timeout=30)
    engine.cancel(job)
    deadline = time.monotonic() + 5
    while engine.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.running and len(job.sequences[0].tokens) < 500


def test_a_step_that_fails_fails_its_rows_and_no_others(loaded, start, monkeypatch, caplog):
    model, processor = loaded()
    engine = start()
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", lambda *arguments: 1 / 0)
        _, came = ask(engine, processor, MODES["text"], max_tokens=5)
        _, (reason,) = answers(came)
    assert isinstance(reason, ServerError) and reason.status == 500 and engine.status == "ready"
    _, came = ask(engine, processor, MODES["text"], max_tokens=5)
    assert answers(came)[0] == [tokens_of(model, processor, MODES["text"], max_tokens=5)[0]]
    assert "Traceback" not in caplog.text


def test_stopping(loaded, start):
    _, processor = loaded()
    engine = start()
    job, came = ask(engine, processor, MODES["text"], max_tokens=5000)
    came.get(timeout=30)
    engine.drain()
    assert engine.status == "draining"
    with pytest.raises(ServerError) as caught:
        ask(engine, processor, MODES["text"], max_tokens=1)
    assert caught.value.status == 503
    engine.stop()
    _, (reason,) = answers(came)
    assert reason.status == 503 and engine.status == "failed" and job.open == 0


def test_weights_are_let_go_when_nobody_asks_and_come_back(loaded, checkpoint, start):
    import mlx_phi4

    model, processor = loaded()
    expected = tokens_of(model, processor, MODES["text"], max_tokens=4)[0]
    before = mx.get_active_memory()
    engine = Engine(
        *mlx_phi4.load(checkpoint(), lazy=False), reload=lambda: mlx_phi4.load(checkpoint()), idle_unload=0.1
    )
    engine.start()
    try:
        _, came = ask(engine, processor, MODES["text"], max_tokens=4)
        assert answers(came)[0] == [expected]
        deadline = time.monotonic() + 20
        while mx.get_active_memory() > before + weights(model) // 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert mx.get_active_memory() <= before + weights(model) // 2
        _, came = ask(engine, processor, MODES["text"], max_tokens=4)
        assert answers(came)[0] == [expected]
    finally:
        engine.stop()
