"""A loaded model belongs to no thread, and a request changes nothing that another could notice."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
from samples import MODES, tokens_of

import mlx_phi4
from mlx_phi4 import PromptCache, Request, batch_generate, stream_generate


def in_thread(function, *arguments, **options):
    """A function's result, computed in a thread that ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments, **options).result()


def test_a_model_loaded_in_one_thread_answers_in_another(checkpoint, loaded):
    """It used to end with "no Stream(cpu, 0) in current thread": text worked, pictures failed."""
    model, processor = in_thread(mlx_phi4.load, checkpoint())
    for request in MODES.values():
        expected = tokens_of(*loaded(), request, max_tokens=4)[0]
        assert in_thread(tokens_of, model, processor, request, max_tokens=4)[0] == expected
        assert tokens_of(model, processor, request, max_tokens=4)[0] == expected
        logits = in_thread(lambda request=request: np.array(model(processor.batch([request]))))
        assert logits[0, -1].argmax() == expected[0]


def test_threads_get_what_they_get_alone(checkpoint):
    """Ten at once on a model that nobody has used before, sampled and greedy, streams and batches."""
    model, processor = mlx_phi4.load(checkpoint())
    asked = [(request, {"temperature": 1.2, "seed": seed}) for request in MODES.values() for seed in (1, 2)]
    asked += [(MODES["text"], {}), (MODES["vision"], {"kv_bits": 8, "kv_group_size": 32})]
    with ThreadPoolExecutor(10) as pool:
        tasks = [
            pool.submit(tokens_of, model, processor, request, max_tokens=6, **options) for request, options in asked
        ]
        together = pool.submit(batch_generate, model, processor, list(MODES.values()), max_tokens=6)
        found = [task.result()[0] for task in tasks]
    assert found == [tokens_of(model, processor, request, max_tokens=6, **options)[0] for request, options in asked]
    alone = [tokens_of(model, processor, request, max_tokens=6)[0] for request in MODES.values()]
    assert [answer.tokens for answer in together.result()] == alone


def test_a_conversation_may_change_its_thread(loaded):
    model, processor = loaded()
    turns = [{"role": "user", "content": "Tell me of the sea."}]
    cache = PromptCache()
    in_thread(tokens_of, model, processor, Request(turns), max_tokens=4, prompt_cache=cache)
    turns += [{"role": "assistant", "content": "Wide."}, {"role": "user", "content": "Why?"}]
    expected = tokens_of(model, processor, Request(turns), max_tokens=4)[0]
    tokens, last = tokens_of(model, processor, Request(turns), max_tokens=4, prompt_cache=cache)
    assert tokens == expected and last.reused_tokens > 0


def test_streams_of_several_threads_take_turns(loaded):
    """One that is not read on does not hold the others up."""
    model, processor = loaded()
    waiting = stream_generate(model, processor, "Tell me of the sea.", max_tokens=9)
    first = next(waiting).token
    found = in_thread(tokens_of, model, processor, MODES["vision"], max_tokens=4)[0]
    assert found == tokens_of(model, processor, MODES["vision"], max_tokens=4)[0]
    rest = [response.token for response in waiting]
    assert [first, *rest] == tokens_of(model, processor, Request("Tell me of the sea."), max_tokens=9)[0]


def test_random_numbers_of_others_do_not_notice(loaded):
    """Sampling used to set MLX's one random state."""
    model, processor = loaded()
    mx.random.seed(7)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(7)
    options = {"temperature": 1.0, "top_p": 0.9, "xtc_probability": 0.5, "max_tokens": 5}
    tokens_of(model, processor, MODES["text"], seed=3, **options)
    unseeded = [tokens_of(model, processor, MODES["text"], **options)[0] for _ in range(6)]
    assert mx.random.uniform(shape=(4,)).tolist() == expected
    assert len({tuple(tokens) for tokens in unseeded}) > 1
    assert in_thread(lambda: mx.random.uniform(shape=(4,)).tolist())  # and it belongs to no dead thread


def test_peak_memory_is_not_reset_under_others_feet(loaded):
    model, processor = loaded()
    mx.reset_peak_memory()
    mx.eval(mx.zeros((64, 1024, 1024)))
    peak = mx.get_peak_memory()
    _, last = tokens_of(model, processor, MODES["text"], max_tokens=2)
    assert mx.get_peak_memory() >= peak and last.peak_memory >= peak / 1e9


def test_the_lock_is_free_after_an_answer(loaded):
    """Also after one that was closed half-way."""
    model, processor = loaded()
    stream = stream_generate(model, processor, "Hi", max_tokens=5)
    next(stream)
    stream.close()
    answered = threading.Event()
    thread = threading.Thread(
        target=lambda: tokens_of(model, processor, MODES["text"], max_tokens=2) and answered.set(), daemon=True
    )
    thread.start()
    assert answered.wait(30)


def test_a_process_may_end_with_its_thread():
    """Streams that MLX made for a thread that had just ended used to abort the process, every fourth time."""
    script = (
        "import threading\nfrom mlx_phi4 import generate, load\nmodel, processor = load('phi4-tiny')\n"
        "threads = [threading.Thread(target=generate, args=(model, processor, 'hi')) for _ in range(3)]\n"
        "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
