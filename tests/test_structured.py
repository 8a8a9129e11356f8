"""Answers that keep to a form: token by token, beside other rows, and in every way that one can be asked for."""

import enum
import gc
import json
import traceback
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pydantic
import pytest
from random_schemas import RandomSchemas, fault
from samples import MODES, decoded, run, sequence_of, tokens_of

from mlx_phi4 import Chat, Phi4Error, Request, batch_generate, generate, load
from mlx_phi4.generation import structured
from mlx_phi4.generation.batch import Batch
from mlx_phi4.generation.grammars import Grammar
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.pool import AnswerPool, answer_each
from mlx_phi4.generation.structured import compiled, token_table
from mlx_phi4.generation.thoughts import Thoughts
from mlx_phi4.inputs.tokenizer import Tokenizer
from mlx_phi4.synthetic.published import SIZES
from mlx_phi4.synthetic.published_tokenizer import ADDED_TOKENS, PUBLISHED_VOCAB, tokenizer

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "way": {"enum": ["up", "down"]}},
    "required": ["x", "way"],
    "additionalProperties": False,
}
QUESTION = "What is the capital of France?"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Ball(pydantic.BaseModel):
    colour: Colour
    size: int = pydantic.Field(ge=1, le=9)


@pytest.fixture(scope="module")
def tiny():
    return load("phi4-tiny")


def constraint_of(processor, **option):
    return compiled(GenerationOptions(**option).grammar, processor.tokenizer).constraint()


def now(constraint):
    """The ids that may come."""
    return set(np.flatnonzero(constraint.allowed()).tolist())


def complete(constraint, processor, text):
    """Whether a text, special tokens in it included, can come from here on and be the end."""
    ids = [*processor.tokenizer.encode(text), min(processor.tokenizer.stop_ids)]
    return constraint.accepts(ids) == len(ids)


# the table


def test_the_table_has_every_id_of_the_published_vocabulary(tmp_path):
    """Added ids are sparse: a table as long as the file's list of entries ends before the tokens of tools."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer(SIZES["full"])), encoding="utf-8")
    config = SimpleNamespace(decoder=SimpleNamespace(vocab_size=PUBLISHED_VOCAB), multimodal=False)
    published = Tokenizer(tmp_path, config)
    table, special = token_table(published), {id for id, *_ in ADDED_TOKENS}
    assert table.size == table.library.vocab_size == PUBLISHED_VOCAB
    assert set(table.library.eos_tokens) == published.stop_ids == {199_999, 200_020}
    assert all(table.library.is_special_token(id) for id in special)
    text = compiled(Grammar("regex", "(.|\n)*"), published).constraint()
    entries = {id for id, word in enumerate(published.all_bytes()) if word}
    assert now(text) <= (entries - special) | published.stop_ids and len(now(text)) > 200
    for name in ("<|tool_call|>", "<[200025]>"):
        lazily = compiled(Grammar("lark", f'start: TEXT {name} "x"\nTEXT: /(.|\\n)*/'), published).constraint()
        assert now(lazily) == now(text) - published.stop_ids | {200_025}
        lazily.advance(200_025)
        assert now(lazily) == set(published.encode("x"))


def test_bytes_of_all_ids_are_those_of_each(tiny, loaded):
    for _, processor in (tiny, loaded()):
        table = processor.tokenizer.all_bytes()
        assert table == [processor.tokenizer.token_bytes(id) for id in range(processor.config.decoder.vocab_size)]
        assert len({word for word in table if len(word) == 1}) == 256


def test_a_table_is_made_once_and_goes_with_its_tokenizer(checkpoint):
    _, processor = load(checkpoint())
    table = token_table(processor.tokenizer)
    assert token_table(processor.tokenizer) is table and processor.tokenizer in structured._tables
    before, forms = len(structured._tables), [constraint_of(processor, choice=["abc", "xyz"])]
    forms[0].advance(*processor.tokenizer.encode("x"))
    rest = processor.tokenizer.encode("yz")
    del processor, table
    gc.collect()
    # what is forced is written as the tokenizer writes it, which therefore stays as long as it may be asked
    assert len(structured._tables) == before and now(forms[0]) == {rest[0]} and forms[0].accepts(rest) == len(rest)
    forms.clear()
    gc.collect()
    assert len(structured._tables) == before - 1


# token by token


def test_the_end_comes_where_the_answer_is_complete_and_nothing_comes_after(tiny):
    _, processor = tiny
    stops = processor.tokenizer.stop_ids
    constraint = constraint_of(processor, regex="ab?")
    (a,), (b,) = processor.tokenizer.encode("a"), processor.tokenizer.encode("b")
    assert len(stops) == 2 and now(constraint) == {a}
    with pytest.raises(Phi4Error, match="does not fit regex"):
        constraint_of(processor, regex="ab?").advance(min(stops))
    constraint.advance(a)
    assert now(constraint) == {b, *stops}
    constraint.advance(b)
    assert now(constraint) == stops
    for stop in [*stops, min(stops)]:
        constraint.advance(stop)
        assert now(constraint) == stops and constraint.accepts([a]) == 0
    with pytest.raises(Phi4Error, match="does not fit regex"):
        constraint.advance(a)
    constraint.rollback(4)
    assert now(constraint) == {b, *stops}
    constraint.rollback(1)
    assert now(constraint) == {a}


def test_what_is_accepted_is_what_may_come_and_a_rollback_leaves_no_trace(tiny):
    """Walks at random over random schemas, with right and wrong drafts, against one step after the other."""
    _, processor = tiny
    rng, made = np.random.default_rng(3), RandomSchemas(3)
    for _ in range(15):
        constraint, seen = constraint_of(processor, schema=made.schema()), []
        for _ in range(25):
            may = sorted(now(constraint))
            draft = []
            for _ in range(int(rng.integers(1, 6))):  # what may come, step by step
                draft.append(int(rng.choice(sorted(now(constraint)))))
                constraint.advance(draft[-1])
            constraint.rollback(len(draft))
            assert sorted(now(constraint)) == may and constraint.accepts(draft) == len(draft)
            wrong = next((id for id in rng.permutation(723).tolist() if id not in may), None)
            if wrong is not None:
                assert constraint.accepts([wrong, *draft]) == 0
            token = int(rng.choice(may))
            constraint.advance(token)
            seen.append(may)
        for may in reversed(seen):
            constraint.rollback(1)
            assert sorted(now(constraint)) == may


@pytest.mark.parametrize(
    ("option", "right", "wrong"),
    [
        ({"schema": POINT}, ['{"x":7,"way":"up"}', '{ "x": 7,\n    "way": "down"\n}'], ['{"x":100', '{"way"', "{}"]),
        ({"schema": POINT}, [], ['{   "x":7,"way":"up"}', '{\n\n"x":7,"way":"up"}', ' {"x":7,"way":"up"}']),
        ({"schema": Ball}, ['{"colour":"red","size":9}'], ['{"colour":"red","size":9,"a":1}', '{"colour":"green"']),
        ({"schema": {}}, ["null", '{"a":[1,{}]}', '"é"'], ["nul"]),
        ({"regex": "^[A-Z][a-z]+$"}, ["Paris"], ["paris", "Paris "]),
        ({"choice": ['a "b"\n', "naïve 🎈", "<|end|>x", "\x00"]}, ['a "b"\n', "naïve 🎈", "\x00"], ["", "naïve"]),
        ({"lark": 'start: "a" n | "b"\nn: /[0-9]/ n?'}, ["a123", "b"], ["a", "ba"]),
        ({"schema": POINT, "think_first": True}, ['{"x":7,"way":"up"}'], ["<think>", "so it is", "<|think|>"]),
        ({"choice": ["yes"], "think_first": True}, ["<think>no < {\n</think>\n\nyes", "<think></think>yes"], ["<t"]),
        ({"regex": "a", "think_first": True}, ["<think>a</think>a"], ["<think>a</think>", "<think></think>a</think>a"]),
    ],
)  # fmt: skip
def test_forms(tiny, option, right, wrong):
    _, processor = tiny
    for text in right:
        assert complete(constraint_of(processor, **option), processor, text), text
    for text in wrong:
        assert not complete(constraint_of(processor, **option), processor, text), text


def test_text_of_a_form_is_never_a_special_token(tiny):
    """<|end|> in a text is seven characters, and a role cannot be forged by a schema."""
    _, processor = tiny
    constraint = constraint_of(processor, choice=["<|end|>", "<|system|>x"])
    special = {token.id for token in processor.tokenizer.special.values()}
    for letter in "<|system|>x":
        assert not now(constraint) & special
        constraint.advance(processor.tokenizer.encode(letter)[0])
    assert now(constraint) == processor.tokenizer.stop_ids


def test_bounds_of_numbers_are_those_of_the_numbers_that_are_read(tiny):
    """The library took 0 for a number above 0, where the other bound begins with the same digit."""
    _, processor = tiny
    for schema, texts in {
        '{"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}': ["0", "-0", "0.5", "0.25", "0.49999999999999999999"],
        '{"exclusiveMinimum": 1, "exclusiveMaximum": 1.5}': ["1", "1.0", "1.25", "1.5"],
        '{"exclusiveMaximum": 0}': ["-0", "0", "-0.0", "-1"],
        '{"minimum": 0, "exclusiveMaximum": 1}': ["0", "0.99999999999999999", "0.9", "1"],
        '{"exclusiveMinimum": 99.99, "minimum": 3}': ["99.99", "3", "100"],
    }.items():
        asked = {"type": "number"} | json.loads(schema)
        found = [text for text in texts if complete(constraint_of(processor, schema=asked), processor, text)]
        assert len(found) >= 1 and not [text for text in found if fault(asked, text)]


def test_what_the_library_would_read_otherwise_is_said_so_that_it_does_not(tiny):
    """It let a quotation mark come for [^"], rounded bounds and constants of many digits, and dropped prefixItems."""
    _, processor = tiny
    whole, texts = {"type": "integer"}, {"type": "string"}
    for schema, right, wrong in (
        (texts | {"pattern": '^[^"]$'}, ["a", "\n", "\\"], ['"']),
        (texts | {"pattern": r"^[^-\\\\]$"}, ["a", '"'], ["\\", "-"]),
        (texts | {"pattern": r"^\[[^]a]{2}$"}, ["[bc"], ["[b]", "[ab"]),
        (texts | {"pattern": r"^[\x00-\x1f]$"}, ["\n", "\x02"], ['"', "\\", "a"]),
        ({"patternProperties": {'^[^"]$': {}}, "additionalProperties": False}, [{"a": 1}], [{'"': 1}]),
        (whole | {"minimum": 2**53 + 1, "maximum": 2**53 + 9}, [2**53 + 2, 2**53 + 8], [2**53, 2**53 + 10]),
        (whole | {"exclusiveMinimum": 2**60, "exclusiveMaximum": 2**60 + 9999}, [2**60 + 512], [2**60, 2**60 + 9999]),
        (whole | {"minimum": -(2**63), "maximum": 2**64}, [0, -(2**62), 2**62], []),
        ({"type": "number", "minimum": -1e300, "maximum": 1e300}, [-0.5, 10**18], []),
        ({"oneOf": [{"const": 1, "title": "one"}, {"enum": [2, None]}]}, [1, 2, None], [3]),
        ({"type": "array", "items": [{"const": 1}], "additionalItems": {"const": 2}}, [[1], [1, 2]], [[2], [1, 1]]),
    ):
        constraint = constraint_of(processor, schema=schema)
        for value in (*right, *wrong):
            assert complete(constraint, processor, json.dumps(value)) == (value in right), (schema, value)


# in the engine


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_random_schemas_are_kept_by_random_models(tiny, loaded, temperature):
    made = RandomSchemas(11)
    schemas = [made.schema() for _ in range(24)]
    for model, processor in (tiny, loaded("text")):
        asked = [(i, Request("x", options={"schema": each})) for i, each in enumerate(schemas)]
        ended = 0
        for index, answer in answer_each(model, processor, asked, rows=24, temperature=temperature, max_tokens=70):
            assert not isinstance(answer, Exception), traceback.format_exception(answer)
            assert answer.finish_reason in ("stop", "length"), answer
            if answer.finish_reason == "stop":
                ended += 1
                assert not fault(schemas[index], answer.text), (schemas[index], answer.text)
            else:
                assert len(answer.tokens) == 70
        assert ended >= 8


def test_rows_in_a_form_and_free_rows_get_what_they_get_alone(loaded):
    model, processor = loaded()
    forms = [{"schema": POINT}, {"regex": "[a-z]{3,60}"}, {"choice": ["yes", "no"]}, {}, {}, {"lark": 'start: /[^"]*/'}]
    ways = [{}, {"temperature": 1.5, "seed": 4}, {"temperature": 1.0, "seed": 2, "top_p": 0.9, "top_k": 7}]
    ways += [{"repetition_penalty": 1.3}, {"min_tokens": 6}, {"logprobs": 2}]
    asked = [("text", forms[(i + j) % 6] | way) for i, way in enumerate(ways) for j in (0, 2)]
    asked += [("speech", forms[0] | ways[1]), ("speech", {})]
    alone = []
    for mode, options in asked:
        row = sequence_of(processor, MODES[mode], max_tokens=12, **options)
        decoded(model, row)
        alone.append(row.tokens)
    rows = [sequence_of(processor, MODES[mode], max_tokens=12, **options) for mode, options in asked]
    rng, batch, waiting, put_off = np.random.default_rng(1), Batch(model), list(rows), []
    while waiting or put_off or batch.active:
        for each in (waiting, put_off):
            if each and rng.random() < 0.4:
                batch.admit(each.pop())
        if batch.sequences and rng.random() < 0.08:
            put_off.append(batch.sequences[int(rng.integers(len(batch.sequences)))])
            batch.preempt(put_off[-1])
        batch.step()
    assert [row.tokens for row in rows] == alone
    assert all(row.finish_reason in ("stop", "length") for row in rows)


def test_answers_to_one_prompt_have_a_constraint_each(tiny):
    answers = batch_generate(
        *tiny, [QUESTION, Request(QUESTION, options={"schema": Ball})], n=4, temperature=1.5, seed=1
    )
    texts = [answer.text for answer in answers[4:]]
    assert len(set(texts)) > 1 and not [text for text in texts if fault(Ball.model_json_schema(), text)]
    free = batch_generate(*tiny, [QUESTION], n=4, temperature=1.5, seed=1)
    assert [answer.tokens for answer in answers[:4]] == [answer.tokens for answer in free]


def test_masks_are_made_while_the_device_computes(loaded, monkeypatch):
    """Per step: the forward pass is on its way, then the last tokens are read (once), then come masks and choices."""
    model, processor = loaded()
    events, submit = [], mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: (events.append("submit"), submit(*arrays)))
    collect = Batch._collect
    monkeypatch.setattr(Batch, "_collect", lambda self, flight: (events.append("read"), collect(self, flight))[1])
    rows = [sequence_of(processor, MODES["text"], text=False, max_tokens=6) for _ in range(2)]
    rows[0].constraint = constraint_of(processor, regex="[a-z]*")
    allowed = rows[0].constraint.allowed
    rows[0].constraint.allowed = lambda: (events.append("mask"), allowed())[1]
    batch = Batch(model)
    for row in rows:
        batch.admit(row)
    run(batch)
    assert batch.steps == 6
    assert events[0] == "submit" and events.count("mask") == events.count("read") == 6
    *steps, last = " ".join(events).split(" read")
    assert last == "" and all(step.count("mask") == 1 and step.count("submit mask submit") == 1 for step in steps)
    # after the choice the next step's forward pass is submitted, too, before the tokens chosen are read
    assert all(step.split("mask")[1].count("submit") == 2 for step in steps[:-1])


def test_filters_and_biases_choose_among_what_may_come(tiny):
    model, processor = tiny
    likeliest = generate(model, processor, QUESTION, regex="[a-z]{8}")
    for option in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert generate(model, processor, QUESTION, regex="[a-z]{8}", temperature=1.5, **option) == likeliest
    (q,) = processor.tokenizer.encode("q")
    assert generate(model, processor, QUESTION, regex="[a-z]{3}", logit_bias={q: 1e4}) == "qqq"
    with pytest.raises(Phi4Error, match="logit_bias forbids every token"):
        generate(model, processor, QUESTION, choice=["q"], logit_bias={q: -float("inf")})
    # a form that ends goes before min_tokens, which goes before an end that need not be
    assert generate(model, processor, QUESTION, choice=["q"], min_tokens=9) == "q"
    assert len(generate(model, processor, QUESTION, regex="q*", min_tokens=9, max_tokens=20)) >= 9


def test_log_probabilities_are_the_models_own(tiny):
    model, processor = tiny
    (z,) = processor.tokenizer.encode("z")
    _, forced = tokens_of(model, processor, Request(QUESTION), logit_bias={z: 1e4}, max_tokens=1, logprobs=3)
    _, held = tokens_of(model, processor, Request(QUESTION), regex="z+", max_tokens=1, logprobs=3)
    assert held.token == z and (held.logprob, held.top_logprobs) == (forced.logprob, forced.top_logprobs)
    assert held.logprob < held.top_logprobs[0][1] and held.finish_reason == "length"


def test_chats_and_pools_keep_to_a_form(tiny):
    talk = Chat(*tiny, choice=["Rome", "Oslo"])
    assert "".join(talk.send(QUESTION)) in ("Rome", "Oslo") and "".join(talk.send("And of Norway?")) in ("Rome", "Oslo")
    with pytest.raises(Phi4Error, match="regex cannot be used"):
        Chat(*tiny, regex="(")
    with AnswerPool(*tiny) as pool:
        pool.ask(1, Request(QUESTION), schema=Ball, max_tokens=99)
        pool.ask(2, Request(QUESTION))
        with pytest.raises(Phi4Error, match="choice cannot be used: no text"):
            pool.ask(3, Request(QUESTION), choice=[""])
        found = dict(each for _ in range(99) if len(pool) for each in pool.step())
    assert found[2].text == "Paris" and not fault(Ball.model_json_schema(), found[1].text)


def test_a_requests_own_form_goes_before_the_common_one(tiny):
    asked = [Request(QUESTION, options=own) for own in ({"choice": ["Oslo"]}, {"schema": None}, {})]
    texts = [answer.text for answer in batch_generate(*tiny, asked, schema={"const": "x"})]
    assert texts == ["Oslo", "Paris", '"x"']


def test_what_cannot_be_taken_back_is_not_drafted(tiny):
    _, processor = tiny
    constraint = constraint_of(processor, lark='start: a "!"\na[max_tokens=3]: /[a-z]+/')
    letters = processor.tokenizer.encode("ab")
    assert constraint.accepts(letters) == 0
    for letter in letters:
        constraint.advance(letter)
    assert now(constraint)


def test_a_form_needs_a_tokenizer(loaded):
    with pytest.raises(Phi4Error, match="regex needs a tokenizer"):
        sequence_of(loaded()[1], MODES["text"], text=False, regex="a")


def test_a_row_that_takes_too_long_ends_alone(tiny, monkeypatch):
    from mlx_phi4.generation import constraints

    model, processor = tiny
    rows = [sequence_of(processor, MODES["text"], max_tokens=4, **form) for form in ({"regex": "[a-z]*"}, {})]
    expected = sequence_of(processor, MODES["text"], max_tokens=4)
    decoded(model, expected)
    monkeypatch.setattr(constraints, "SPARE_SECONDS", -1.0)
    batch = Batch(model)
    for row in rows:
        batch.admit(row)
    last = {token.sequence: token for tokens in run(batch) for token in tokens}
    assert "more than 20 ms a token" in str(last[rows[0]].error) and rows[1].tokens == expected.tokens


@pytest.mark.parametrize("size", [1, 2, 5, 99])
def test_thoughts_before_a_form_are_its_beginning_only(size):
    def told(text):
        thoughts, found = Thoughts(at_first=True), {False: "", True: ""}
        for start in range(0, len(text), size):
            for piece, thought in thoughts.add(text[start : start + size]):
                found[thought] += piece
        for piece, thought in thoughts.finish():
            found[thought] += piece
        return found[True], found[False]

    assert told('<think>a <think> b</think>{"<think>": 1}') == ("<think>a <think> b</think>", '{"<think>": 1}')
    assert told('{"<think>": "</think>"}') == ("", '{"<think>": "</think>"}')
    assert told("<thin") == ("", "<thin") and told("<think>never") == ("<think>never", "")
