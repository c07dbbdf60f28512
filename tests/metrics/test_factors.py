from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsenn import init
from sparsenn.metrics import misalignment

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def definition(factors: list[torch.Tensor]) -> float:
    depth, w = len(factors), [1.0] * factors[0].numel()
    for factor in factors:
        w = [a * b for a, b in zip(w, factor.double().flatten().tolist(), strict=True)]
    squares = math.fsum(x * x for factor in factors for x in factor.double().flatten().tolist())
    return squares / depth - math.fsum(abs(x) ** (2 / depth) for x in w)


numbers = st.floats(-100, 100).map(lambda x: x if abs(x) > 1e-6 else 0.0)
arrays = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(0, 8)), elements=numbers)


@given(arrays)
@settings(max_examples=200, deadline=None)
def test_is_the_definition_and_never_negative(values):
    factors = list(torch.from_numpy(values))
    got = misalignment(factors).item()
    assert got >= 0
    assert got == pytest.approx(definition(factors), abs=1e-12 * (1 + float((values**2).sum())))


@given(arrays, st.floats(0.01, 100))
@settings(max_examples=100, deadline=None)
def test_grows_with_the_square_of_the_factors_and_ignores_signs_and_order(values, c):
    factors = list(torch.from_numpy(values))
    got = misalignment(factors).item()
    assert misalignment([c * factor for factor in factors]).item() == pytest.approx(c * c * got, rel=1e-6, abs=1e-10 * c * c)
    assert misalignment([-factor for factor in reversed(factors)]).item() == pytest.approx(got, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_exactly_zero_for_balanced_factors_and_only_for_them(depth, dtype):
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[:10] = 0
    factors = [torch.empty_like(weight) for _ in range(depth)]
    init.root_(factors, weight)
    assert misalignment(factors).item() == 0
    if depth > 1:
        factors[1][500] *= 1 + max(4 * torch.finfo(dtype).eps, 1e-6)
        assert misalignment(factors).item() > 0
        factors[1][500] = factors[0][500].abs()
        factors[1][0] = 0.5  # one factor beside zeros
        assert misalignment(factors).item() == 0.25 / depth


def test_a_nearly_balanced_pair_does_not_cancel():
    # At depth 2 the share is (|a| - |b|)^2 / 2.
    got = misalignment([torch.tensor(1.0, dtype=torch.float64), torch.tensor(1 + 1e-5, dtype=torch.float64)]).item()
    assert got == pytest.approx(0.5e-10, rel=1e-4)


def test_is_additive_over_weights_and_independent_of_strides_and_threads():
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(30, 40, 50, generator=generator) for _ in range(3)]
    whole = misalignment(factors)
    assert whole.dtype == torch.float64
    assert whole.shape == ()
    parts = sum(misalignment([factor[i : i + 10] for factor in factors]).item() for i in (0, 10, 20))
    assert whole.item() == pytest.approx(parts, rel=1e-12)
    strided = [factors[0], factors[1].permute(2, 0, 1).contiguous().permute(1, 2, 0), torch.stack([factors[2]] * 2, -1)[..., 0]]
    assert torch.equal(misalignment(strided), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(misalignment(factors), whole)
    finally:
        torch.set_num_threads(threads)


def test_half_factors_are_summed_in_float64():
    factors = [torch.full((100_000,), 60.0, dtype=torch.float16), torch.zeros(100_000, dtype=torch.float16)]
    assert misalignment(factors).item() == 100_000 * 3600 / 2


def test_scalar_empty_and_wrong_factors():
    assert misalignment([torch.tensor(3.0), torch.tensor(1.0)]).item() == pytest.approx(2.0)
    assert misalignment([torch.empty(0, 3), torch.empty(0, 3)]).item() == 0
    assert math.isnan(misalignment([torch.tensor([math.nan, 1.0]), torch.ones(2)]).item())
    with pytest.raises(ValueError, match="at least one tensor; got none"):
        misalignment([])
    with pytest.raises(ValueError, match=r"factors\[1\] has shape \(2,\)"):
        misalignment([torch.ones(1), torch.ones(2)])
