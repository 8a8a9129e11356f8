"""Shared fixtures: reduced random checkpoints, written once per run, and their loaded models."""

import io
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import mlx_phi4
from mlx_phi4.synthetic.random_checkpoint import write_random_checkpoint

sys.path.insert(0, str(Path(__file__).parent / "golden"))  # cases.py serves the golden script and the tests


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="FOLDER", help="where the pictures of the page in docs/ are made anew")


def pytest_configure(config):
    config.addinivalue_line("markers", "cpu: needs MLX's CPU backend, on whatever machine, see tolerances.py")


@pytest.fixture(autouse=True)
def _device(request):
    """The CPU for tests that are marked so, this machine's own device for all others."""
    if request.node.get_closest_marker("cpu") is None:
        yield
        return
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.DeviceType.cpu, 0))
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A function (layout, size) -> folder of a float32 checkpoint. Not to be changed: copy it first."""
    made = {}

    def write(layout="microsoft", size="reduced"):
        if (layout, size) not in made:
            folder = tmp_path_factory.mktemp(f"{size}-{layout}")
            made[layout, size] = write_random_checkpoint(folder, layout, size)
        return made[layout, size]

    return write


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """A function (layout, size) -> (model, processor), loaded once."""
    made = {}

    def load(layout="microsoft", size="reduced"):
        if (layout, size) not in made:
            made[layout, size] = mlx_phi4.load(checkpoint(layout, size))
        return made[layout, size]

    return load


@pytest.fixture(scope="module")
def driver():
    """What drives browsers; no longer than a module, as it keeps an event loop in this thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        yield found


@pytest.fixture
def run_command(monkeypatch, capsys):
    """A function (command, arguments) -> (exit code, stdout, stderr): a console script, in this process."""

    def run(command, *arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["mlx_phi4", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            command()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run
