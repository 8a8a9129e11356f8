"""``--speculation`` and ``--draft-model`` as a person gives them: the same answers, figures, and errors in one line."""

import json
import shutil

import pytest
from test_speculation import COPY, PASSAGE

from mlx_phi4.commands import chat, generate, server

GENERATE = ("--model", "phi4-tiny", "--prompt", COPY.prompt)


@pytest.fixture
def run(run_command):
    """A function (command, arguments) -> (exit code, stdout, stderr)."""

    def ran(which, *arguments, **more):
        return run_command(which.command, *arguments, **more)

    return ran


@pytest.mark.parametrize("given", [("--speculation", "lookup"), ("--draft-model", "phi4-tiny"), ()])
def test_answers_and_figures(run, given):
    code, out, err = run(generate, *GENERATE, *given)
    assert (code, out) == (0, PASSAGE + "\n")
    assert ("drafted ones right)" in err) == bool(given)
    answer = json.loads(run(generate, *GENERATE, *given, "--json", "--quiet")[1])
    assert answer["text"] == PASSAGE and (answer["accepted_tokens"] >= 5) == bool(given)
    assert answer["rejected_tokens"] == 0


def test_a_chat_speculates(run):
    code, out, err = run(
        chat, "--model", "phi4-tiny", "--speculation", "lookup", "--stats", "--quiet", stdin=COPY.prompt.encode()
    )
    assert (code, out.strip()) == (0, PASSAGE) and "drafted ones right)" in err


@pytest.fixture
def without_weights(checkpoint, tmp_path):
    shutil.copytree(checkpoint("text"), tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors*"))
    return tmp_path / "empty"


@pytest.mark.parametrize("which", [generate, chat, server])
def test_what_cannot_draft_is_one_line(run, which, checkpoint, without_weights, tmp_path):
    start = GENERATE if which is generate else ("--model", "phi4-tiny", *(("--port", "0") if which is server else ()))
    for given, says in (
        (("--draft-model", checkpoint("text")), "the draft model has a vocabulary of"),
        (("--draft-model", without_weights), "safetensors"),
        (("--draft-model", tmp_path / "nowhere"), "nowhere"),
        (("--draft-model", ""), "is empty"),
        (("--speculation", "x"), "'x' is not one of 'lookup', 'none'"),
        (("--speculation", "lookup", "--draft-model", "phi4-tiny"), "two ways to draft"),
    ):
        code, out, err = run(which, *start, *given)
        assert (code, out) == (2, ""), given
        assert says in err.splitlines()[-1] and "Traceback" not in err, (given, err)
        assert which is not generate or len(err.splitlines()) == 1, err
