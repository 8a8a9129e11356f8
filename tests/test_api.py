"""The public names: seen by ``dir``, editors and type checkers, imported when they are first used."""

import pkgutil
import subprocess
import sys

import pytest

import mlx_phi4
from mlx_phi4 import api


def test_both_lists_are_the_same_names():
    assert mlx_phi4.__all__ == api.__all__ == sorted(api.__all__)


def test_names_are_those_of_the_api_and_listed():
    for name in mlx_phi4.__all__:
        assert getattr(mlx_phi4, name) is getattr(api, name)
    assert set(mlx_phi4.__all__) <= set(dir(mlx_phi4))
    assert mlx_phi4.__version__


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="'mlx_phi4' has no attribute 'paint'"):
        mlx_phi4.paint  # noqa: B018


def test_no_public_name_is_hidden_by_a_module():
    """A submodule is stored in its package when it is imported."""
    assert {module.name for module in pkgutil.iter_modules(mlx_phi4.__path__)}.isdisjoint(mlx_phi4.__all__)


def test_importing_the_package_imports_nothing_else():
    code = "import sys, mlx_phi4; print(sorted(name for name in sys.modules if name.startswith('mlx')))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "['mlx_phi4']"
