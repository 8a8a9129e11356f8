"""Forms that cannot be kept: one clear error, soon, and nothing else suffers."""

import json
import sys
from collections.abc import Callable

import pydantic
import pytest

from mlx_phi4 import Phi4Error, generate, load
from mlx_phi4.commands import chat
from mlx_phi4.commands import generate as generate_command
from mlx_phi4.generation import trial
from mlx_phi4.generation.grammars import MOST_BYTES_OF_GRAMMAR, Grammar, read_grammar
from mlx_phi4.generation.options import GenerationOptions
from mlx_phi4.generation.structured import KEPT_GRAMMARS, check, compiled, token_table


class Twice(pydantic.BaseModel):
    once: set[int]


class Function(pydantic.BaseModel):
    call: Callable


def chained(length):
    """Definitions that lead to each other, deeper than the library's recursion goes."""
    link = [
        {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{i + 1}"}}, "required": ["a"]} for i in range(length)
    ]
    return {"$ref": "#/$defs/0", "$defs": {str(i): each for i, each in enumerate([*link, {"type": "null"}])}}


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


CYCLE = {"type": "object"}
CYCLE["properties"] = {"a": CYCLE}
EITHER = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "required": ["a"]}
SHARED = {"type": "object"}
for _ in range(25):
    SHARED = {"anyOf": [SHARED, SHARED]}  # 2^25 of them in JSON
ENDLESS_WORK = {"allOf": [{"type": "string", "pattern": f"x{{{i}}}"} for i in range(60)]}
REFUSED = [
    ({"schema": 3}, "schema is 3, expected a JSON schema"),
    ({"schema": [{}]}, "expected a JSON schema"),
    ({"schema": int}, "expected a JSON schema"),
    ({"schema": {"type": "banana"}}, "schema cannot be used: Invalid type: banana"),
    ({"schema": {"type": 3}}, "type must be"),
    ({"schema": {"properties": []}}, "properties must be an object"),
    ({"schema": {"enum": [object()]}}, "nothing that JSON has no form for"),
    ({"schema": {"const": float("nan")}}, "nothing that JSON has no form for"),
    ({"schema": {"const": "\ud800"}}, "schema cannot be used"),
    ({"schema": {"type": "string", "format": "banana"}}, "Unknown format: banana"),
    ({"schema": {"not": {"type": "string"}}}, 'the keyword "not" is not supported'),
    ({"schema": {"if": {}, "then": {}}}, '"if", "then" is not supported'),
    ({"schema": {"type": "array", "uniqueItems": True}}, '"uniqueItems" is not supported'),
    ({"schema": Twice}, '"uniqueItems" is not supported'),
    ({"schema": Function}, "a pydantic model that has a JSON schema"),
    ({"schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "oneOf is supported only where"),
    ({"schema": {"$ref": "http://example.com/a"}}, "http://example.com/a\" leads out of the schema"),
    ({"schema": {"$ref": "#/$defs/a"}}, "leads nowhere"),
    ({"schema": {"$ref": "#"}}, 'needs itself inside of itself'),
    ({"schema": {"$defs": {"a b": {"$ref": "#/$defs/a%20b"}}}}, '"#/$defs/a%20b" needs itself inside'),
    ({"schema": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}}, '"#/$defs/a" needs itself inside'),
    ({"schema": {"type": "object", "properties": {"a/b": {"$ref": "#"}}, "required": ["a/b"]}}, "needs itself"),
    ({"schema": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}}, "needs itself"),
    ({"schema": {"anyOf": [{"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}]}}, "needs itself"),
    ({"schema": {"type": ["object"], "required": ["a"], "additionalProperties": {"$ref": "#"}}}, "needs itself"),
    ({"schema": EITHER}, '"$ref": "#" needs itself'),
    ({"schema": {"$defs": {"a": {"$anchor": "b", "allOf": [{"$ref": "#b"}]}}, "$ref": "#b"}}, '"#b" needs itself'),
    ({"schema": {"const": [2**53 + 1]}}, "whole numbers in const of at most 2^53"),
    ({"schema": {"type": "integer", "minimum": 10**20}}, "a minimum between -2^63 and 2^63"),
    ({"schema": {"prefixItems": [], "additionalItems": False}}, "a schema with prefixItems and items"),
    ({"schema": CYCLE}, "at most 64 levels"),
    ({"schema": nested(70)}, "at most 64 levels"),
    ({"schema": SHARED}, "at most 262144 bytes"),
    ({"schema": {"description": "x" * 10_000_000}}, "at most 262144 bytes"),
    ({"schema": {"enum": [f"item {i}" for i in range(100_000)]}}, "at most 262144 bytes"),
    ({"schema": {"minimum": 3, "maximum": 2, "type": "integer"}}, "Unsatisfiable schema: minimum (3)"),
    ({"schema": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "Unsatisfiable schema"),
    ({"schema": {"enum": []}}, "Unsatisfiable schema"),
    ({"schema": {"type": "string", "pattern": "(?=a)b"}}, "the pattern (?=a)b: look-around"),
    ({"schema": {"type": "string", "pattern": "("}}, "the pattern (: unclosed group"),
    ({"schema": {"type": "integer", "multipleOf": 1_000_003}}, "multipleOf of at most 5 digits"),
    ({"schema": {"type": "object", "minProperties": 3}}, "minProperties of at most one more"),
    ({"schema": {"x-guidance": {"lenient": True}}}, 'without "x-guidance"'),
    ({"schema": {}, "regex": "a"}, "schema and regex cannot be combined"),
    ({"choice": ["a"], "lark": "a"}, "choice and lark cannot be combined"),
    ({"think_first": True}, "think_first needs one of schema, regex, choice, lark"),
    ({"think_first": 1, "regex": "a"}, "think_first is 1, expected True or False"),
    ({"regex": 3}, "regex is 3, expected a string"),
    ({"regex": "("}, "regex cannot be used: the pattern (: unclosed group"),
    ({"regex": "a" * 300_000}, "regex has 300000 bytes"),
    ({"regex": ""}, "regex has 0 bytes"),
    ({"regex": r"[^\s\S]"}, "regex cannot be used: no text fits it"),
    ({"choice": []}, "choice is [], expected a list of at least 1"),
    ({"choice": "yes"}, "choice is 'yes', expected a list"),
    ({"choice": ["a", 3]}, "expected a list, each a string"),
    ({"choice": [""]}, "choice cannot be used: no text fits it"),
    ({"lark": "nonsense"}, "lark cannot be used: 1(9): Expected token"),
    ({"lark": "start: start"}, "lark cannot be used: no text fits it"),
    ({"lark": "start: <|no such token|>"}, "lark cannot be used"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return load("phi4-tiny")


@pytest.mark.parametrize(("option", "message"), REFUSED)
def test_what_cannot_be_kept_is_refused_in_a_line(tiny, option, message):
    with pytest.raises(Phi4Error) as caught:
        generate(*tiny, "x", max_tokens=3, **option)
    assert message in str(caught.value) and len(str(caught.value)) < 300


def test_a_part_that_may_be_left_out_may_be_the_whole_again(tiny):
    tree = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "additionalProperties": False}}}
    tree["$defs"]["node"]["properties"] = {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}
    tree["$defs"]["node"]["required"] = ["next"]
    constraint = compiled(GenerationOptions(schema=tree).grammar, tiny[1].tokenizer).constraint()
    text = tiny[1].tokenizer.encode('{"next":{"next":null}}')
    assert constraint.accepts(text) == len(text)


def test_an_unpassable_place_in_a_grammar_ends_the_answer_with_an_error(tiny):
    with pytest.raises(Phi4Error, match="lark"):
        generate(*tiny, "x", lark='start: "a" /[^\\s\\S]/')


def test_what_takes_too_much_to_compile_ends_in_a_process_of_its_own(tiny, monkeypatch):
    """One grammar overflows the stack, which would end this process; one takes hours. The next is tried as ever."""
    monkeypatch.setattr(trial, "CPU_SECONDS", 1)
    for schema in (chained(900), ENDLESS_WORK):
        with pytest.raises(Phi4Error, match="compiling it takes more than 1 seconds, or too much memory"):
            generate(*tiny, "x", schema=schema)
    assert generate(*tiny, "x", choice=["after that"]) == "after that"


def test_without_a_process_for_trials_grammars_are_compiled_all_the_same(tiny, monkeypatch):
    process = trial.TrialProcess()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert process.error({"definition": ""}) is None and not process._usable
    monkeypatch.setattr(sys, "executable", "/bin/cat")  # starts, and is no interpreter
    assert trial.TrialProcess().error({"definition": ""}) is None


def test_a_process_that_went_away_is_started_again(tiny):
    grammar = Grammar("regex", "a{7}")
    compiled(grammar, tiny[1].tokenizer)
    structured_trial = sys.modules["mlx_phi4.generation.structured"]._trial
    structured_trial._process.kill()
    structured_trial._process.wait()
    check(grammar)
    with pytest.raises(Phi4Error, match="regex cannot be used"):
        check(read_grammar("regex", ")", "regex"))


def test_grammars_are_kept_and_so_is_what_is_wrong_with_them(tiny, monkeypatch):
    table = token_table(tiny[1].tokenizer)
    first = table.compile(Grammar("regex", "kept", "a"))
    assert table.compile(Grammar("regex", "kept", "b"))._first is first._first
    with pytest.raises(Phi4Error, match="a cannot be used"):
        table.compile(Grammar("regex", "((", "a"))
    monkeypatch.setattr(table, "_compiled", lambda grammar: pytest.fail("compiled again"))
    with pytest.raises(Phi4Error, match="b cannot be used"):
        table.compile(Grammar("regex", "((", "b"))
    assert len(table._known) <= KEPT_GRAMMARS
    monkeypatch.setattr(table, "_compiled", lambda grammar: "not at all")
    for number in range(KEPT_GRAMMARS + 3):
        with pytest.raises(Phi4Error):
            table.compile(Grammar("regex", str(number)))
    assert len(table._known) == KEPT_GRAMMARS


def test_the_most_bytes_are_taken():
    assert Grammar("regex", "a" * MOST_BYTES_OF_GRAMMAR)
    with pytest.raises(Phi4Error, match=f"here has {MOST_BYTES_OF_GRAMMAR + 1} bytes"):
        Grammar("regex", "a" * (MOST_BYTES_OF_GRAMMAR - 1) + "é", "here")


def test_without_the_extra_one_line_names_it(tiny, monkeypatch, run_command, tmp_path):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    _, processor = load("phi4-tiny")
    with pytest.raises(Phi4Error, match=r'need llguidance: pip install "mlx_phi4\[structured\]"'):
        generate(tiny[0], processor, "x", choice=["a"])
    code, _, error = run_command(generate_command.command, "--model", "phi4-tiny", "-p", "x", "--regex", "a")
    assert code == 2 and "mlx_phi4[structured]" in error
    assert generate(*tiny, "What is the capital of France?") == "Paris"


def test_the_commands_take_a_schema_from_a_file(run_command, tmp_path):
    def answered(*arguments, command=generate_command, **more):
        return run_command(command.command, "--model", "phi4-tiny", "--quiet", *arguments, **more)

    asked = ("-p", "What is the capital of France?")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    code, out, _ = answered(*asked, "--json-schema", path)
    assert code == 0 and json.loads(out)["n"] in (1, 2)
    code, out, _ = answered(*asked, "--regex", "[A-Z][a-z]{4}", "--json")
    assert code == 0 and json.loads(out)["text"] == "Paris"
    code, out, _ = answered("--regex", "[A-Z]{3}", command=chat, stdin=b"Hello\n")
    assert code == 0 and len(out.strip()) == 3 and out.strip().isupper()
    broken, folder = tmp_path / "broken.json", tmp_path
    broken.write_text("{")
    for arguments, message in (
        (("--json-schema", tmp_path / "none.json"), "none.json is missing"),
        (("--json-schema", folder), "is not a file"),
        (("--json-schema", broken), "broken.json cannot be read"),
        (("--json-schema", path, "--regex", "a"), "schema and regex cannot be combined"),
        (("--regex", "("), "regex cannot be used: the pattern (: unclosed group"),
        (("--think-first",), "think_first needs one of"),
    ):
        for command, more in ((generate_command, asked), (chat, ())):
            code, out, error = answered(*more, *arguments, command=command)
            assert (code, out) == (2, "") and message in error and error.count("\n") == 1, error
