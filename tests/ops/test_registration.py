"""Laws that hold for every registered operator."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from cases import operator_samples

import sparsenn
from sparsenn import _extension
from sparsenn.ops import reference
from sparsenn.ops.schema import FINGERPRINT, SCHEMAS

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


def test_the_kernels_are_not_to_be_had_inside_a_block_of_the_reference(kernels):
    with (
        sparsenn.ops.backend("reference"),
        pytest.raises(RuntimeError, match="'compiled' can't run inside a block of 'reference'"),
        sparsenn.ops.backend("compiled"),
    ):
        pytest.fail("the block was entered")
    with sparsenn.ops.backend("compiled"), sparsenn.ops.backend("reference"):
        assert sparsenn.ops.hadamard_product([torch.ones(1)] * 2) == 1


def test_missing_kernels_are_an_error_with_the_cure(monkeypatch):
    broken = _extension.Library("cpu", None, "the cpu library was not built")
    monkeypatch.setitem(_extension._libraries, "cpu", broken)
    with pytest.raises(RuntimeError, match=r"not built.*pip install"), sparsenn.ops.backend("compiled"):
        pass


def in_a_new_process(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("SPARSENN_NO_WARNING", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout + done.stderr


def test_kernels_for_other_schemas_are_not_loaded(kernels):
    said = in_a_new_process("""
import sparsenn
from sparsenn import _extension
_extension._built_for = lambda: "of yesterday"
import sparsenn.ops, torch
print(_extension.loaded("cpu"), torch._C._dispatch_has_kernel_for_dispatch_key("sparsenn::hadamard", "CPU"))
print(sparsenn.ops.hadamard_product([torch.full((2,), 3.0)] * 2).tolist())
""")
    assert "False False\n[9.0, 9.0]" in said
    assert re.search(r"UserWarning: sparsenn runs on its slower \w+ reference: _cpu\S+ was built from another version", said)


def test_the_build_knows_the_schemas(kernels):
    assert _extension._built_for() == FINGERPRINT


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA, which is told that it has it")
def test_a_missing_cuda_library_is_said_once_at_the_first_use():
    """No tensor can be on CUDA here, so what is registered for them is called by hand."""
    said = in_a_new_process("""
import torch
torch.version.cuda = "13.0"
import sparsenn.ops
from sparsenn.ops import library, reference
assert all(torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsenn::{name}", "CUDA") for name in library.SCHEMAS)
from sparsenn.training.stacked.fused_engine import has_kernel
print("kernel:", has_kernel(torch.device("cuda")), has_kernel(torch.device("mps")))
print("loaded")
definition = library._with_warning(reference.hadamard)
print(definition([torch.full((2,), 3.0)] * 2).tolist(), definition([torch.ones(1)]).tolist())
""")
    before, after = said.split("loaded", 1)
    assert "kernel: False False" in before  # the reference's loop over runs and steps is no fused engine
    assert "on CUDA tensors" not in before
    assert "[9.0, 9.0] [1.0]" in after
    assert after.count("UserWarning: sparsenn runs on its slower PyTorch reference on CUDA tensors: the cuda library") == 1
