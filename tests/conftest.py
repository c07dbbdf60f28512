"""Fixtures: which backend runs the operators, which devices there are, and fresh memory that holds NaN."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from cases import FUSED

import sparsenn
from sparsenn import _extension

sparsenn.ops  # noqa: B018  (loads the kernels)
NEEDS_CUDA = "needs a CUDA device"
LIBRARIES = _extension.status()["libraries"]
KERNELS = LIBRARIES["cpu"].loaded


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # what is float32 is compared as such
    torch.backends.cuda.matmul.allow_tf32 = False
    if not KERNELS and os.environ.get("SPARSENN_REFERENCE") != "1":
        warnings.warn("the compiled kernels are not loaded: only the reference is tested", stacklevel=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """With SPARSENN_STRICT=1, as in CI, a test may be skipped for want of a GPU and of nothing else."""
    report = yield
    if report.skipped and os.environ.get("SPARSENN_STRICT") == "1" and NEEDS_CUDA not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"SPARSENN_STRICT=1 allows no skip but for a GPU: {report.longrepr}"
    return report


@pytest.fixture(params=["reference", "compiled"])
def backend(request: pytest.FixtureRequest):
    """Runs a test once on the plain PyTorch definitions and once on the kernels."""
    if request.param == "compiled" and not KERNELS:
        pytest.skip("the compiled kernels are not built")
    with sparsenn.ops.backend(request.param):
        yield request.param


@pytest.fixture
def kernels() -> None:
    """For tests of what only the kernels do."""
    if not KERNELS:
        pytest.skip("the compiled kernels are not built")


@pytest.fixture
def fused_torch() -> None:
    """For tests that compare with torch's own steps to the bit."""
    if not FUSED:
        pytest.skip("torch adds products without rounding them, as the kernels do, only where it runs with AVX2 or AVX-512")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(NEEDS_CUDA)
    if request.param == "cuda" and KERNELS and not LIBRARIES["cuda"].loaded:
        pytest.fail(f"the reference would be compared with itself: {LIBRARIES['cuda'].problem}")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Memory that an operator leaves unwritten is NaN, and fails whatever is compared."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = before
