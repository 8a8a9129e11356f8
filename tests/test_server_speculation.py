"""Speculation in the server: OpenAI's prediction, what requests choose, what usage tells, a draft model's memory."""

import pytest
from serving import running
from test_speculation import COPY, PASSAGE

from mlx_phi4 import load
from mlx_phi4.generation.draft_model import DraftModel
from mlx_phi4.server.budget import Budget

MESSAGES = [{"role": "user", "content": COPY.prompt}]
PREDICTION = {"type": "content", "content": PASSAGE}
PARTS = {"type": "content", "content": [{"type": "text", "text": PASSAGE[:20]}, {"type": "text", "text": PASSAGE[20:]}]}


@pytest.fixture(scope="module")
def tiny():
    return load("phi4-tiny", dtype="float32")


@pytest.fixture(scope="module")
def server(tiny):
    with running(tiny) as here:
        yield here


def ask(server, stream=False, **options):
    """Text, and right and wrong drafted tokens."""
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = server.openai.chat.completions.create(model="phi4-tiny", messages=MESSAGES, **more, **options)
    if stream:
        chunks = list(answer)
        text, usage = "".join(each.choices[0].delta.content or "" for each in chunks[:-1]), chunks[-1].usage
    else:
        text, usage = answer.choices[0].message.content, answer.usage
    details = usage.completion_tokens_details
    return text, details.accepted_prediction_tokens, details.rejected_prediction_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_prediction(server, stream):
    assert ask(server, stream) == (PASSAGE, 0, 0)
    for given in (PREDICTION, PARTS):
        text, right, wrong = ask(server, stream, prediction=given)
        assert text == PASSAGE and right >= 8 and wrong == 0
    text, right, wrong = ask(
        server, stream, prediction={"type": "content", "content": "seven two nine one one one one"}
    )
    assert text == PASSAGE and right > 0 and wrong > 0


def test_requests_choose_lookup_or_nothing(server):
    text, right, _ = ask(server, extra_body={"speculation": "lookup"})
    assert text == PASSAGE and right >= 5
    assert ask(server, extra_body={"speculation": "none"}) == (PASSAGE, 0, 0)
    body = {"model": "phi4-tiny", "prompt": f"<|user|>{COPY.prompt}<|end|><|assistant|>", "speculation": "lookup"}
    answer = server.post(body, path="/v1/completions").json()
    assert answer["choices"][0]["text"] == PASSAGE
    assert answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] >= 5
    assert "accepted_draft_tokens" in server.http.get("/metrics").text


@pytest.mark.parametrize("speculation", ["lookup", "draft"])
def test_what_the_server_was_started_with(tiny, speculation):
    with running(tiny, speculation=DraftModel.of(tiny) if speculation == "draft" else speculation) as here:
        text, right, _ = ask(here)
        assert text == PASSAGE and right >= 5
        assert ask(here, extra_body={"speculation": "none"}) == (PASSAGE, 0, 0)
        answers = (
            ask(here, n=3, temperature=1.0, seed=3),
            ask(here, n=3, temperature=1.0, seed=3, extra_body={"speculation": "none"}),
        )
        assert answers[0][0] == answers[1][0]


def test_a_draft_model_is_in_the_budget(tiny):
    alone, both = (Budget.of(tiny[0], 10**9, 10**6, draft) for draft in (None, DraftModel.of(tiny)))
    assert both.token == 2 * alone.token
    assert alone.total - both.total == DraftModel.of(tiny).nbytes > 10**7
