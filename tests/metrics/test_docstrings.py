"""The examples in the docstrings run, and every public function has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

from flwr_afuic import metrics

MODULES = [f"{metrics.__name__}.{module.name}" for module in pkgutil.iter_modules(metrics.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "name", [n for n in metrics.__all__ if inspect.isfunction(getattr(metrics, n))]
)
def test_public_function_has_an_example(name):
    assert ">>>" in (inspect.getdoc(getattr(metrics, name)) or "")
