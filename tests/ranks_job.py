"""What the tests run as ranks: ``same`` computes the same on all, ``killed`` is a command on a rank that dies.

``undigested`` is a command that trains without proving that all else has its bits, which takes most of a short run.

ranks_job.py same RESULT FOLDER...
ranks_job.py killed WHEN COMMAND ...
ranks_job.py serving TEST...
"""

import dataclasses
import json
import os
import signal
import sys
from hashlib import blake2b
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "golden")]

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from samples import MODES  # noqa: E402

import mlx_phi4  # noqa: E402
from mlx_phi4 import Request, batch_generate  # noqa: E402
from mlx_phi4.decoder.adapters import Adapter, LinearAdapter, decoder_linears  # noqa: E402
from mlx_phi4.evaluation.speed import weight_bytes  # noqa: E402

BEFORE = 2  # tokens before the end of the short table, which a long row's answer crosses


def adapter(config, dora=False):
    """A user's adapter: some linears, ranks and scales of their own, the same on all ranks."""
    random, linears = np.random.default_rng(5), {}
    for number, (path, (outputs, inputs)) in enumerate(decoder_linears(config).items()):
        if number % 4 == 3 and not dora:
            continue  # a linear that the adapter lacks
        rank = 64
        down = mx.array(random.normal(size=(rank, inputs)).astype(np.float32) / inputs**0.5)
        up = mx.array(random.normal(size=(outputs, rank)).astype(np.float32) / rank**0.5 * 0.2)
        magnitude = mx.array(random.uniform(1, 2, outputs).astype(np.float32)) if dora else None
        linears[path] = LinearAdapter(down, up, 1.5 if number % 2 else 0.25, magnitude)
    return Adapter(linears)


def prompts():
    """Rows of all modes and of two adapters of a user's, and one that crosses 4,096 tokens."""
    mine = [Request("Tell me of the sea.", adapter=name) for name in ("mine", "dora")]
    return [*MODES.values(), *mine]


def computed(model, processor):
    """Logits of rows of all kinds, and their greedy tokens."""
    for name in ("mine", "dora"):
        model.add_adapter(name, adapter(model.config.decoder, name == "dora"), bits=8)
    logits = model(processor.batch(prompts()))
    mx.eval(logits)
    rows = batch_generate(model, processor, prompts(), max_tokens=3)
    count = model.config.decoder.rope.original_max_position_embeddings - BEFORE
    ids = np.random.default_rng(3).integers(5, 200, count).tolist()
    past = long_row(model, ids)
    return np.array(logits), [row.tokens for row in rows] + [past]


def long_row(model, ids):
    """Greedy tokens after these ids, across the end of the short table."""
    from samples import decoded

    from mlx_phi4.generation.options import GenerationOptions
    from mlx_phi4.generation.sequence import Sequence
    from mlx_phi4.inputs.processor import Row

    sequence = Sequence(Row(tuple(ids), (), "text", None), GenerationOptions(max_tokens=5))
    decoded(model, sequence)
    return sequence.tokens


def same(result, *folders):
    group = mx.distributed.init(strict=True, backend="ring")
    found = []
    for folder in folders:
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        model, processor = mlx_phi4.load(folder, group=group)
        mx.eval(model.parameters())
        loading = {"peak": mx.get_peak_memory() - before, "held": mx.get_active_memory() - before}
        read = weight_bytes(model, "vision")
        logits, tokens = computed(model, processor)
        drawn = batch_generate(model, processor, ["Tell me."], max_tokens=3, temperature=1.0)[0].tokens
        later = mlx_phi4.load(folder)[0]
        later.shard(group, head="shared")
        shared = np.array(later(processor.batch(["Tell me of the sea."])))
        plain = np.array(model(processor.batch(["Tell me of the sea."])))
        if group.rank() == 0:
            np.save(f"{result}-{len(found)}.npy", logits)
        found.append(
            {
                "loading": loading,
                "read": read,
                "digest": blake2b(logits.tobytes() + shared.tobytes()).hexdigest(),
                "tokens": tokens,
                "drawn": drawn,
                "head": float(abs(shared - plain).max()),
            }
        )
    print(json.dumps(found))


def killed(when, command, *arguments):
    """Rank 1 of a command ends in the middle, as by the system for want of memory."""
    if when in ("training", "never"):
        import mlx_phi4.training.run as run

        run.mode_digests = lambda model, processor: {"text": "not computed"}
    if os.environ["MLX_RANK"] == "1" and when != "never":
        _arm(when)
    sys.argv = ["mlx_phi4", command, *arguments]
    from mlx_phi4.__main__ import main
    from mlx_phi4.commands import cli

    cli.run(main)


def undigested(command, *arguments):
    killed("never", command, *arguments)


def _arm(when):
    def die(*given, **named):
        os.kill(os.getpid(), signal.SIGKILL)

    if when == "loading":
        import mlx_phi4.checkpoint.weights as weights

        weights.Origin.part = die
    elif when == "training":
        from mlx_phi4.training.step import Learner

        learnt, left = Learner.gradients, iter(range(3))
        Learner.gradients = lambda *given: die() if next(left) == 2 else learnt(*given)
    elif when == "writing":
        import mlx_phi4.transcription.files as files

        files.write_outputs = die
    else:
        import mlx_phi4.ranks.following as following

        step = following.Follower._step

        def dying(self, message, data):
            tokens = max(run["count"] for run in message["runs"])
            (die if (tokens > 1) == (when == "prefilling") else step)(*((self, message, data)))

        following.Follower._step = dying


def rows(folder):
    """Rows with all kinds of caches, forks, trims and media of many parts get what they get alone."""
    from cases import picture
    from test_batch import random_request

    from mlx_phi4 import distributed
    from mlx_phi4.commands import ranks
    from mlx_phi4.evaluation.scoring import score_continuations

    (model, processor), (alone, _) = ranks.loaded(folder), mlx_phi4.load(folder)
    random = np.random.default_rng(1)
    requests = [
        dataclasses.replace(request, options=own) for request, own in (random_request(random) for _ in range(12))
    ]
    requests.append(Request("Tell.", images=[picture(900, 1340)], options={"max_tokens": 3}))
    caches = [mlx_phi4.PromptCache(), mlx_phi4.PromptCache()]
    found = []
    for each, cache in zip((model, alone), caches, strict=True):
        answers = batch_generate(each, processor, requests)
        answers += batch_generate(each, processor, ["Tell me."], n=3, temperature=1.0, seed=3, max_tokens=6)
        tokens = [answer.tokens for answer in answers]
        asked = {"prompt_cache": cache, "max_tokens": 4}
        texts = [mlx_phi4.generate(each, processor, prompt, **asked) for prompt in ("Tell me.", "Tell you.")]
        scores = score_continuations(each, [([1, 2], [3]), ([1, 2], [4, 5])])
        found.append((tokens, texts, [round(score.logprob, 3) for score in scores]))
    assert found[0] == found[1], found
    distributed.leave(0)


def serving(*tests):
    """Rank 0 runs tests of the server with a model that the other ranks share with it."""
    import pytest
    import serving

    from mlx_phi4 import distributed
    from mlx_phi4.commands import ranks

    serving.SHARED["phi4-tiny"] = ranks.loaded("phi4-tiny")
    code = pytest.main(["-x", "-p", "no:cacheprovider", *tests])
    distributed.leave(int(code))
    sys.exit(code)


if __name__ == "__main__":
    import click

    try:
        jobs = {"same": same, "killed": killed, "undigested": undigested, "rows": rows, "serving": serving}
        jobs[sys.argv[1]](*sys.argv[2:])
    except click.exceptions.Exit as stop:  # a rank that followed
        sys.exit(stop.exit_code)
