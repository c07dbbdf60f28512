"""Laws that hold for every registered operator."""

from __future__ import annotations

import pytest
import torch
from cases import operator_samples

import sparsenn
from sparsenn import _extension
from sparsenn.ops import reference
from sparsenn.ops.schema import SCHEMAS

SAMPLES = list(operator_samples())


def test_every_operator_has_samples_and_a_reference():
    assert {name for name, _ in SAMPLES} == set(SCHEMAS)
    for name in SCHEMAS:
        assert callable(getattr(reference, name))


@pytest.mark.parametrize(("name", "arguments"), SAMPLES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SAMPLES)])
def test_opcheck(backend, name, arguments):
    torch.library.opcheck(getattr(torch.ops.sparsenn, name).default, arguments)


def test_the_reference_backend_runs_the_reference(monkeypatch):
    calls = []
    definition = reference.hadamard
    monkeypatch.setattr(reference, "hadamard", lambda factors: calls.append(1) or definition(factors))
    factors = [torch.ones(3), torch.ones(3)]
    sparsenn.ops.hadamard_product(factors)
    outside = len(calls)
    with sparsenn.ops.backend("reference"):
        sparsenn.ops.hadamard_product(factors)
    assert len(calls) == outside + 1


def test_the_kernels_serve_the_cpu(kernels):
    for name in SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsenn::{name}", "CPU")


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'reference' or 'compiled'"), sparsenn.ops.backend("fast"):
        pass


def test_missing_kernels_are_an_error_with_the_cure(monkeypatch):
    broken = _extension.Library("cpu", None, "the cpu library was not built")
    monkeypatch.setitem(_extension._libraries, "cpu", broken)
    with pytest.raises(RuntimeError, match=r"not built.*pip install"), sparsenn.ops.backend("compiled"):
        pass
