"""Every public name is documented, and the examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import sparsenn

LIBRARIES = ("_cpu", "_cuda", "_native", "__main__")
MODULES = sorted(m.name for m in pkgutil.walk_packages(sparsenn.__path__, "sparsenn.") if not m.name.endswith(LIBRARIES))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def public_objects():
    for room in (
        "ops",
        "init",
        "nn",
        "penalties",
        "optim",
        "prune",
        "metrics",
        "models",
        "data",
        "training",
        "training.stacked",
        "artefact",
        "runtime",
    ):
        module = importlib.import_module(f"sparsenn.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{room}.{name}", thing
    yield "collapse", sparsenn.collapse
    yield "factorize", sparsenn.factorize
    yield "spectralize", sparsenn.spectralize
    yield "save", sparsenn.save
    yield "load", sparsenn.load


@pytest.mark.parametrize(("name", "thing"), [pytest.param(n, t, id=n) for n, t in public_objects()])
def test_public_names_are_documented(name, thing):
    text = inspect.getdoc(thing) or ""
    assert text, f"{name} has no docstring"
    if inspect.isfunction(thing) and "Args:" in text:
        for parameter in inspect.signature(thing).parameters:
            assert parameter in text, f"{name}: {parameter} is not documented"
