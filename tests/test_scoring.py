"""Log-probabilities of texts equal those of plain forward passes, and lm-eval-harness gets them."""

import json
import shutil
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

import mlx_phi4
from mlx_phi4 import Inputs, Mode, Phi4Error
from mlx_phi4.commands.evaluate import command
from mlx_phi4.evaluation import scoring
from mlx_phi4.evaluation.scoring import score_continuations

ORIGINAL = 20  # tokens of the original context in small_context
QUESTION = [11, 12, 13, 14, 15, 16, 17]
PAIRS = [
    (QUESTION, [21]),
    (QUESTION, [22]),
    (QUESTION, [23, 24, 25]),
    ([7], [8, 9]),
    (list(range(30, 50)), [5, 6, 7, 8, 9]),
    (QUESTION, []),
    ([40, 41], list(range(50, 71))),
    (QUESTION, [22]),
    (QUESTION, list(range(60, 80))),  # the same context, but so long that all of it uses the other table
]


@pytest.fixture(scope="module")
def small_context(checkpoint, tmp_path_factory):
    """(model, processor) whose original context is short, so that some rows use the long RoPE table."""
    folder = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(checkpoint("text"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["original_max_position_embeddings"] = ORIGINAL
    (folder / "config.json").write_text(json.dumps(config))
    return mlx_phi4.load(folder)


def forward(model, context, continuation):
    """Log-probability and greediness by one forward pass over everything, alone."""
    ids = [*context, *continuation]
    logits = model(Inputs(mx.array([ids[:-1] or ids]), (0,), (Mode.TEXT,)))[0]
    logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), np.float64)
    places = range(len(context) - 1, len(ids) - 1)
    wanted = [logprobs[place, ids[place + 1]] for place in places]
    return sum(wanted), all(logprobs[place].argmax() == ids[place + 1] for place in places)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("columns", [4, 2048])
def test_scores_are_those_of_each_row_alone(batch_size, columns, small_context, monkeypatch):
    """Also where rows of a batch use different RoPE tables, and where contexts and logits come in pieces."""
    model, _ = small_context
    monkeypatch.setattr(scoring, "STEP_TOKENS", columns)
    monkeypatch.setattr(scoring, "POSITIONS", columns)
    lengths = [len(context) + len(continuation) - 1 for context, continuation in PAIRS]
    assert min(lengths) < ORIGINAL < max(lengths)
    scores = score_continuations(model, PAIRS, batch_size=batch_size)
    for score, (context, continuation) in zip(scores, PAIRS, strict=True):
        logprob, greedy = forward(model, context, continuation)
        assert score.logprob == pytest.approx(logprob, abs=2e-4)
        assert score.greedy == greedy
    assert scores[5] == scoring.Likelihood(0.0, True)  # nothing is certain, and comes by itself
    assert scores[1].logprob == scores[7].logprob


def test_scores_in_text_mode_pass_no_adapter(loaded):
    """The multimodal model's base is the text model."""
    multimodal, text = (score_continuations(loaded(layout)[0], PAIRS) for layout in ("microsoft", "text"))
    assert [score.logprob for score in multimodal] == [score.logprob for score in text]


def test_what_the_model_would_say_is_greedy(loaded):
    model, processor = loaded()
    context = processor("Tell me of the sea.").input_ids[0].tolist()
    (answer,) = mlx_phi4.batch_generate(model, processor, [mlx_phi4.Request("Tell me of the sea.")], max_tokens=6)
    other = [*answer.tokens[:-1], answer.tokens[-1] - 1]
    own, changed = score_continuations(model, [(context, answer.tokens), (context, other)])
    assert own.greedy and not changed.greedy and own.logprob > changed.logprob


def test_choices_of_a_question_share_its_computation(loaded, monkeypatch):
    model, _ = loaded("text")
    seen = []
    embed = model.model.embed_tokens

    class Counting:
        def __call__(self, ids):
            seen.append(ids.shape)
            return embed(ids)

        def as_linear(self, h):
            return embed.as_linear(h)

    monkeypatch.setitem(model.model, "embed_tokens", Counting())  # modules are dictionaries
    score_continuations(model, [(QUESTION, [choice, 9]) for choice in range(20, 24)])
    assert seen == [(len(QUESTION),), (4,)]


def test_scores_need_a_context_and_room(loaded):
    model, _ = loaded("text")
    assert score_continuations(model, []) == []
    with pytest.raises(Phi4Error, match="without a context"):
        score_continuations(model, [([], [1])])
    with pytest.raises(Phi4Error, match="batch_size is 0"):
        score_continuations(model, [([1], [1])], batch_size=0)
    window = model.config.decoder.max_position_embeddings
    with pytest.raises(Phi4Error, match=f"{window + 1} tokens to score; the context holds {window}"):
        score_continuations(model, [([1] * (window + 1), [1])])


def test_damaged_weights_are_not_scored_as_numbers(small_context, monkeypatch):
    model, _ = small_context
    monkeypatch.setitem(model.model.norm, "weight", model.model.norm.weight * float("nan"))
    with pytest.raises(Phi4Error, match="damaged"):
        score_continuations(model, PAIRS)


# what follows asks through lm-eval-harness itself, extra lm-eval


@pytest.fixture
def lm(loaded):
    """A function (keywords) -> the class that lm-eval knows as mlx_phi4, around the random model."""
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    from lm_eval.api.registry import get_model

    import mlx_phi4.evaluation.lm_eval_model  # noqa: F401, which registers it

    def make(**options):
        model, processor = loaded()
        return get_model("mlx_phi4")(model, processor, **options)

    return make


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def test_lm_eval_loglikelihoods(lm, loaded):
    """Contexts may be empty, and their last space belongs to the continuation."""
    model, processor = loaded()
    texts = [("The sea is", " blue"), ("The sea is ", "deep and wide"), ("", "The sea"), ("The sea is", " blue")]
    encode, start = processor.tokenizer.encode, processor.tokenizer.special["<|endoftext|>"].id
    answers = lm(batch_size=3).loglikelihood(instances("loglikelihood", *texts), disable_tqdm=True)
    for (context, continuation), (logprob, greedy) in zip(texts, answers, strict=True):
        known = encode(context.rstrip()) if context else [start]
        whole = encode(context + continuation) if context else [start, *encode(continuation)]
        expected = forward(model, known, whole[len(known) :])
        assert (logprob, greedy) == (pytest.approx(expected[0], abs=2e-4), expected[1])


def test_lm_eval_contexts_lose_their_beginning_where_they_are_too_long(lm, loaded):
    model, processor = loaded()
    context, continuation = "one two three four five six", " seven"
    known = processor.tokenizer.encode(context)
    rest = processor.tokenizer.encode(context + continuation)[len(known) :]
    short = lm(max_length=len(rest) + 3)
    ((logprob, _),) = short.loglikelihood(instances("loglikelihood", (context, continuation)), disable_tqdm=True)
    assert logprob == pytest.approx(forward(model, known[-4:], rest)[0], abs=2e-4)
    with pytest.raises(Phi4Error, match="max_length is 1"):
        lm(max_length=1).loglikelihood(instances("loglikelihood", ("a", " long continuation")), disable_tqdm=True)
    with pytest.raises(Phi4Error, match="max_length is 10000000"):
        lm(max_length=10_000_000)


def test_lm_eval_documents_are_read_in_windows(lm, loaded):
    """Every token is predicted once; with one window it is the whole document after <|endoftext|>."""
    model, processor = loaded()
    texts = ["The sea is blue, deep and wide.", "Short.", ""]
    ids = [processor.tokenizer.encode(text) for text in texts]
    start = processor.tokenizer.special["<|endoftext|>"].id
    asked = instances("loglikelihood_rolling", *[(text,) for text in texts])
    whole = lm().loglikelihood_rolling(asked, disable_tqdm=True)
    assert whole[:2] == [pytest.approx(forward(model, [start], row)[0], abs=5e-4) for row in ids[:2]]
    assert whole[2] == 0
    size = len(ids[0]) - 3
    windows = lm(max_length=size).loglikelihood_rolling(asked, disable_tqdm=True)
    first, last = forward(model, [start], ids[0][:size])[0], forward(model, ids[0][-size - 1 : -3], ids[0][-3:])[0]
    assert windows[0] == pytest.approx(first + last, abs=5e-4)
    assert windows[1] == pytest.approx(whole[1], abs=2e-4)


def test_lm_eval_answers_are_those_of_generate(lm, loaded):
    model, processor = loaded()
    contexts = ["The sea is", "A much longer context, so that the paddings differ", "Rivers"]
    plain = [mlx_phi4.generate(model, processor, context, raw=True, max_tokens=12) for context in contexts]
    asked = instances("generate_until", *[(context, {"until": ["\0"], "max_gen_toks": 12}) for context in contexts])
    assert lm(batch_size=2).generate_until(asked, disable_tqdm=True) == plain
    stop = plain[0][len(plain[0]) // 2 :]
    asked = instances("generate_until", (contexts[0], {"until": stop, "max_gen_toks": 12, "do_sample": False}))
    assert lm().generate_until(asked, disable_tqdm=True) == [plain[0].partition(stop)[0]]


def test_lm_eval_samples_differ_and_can_be_had_again(lm):
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = instances("generate_until", *[("The sea", options)] * 4)
    first = lm().generate_until(asked, disable_tqdm=True)
    assert first == lm().generate_until(asked, disable_tqdm=True)
    assert first != lm(seed=100).generate_until(asked, disable_tqdm=True)
    assert len(set(first)) > 1


def test_lm_eval_options_that_would_be_ignored_are_refused(lm):
    with pytest.raises(Phi4Error, match="generation_kwargs have num_beams"):
        lm().generate_until(instances("generate_until", ("a", {"num_beams": 4})), disable_tqdm=True)
    with pytest.raises(Phi4Error, match="batch_size is 'auto'"):
        lm(batch_size="auto")
    with pytest.raises(Phi4Error, match="device"):
        lm(device="cuda")


def test_lm_eval_chat_prompts_are_the_processors(lm, loaded):
    _, processor = loaded()
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."}]
    text = lm().apply_chat_template(history)
    assert lm().tok_encode(text) == processor(history).input_ids[0].tolist()
    begun = [*history, {"role": "assistant", "content": "The river is"}]
    assert lm().apply_chat_template(begun, add_generation_prompt=False) == f"{text}The river is"
    assert lm().chat_template(True) and lm().tokenizer_name


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with two tasks that need no download; lm-eval knows these alone, as reading all of its own is slow."""
    lm_eval_tasks = pytest.importorskip("lm_eval.tasks", reason="needs the extra lm-eval")
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", partial(lm_eval_tasks.TaskManager, include_defaults=False))
    rows = [{"q": f"The sea {n} is", "choices": [" blue", " red"], "answer": n % 2} for n in range(4)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared = (
        "dataset_path: json\ntest_split: train\n"
        f"dataset_kwargs:\n  data_files: {tmp_path / 'data.jsonl'}\n  cache_dir: {tmp_path / 'cache'}\n"
    )
    (tmp_path / "choose.yaml").write_text(
        f"task: sea_choice\n{shared}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\n"
        "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    (tmp_path / "write.yaml").write_text(
        f"task: sea_write\n{shared}output_type: generate_until\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: blue\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 4\nmetric_list:\n  - metric: exact_match\n"
    )
    return tmp_path


def test_the_command_runs_tasks(tasks, checkpoint, loaded, run_command):
    options = ("--include-path", tasks, "--model", checkpoint(), "--limit", 3, "--json", tasks / "results.json")
    code, out, _ = run_command(command, "text", "--tasks", "sea_choice, sea_write", *options)
    assert code == 0
    assert "sea_choice" in out and "exact_match" in out
    results = json.loads((tasks / "results.json").read_text(), parse_constant=pytest.fail)
    model, processor = loaded()
    right = 0
    for n in range(3):
        known = processor.tokenizer.encode(f"The sea {n} is")
        whole = [processor.tokenizer.encode(f"The sea {n} is {colour}") for colour in ("blue", "red")]
        blue, red = (forward(model, known, ids[len(known) :])[0] for ids in whole)
        right += (red > blue) == (n % 2)
    assert results["results"]["sea_choice"]["acc,none"] == pytest.approx(right / 3)


def test_unknown_tasks_are_named(tasks, checkpoint, run_command):
    arguments = ("--tasks", "sea_choice,sea_gone", "--include-path", tasks, "--model", checkpoint())
    code, _, err = run_command(command, "text", *arguments)
    assert code == 2 and "no task called sea_gone" in err
