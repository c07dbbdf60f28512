import doctest
import importlib

import pytest
import torch


@pytest.mark.parametrize("name", ["parametrizations", "factorized", "convert", "spectral", "spectralize"])
def test_the_examples_in_the_docstrings_run(name):
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(f"sparsenn.nn.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
