"""Tools on the commands: what is printed, how a person gives a result, and what is refused before a model is read."""

import json

import pytest

from mlx_phi4.commands.cache_prompt import command as cache_prompt
from mlx_phi4.commands.chat import command as chat
from mlx_phi4.commands.generate import command as generate

NOW = {"type": "function", "function": {"name": "now"}}
CITY = {"name": "get_weather", "parameters": {"city": {"type": "str", "enum": ["Rome", "Oslo"]}}}
TINY = ("--model", "phi4-tiny")


@pytest.fixture
def tools(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([NOW, CITY]))
    return path


def test_a_call_is_printed_as_json(run_command, tools):
    arguments = (*TINY, "-p", "What is it?", "--tools", tools, "--tool-choice", "now")
    code, out, err = run_command(generate, *arguments)
    assert (code, out) == (0, '[{"name": "now", "arguments": {}}]\n') and "error" not in err
    code, out, _ = run_command(generate, *arguments, "--json")
    whole = json.loads(out)
    assert code == 0 and whole["finish_reason"] == "tool_calls" and whole["text"] == ""
    assert [(call["name"], call["arguments"]) for call in whole["tool_calls"]] == [("now", {})]
    code, out, _ = run_command(generate, *TINY, "-p", "What is the capital of France?", "--json")
    assert json.loads(out)["text"] == "Paris" and "tool_calls" not in json.loads(out)


def test_calls_may_be_required_one_at_a_time(run_command, tools):
    options = ("--tool-choice", "required", "--no-parallel-tool-calls", "--tools", tools)
    code, out, _ = run_command(generate, *TINY, "-p", "x", *options)
    assert code == 0 and len(json.loads(out)) == 1
    assert run_command(generate, *TINY, "-p", "What is it?", "--tools", tools, "--tool-choice", "none")[0] == 0


def test_a_person_gives_the_results(run_command, tools, tmp_path):
    path = tmp_path / "talk.json"
    lines = ["/result early", "What time is it?", "/result 12:30", f"/save {path}"]
    options = ("--tools", tools, "--tool-choice", "now", "--tool-results", "tool")
    code, out, err = run_command(chat, *TINY, *options, stdin="\n".join(lines).encode())
    assert (code, out) == (0, '[{"name": "now", "arguments": {}}]\n\n' * 2)
    assert "error: no call waits for a result" in err and "/result TEXT" in err
    roles = [(turn["role"], turn["content"]) for turn in json.loads(path.read_text())]
    assert roles == [("user", "What time is it?"), ("assistant", ""), ("tool", "12:30"), ("assistant", "")]


def test_a_prompt_with_tools_is_computed_ahead(run_command, tools, tmp_path):
    path = tmp_path / "begun.safetensors"
    asked = ("-p", "What time is it?", "--tools", tools)
    assert run_command(cache_prompt, *TINY, *asked, "--prompt-cache-file", path)[0] == 0
    arguments = (*asked, "--prompt-cache-file", path, "--tool-choice", "now", "--json")
    whole = json.loads(run_command(generate, *TINY, *arguments)[1])
    assert whole["reused_tokens"] == whole["prompt_tokens"] - 1 and whole["tool_calls"]
    code, out, err = run_command(cache_prompt, *TINY, "-p", "x", "--tools", "none.json", "--prompt-cache-file", path)
    assert (code, out) == (2, "") and "none.json" in err


BAD = {
    "no file": (["--tools", "none.json"], "none.json is missing"),
    "no JSON": (["--tools", "words.txt"], "words.txt: tools is"),
    "a name twice": (["--tools", "twice.json"], "twice.json: tools[1]"),
    "an unknown tool": (
        ["--tools", "tools.json", "--tool-choice", "nope"],
        "but the tools are now, get_weather",
    ),
    "no tools": (["--tool-choice", "required"], "there are no tools"),
    "no choice": (["--tools", "tools.json", "--tool-choice", "a b"], "tool_choice is 'a b'"),
    "raw": (["--tools", "tools.json", "--raw"], "raw takes one string"),
    "no schema": (["--tools", "pattern.json"], "tools[0].parameters"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_line_and_exit_2(run_command, tools, monkeypatch, name):
    monkeypatch.chdir(tools.parent)
    pattern = {"name": "f", "parameters": {"properties": {"a": {"type": "string", "pattern": "("}}}}
    files = {"words.txt": "words", "twice.json": json.dumps([CITY, CITY]), "pattern.json": json.dumps([pattern])}
    for file, text in files.items():
        (tools.parent / file).write_text(text)
    arguments, says = BAD[name]
    for command in (generate, chat)[: 1 if name == "raw" else 2]:
        prompt = ("-p", "x") if command is generate else ()
        code, out, err = run_command(command, *TINY, *prompt, *arguments)
        assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and says in err
