"""Adapters of one's own on the server: models of their own by name, in one batch."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from adapter_samples import random_adapter, random_folder
from serving import running

import mlx_phi4
from mlx_phi4 import Phi4Error

RECORDING = Path(__file__).parents[1] / "examples" / "media" / "command.flac"
NAMES = ["a", "dora", "mine"]
ASKED = [{"role": "user", "content": "Tell me of the sea."}]


@pytest.fixture(scope="module")
def loaded(checkpoint):
    model, processor = mlx_phi4.load(checkpoint())
    for seed, name in enumerate(NAMES):
        model.add_adapter(name, random_adapter(model.config, seed=seed, dora=name == "dora"))
    return model, processor


@pytest.fixture(scope="module")
def server(loaded):
    with running(loaded) as here:
        yield here


def ask(server, name):
    return server.openai.chat.completions.create(model=name, messages=ASKED, max_tokens=5).choices[0].message.content


def test_each_adapter_is_a_model(server, loaded):
    """All at once; each answer is what its adapter gives alone."""
    listed = [model.id for model in server.openai.models.list()]
    assert listed == ["phi4-tiny", *(f"phi4-tiny:{name}" for name in sorted([*NAMES, "speech", "vision"]))]
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(listed, pool.map(lambda name: ask(server, name), listed), strict=True))
    for name, answer in answers.items():
        adapter = name.partition(":")[2] or None
        assert answer == mlx_phi4.generate(*loaded, ASKED, adapter=adapter, max_tokens=5)
    assert len(set(answers.values())) > len(NAMES)


def test_an_unknown_name_is_404(server):
    for name in ("phi4-tiny:yours", "phi4-tiny:base", "phi4-tiny:a:b", "phi4-tiny:", "mine"):
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            ask(server, name)


def test_a_transcription_may_pass_an_adapter_that_was_added(server):
    def hear(name):
        with RECORDING.open("rb") as file:
            return server.openai.audio.transcriptions.create(model=name, file=file).text

    assert hear("phi4-tiny:a") != hear("phi4-tiny")
    with pytest.raises(openai.BadRequestError, match="choose the model's own"):
        hear("phi4-tiny:vision")


def test_the_server_may_have_an_adapter_of_its_own(loaded):
    with running(loaded, adapter="mine") as here:
        assert "phi4-tiny:base" in [model.id for model in here.openai.models.list()]
        for name, adapter in (("phi4-tiny", "mine"), ("phi4-tiny:base", "base"), ("phi4-tiny:a", "a")):
            assert ask(here, name) == mlx_phi4.generate(*loaded, ASKED, adapter=adapter, max_tokens=5)


def test_prompts_are_shared_within_an_adapter_only(server):
    def cached(name):
        long = [{"role": "user", "content": "the sea " * 30}]
        answer = server.openai.chat.completions.create(model=name, messages=long, max_tokens=2)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert cached("phi4-tiny:a") == 0 and cached("phi4-tiny:a") > 16 and cached("phi4-tiny:mine") == 0


def test_the_command_loads_them(tmp_path):
    command = [sys.executable, "-m", "mlx_phi4", "server", "--model", "phi4-tiny", "--port", "0"]
    folder = random_folder(tmp_path / "mine", mlx_phi4.load("phi4-tiny")[0].config)
    one = ("--adapter", f"mine={folder}")
    started = subprocess.Popen([*command, *one], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = started.stdout.readline().split()[-1]
        assert "phi4-tiny:mine" in [each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]]
    finally:
        started.kill()
        started.communicate()
    for options, message in (
        (("--adapter", f"mine={tmp_path / 'none'}"), "no such folder"),
        ((*one, "--use-adapter", "yours"), "adapter is 'yours', this model has base, mine, speech, vision"),
        (("--adapter", f"vision={folder}"), "there is an adapter 'vision' already"),
    ):
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_service_says_at_once_that_it_has_no_such_adapter(loaded):
    from mlx_phi4.server.engine import Engine
    from mlx_phi4.server.service import Service, Settings

    with pytest.raises(Phi4Error, match="adapter is 'yours'"):
        Service(Settings(adapter="yours")).open("phi4-tiny", Engine(*loaded))
