"""The stream of numbers, what depends on it, and the laws of the draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import DTYPES
from factor_cases import N, empty, filled, p_value, product, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import nn

from sparsenn import init
from sparsenn.init import gaussian, stream
from sparsenn.ops import splitmix

# --- the stream


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 12345678901234567890])
def test_uniform_numbers_are_uniform_independent_and_inside_the_open_interval(seed):
    numbers = torch.arange(N)
    streams = [*(stream.uniform(numbers, seed, d) for d in range(4)), stream.uniform(numbers, seed + 1, 0)]
    for u, sign in streams:
        assert u.min() > 0
        assert u.max() < 1
        assert ((u * 2.0**53) % 2 == 1).all()
        assert p_value(u, "uniform") > 1e-4
        assert set(sign.unique().tolist()) == {-1.0, 1.0}
        assert abs(sign.mean()) < 5 / N**0.5
    # Neighbours, other factors, neighbouring seeds, signs: no correlation beyond five standard errors.
    columns = [column for u, sign in streams for column in (u[1:], u[:-1], sign[1:], sign[:-1])]
    correlation = np.corrcoef(torch.stack(columns).numpy())
    assert np.abs(correlation - np.eye(len(columns))).max() < 5 / N**0.5


def test_uniform_numbers_fill_the_square_evenly():
    u, _ = stream.uniform(torch.arange(2 * N), 3, 0)
    for x, y in ((u[0::2], u[1::2]), (u[:N], stream.uniform(torch.arange(N), 4, 0)[0])):
        counts, _, _ = np.histogram2d(x.numpy(), y.numpy(), bins=32, range=[[0, 1], [0, 1]])
        assert stats.chisquare(counts.flatten()).pvalue > 1e-4


def test_every_bit_of_the_stream_is_fair_and_flips_with_every_bit_of_the_counter():
    base = torch.arange(4096)
    words = lambda numbers: (stream.uniform(numbers, 9, 0)[0] * 2.0**52).long()  # noqa: E731
    shifts = torch.arange(52)
    bits = (words(base)[:, None] >> shifts) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / 64
    for k in range(63):
        flipped = ((words(base)[:, None] ^ words(base ^ (1 << k))[:, None]) >> shifts) & 1
        assert (flipped.double().mean(0) - 0.5).abs().max() < 5.5 * 0.5 / 64, k


def test_the_mixer_is_splitmix64():
    # Published test vector: the first outputs of SplitMix64 from state 0.
    state = torch.arange(1, 4).mul(stream._signed(0x9E3779B97F4A7C15))
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [x % 2**64 for x in stream._mix_(state).tolist()] == expected
    assert splitmix.mix(0x9E3779B97F4A7C15) == expected[0]


@given(shape=st.lists(st.integers(0, 7), max_size=4), limit=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_pieces_cover_a_tensor_once_in_row_major_order(shape, limit):
    numbers = torch.arange(math.prod(shape)).view(shape)
    parts = [numbers[piece].flatten() for piece in stream.pieces(shape, limit)]
    assert all(part.numel() <= limit for part in parts)
    assert torch.equal(torch.cat([*parts, torch.arange(0)]), numbers.flatten())


# --- one function of (seed, factor, element)


@pytest.mark.parametrize("method", init.FACTOR_INITS)
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_whole_is_the_concatenation_of_its_parts(method, depth, monkeypatch):
    weight = torch.randn(37, 11, dtype=torch.float64, generator=seeded())
    weight[5] = 0
    numbers = torch.arange(weight.numel()).view(weight.shape)
    whole = filled(weight, method, depth, std=0.3, seed=5)
    for rows in ([10, 27], [1, 1, 35], [37]):
        parts = [
            filled(w, method, depth, std=0.3, seed=5, index=i)
            for w, i in zip(weight.split(rows), numbers.split(rows), strict=True)
        ]
        for d in range(depth):
            assert torch.equal(torch.cat([part[d] for part in parts]), whole[d])
    # A shuffled shard, and pieces of another size.
    order = torch.randperm(37, generator=seeded())
    shuffled = filled(weight[order], method, depth, std=0.3, seed=5, index=numbers[order])
    monkeypatch.setitem(stream._PIECE, "cpu", 13)
    pieced = filled(weight, method, depth, std=0.3, seed=5)
    for d in range(depth):
        assert torch.equal(shuffled[d], whole[d][order])
        assert torch.equal(pieced[d], whole[d])


def test_the_number_of_threads_changes_no_bit():
    weight = torch.randn(100_001, dtype=torch.float64, generator=seeded())
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            factors = empty(2, 100_001)
            init.gaussian_product_(factors, 0.3, generator=seeded())
            results.append([*filled(weight, "preserve", 3, seed=1), *filled(weight, "root", 3, seed=1), *factors])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("method", init.FACTOR_INITS)
def test_a_seed_decides_all_and_another_seed_decides_otherwise(method):
    weight = torch.randn(1000, generator=seeded())
    first, again, other = (filled(weight, method, 2, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], other[0]) == (method == "root")
    drawn, redrawn = (filled(weight, method, 2, generator=seeded(3)) for _ in range(2))
    assert torch.equal(drawn[0], redrawn[0])
    torch.manual_seed(4)
    default = filled(weight, method, 2)
    torch.manual_seed(4)
    assert torch.equal(default[0], filled(weight, method, 2)[0])
    if method != "root":
        assert not torch.equal(default[0], filled(weight, method, 2)[0])
        assert not torch.equal(first[0].abs(), first[1].abs())


@pytest.mark.parametrize("method", init.FACTOR_INITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_factors_are_the_rounded_wide_ones(method, dtype):
    weight = torch.randn(500, 3, generator=seeded()).to(dtype)
    wide = filled(weight, method, 3, dtype=torch.float64, seed=1)
    narrow = filled(weight, method, 3, seed=1)
    for d in range(3 if method != "preserve" else 2):
        torch.testing.assert_close(narrow[d], wide[d].to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
        if method != "dwf":
            assert torch.equal(narrow[d], wide[d].to(dtype))


@pytest.mark.parametrize("method", init.FACTOR_INITS)
@pytest.mark.parametrize("depth", [1, 3])
def test_strides_do_not_matter(method, depth, monkeypatch):
    monkeypatch.setitem(stream._PIECE, "cpu", 50)
    weight = torch.randn(4, 3, 5, 6, generator=seeded())
    expected = filled(weight, method, depth, seed=1)
    strided = [
        weight.clone(memory_format=torch.channels_last),
        weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        torch.stack([weight, weight], -1)[..., 1],
    ]
    for i, w in enumerate(strided):
        factors = [torch.empty_like(strided[(i + d) % 3]) for d in range(depth)]
        if depth == 3:
            factors[0] = torch.empty(4, 3, 5, 12)[..., ::2]
        init.fill_(factors, w, method, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(factors, expected, strict=True))


@pytest.mark.parametrize("method", init.FACTOR_INITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_and_empty_tensors(method, dtype):
    scalar = filled(torch.tensor(0.5, dtype=dtype), method, 2, seed=1)
    line = filled(torch.tensor([0.5], dtype=dtype), method, 2, seed=1)
    assert [factor.item() for factor in scalar] == [factor.item() for factor in line]
    assert filled(torch.empty(3, 0, dtype=dtype), method, 2)[1].shape == (3, 0)


def test_parameters_are_filled_in_place_without_a_graph():
    factors = [nn.Parameter(torch.empty(3)) for _ in range(2)]
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    for fill in (init.preserve_, init.root_):
        fill(factors, weight)
        assert all(factor.is_leaf and factor.grad_fn is None for factor in factors)
        torch.testing.assert_close(product(factors).float(), weight.detach())


# --- laws of the draws


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_variance_matching_has_the_variance_and_the_kurtosis_3_to_the_depth(depth):
    factors = empty(depth, 20 * N)
    init.variance_matching_(factors, 0.2, generator=seeded(depth))
    w = product(factors) / 0.2
    # Standard errors from the exact moments of a product of normals: E w^2k = ((2k - 1)!!)^D.
    count = w.numel()
    assert abs((w**2).mean().item() - 1) < 4 * math.sqrt((3**depth - 1) / count)
    if depth < 4:
        assert abs((w**4).mean().item() - 3**depth) < 4 * math.sqrt((105**depth - 9**depth) / count)
    for factor in factors:
        assert p_value(factor[:N] / 0.2 ** (1 / depth), "norm") > 1e-4


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_truncation_cures_the_kurtosis(depth):
    normal, truncated = empty(depth, N), empty(depth, N)
    init.variance_matching_(normal, 0.05, generator=seeded())
    init.dwf_(truncated, 0.05, generator=seeded())
    kurtosis = [stats.kurtosis(product(factors).numpy(), fisher=False) for factors in (truncated, normal)]
    # The even moments of a truncated normal are exact here: the kurtosis of the product is that of one factor to the depth.
    scale = 0.05 ** (1 / depth)
    density = lambda x, k: x**k * math.exp(-((x / scale) ** 2) / 2)  # noqa: E731
    x = np.linspace(3e-3, min(1, 0.1 ** (1 / depth)), 100_001)
    moment = {k: np.trapezoid([density(v, k) for v in x], x) for k in (0, 2, 4)}
    exact = (moment[4] * moment[0] / moment[2] ** 2) ** depth
    assert kurtosis[0] == pytest.approx(exact, rel=0.05)
    assert kurtosis[0] < 0.7 * 3**depth < 1.5 * kurtosis[1]


def test_standard_factors_have_the_standard_deviation_each():
    factors = empty(3, N)
    init.standard_(factors, 0.2, generator=seeded())
    assert all(p_value(factor / 0.2, "norm") > 1e-4 for factor in factors)
    assert product(factors).std().item() == pytest.approx(0.2**3, rel=0.05)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("std", [5e-3, 0.05, 0.7, 30.0])
def test_dwf_is_the_truncated_normal(depth, std):
    factors = empty(depth, N)
    init.dwf_(factors, std, generator=seeded(depth))
    scale, low, high = std ** (1 / depth), 3e-3, min(1, (2 * std) ** (1 / depth))
    half = stats.truncnorm(low / scale, high / scale, scale=scale)
    for factor in factors:
        assert factor.abs().min() > low
        assert factor.abs().max() < high
        assert p_value(factor.abs(), half.cdf) > 1e-4
        assert abs(factor.sign().mean()) < 5 / N**0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_dwf_bounds_hold_strictly_in_every_dtype(dtype):
    for std, min_abs in ((0.05, 3e-3), (0.05, 0.29), (4.6e-3, 0.094)):
        factors = empty(2, 50_000, dtype=dtype)
        init.dwf_(factors, std, min_abs, generator=seeded())
        for factor in factors:
            assert factor.double().abs().min() > min_abs
            assert factor.double().abs().max() < math.sqrt(2 * std)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("terms", "count"), [(1, 1000), (5, N), (64, N)])
def test_gaussian_factors_multiply_to_a_normal_variable(depth, terms, count):
    # One term and 1000 products at sigma = .1: Figure 25.
    factors = empty(depth, count)
    init.gaussian_product_(factors, 0.1, terms=terms, generator=seeded(depth))
    assert p_value(product(factors) / 0.1, "norm") > 1e-4
    assert all(abs(factor.sign().mean()) < 5 / count**0.5 for factor in factors)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 20])
@pytest.mark.parametrize(("terms", "tolerance"), [(64, 1e-3), (2000, 1e-6)])
def test_gaussian_factors_have_the_moments_of_their_law(depth, terms, tolerance):
    # E|w_d|^p = (E|z|^p)^(1/D) for z normal: its D factors are independent and alike. The mean is over the logit of u.
    logit = torch.linspace(-24, 24, 20_001, dtype=torch.float64)
    u = torch.sigmoid(logit)
    density = u * (1 - u) * (logit[1] - logit[0])
    sizes = gaussian._interpolated(gaussian._quantiles(depth, terms), 1.0)(u, torch.ones(()))
    for p in (0.5, 1, 2, 4):
        normal = 2 ** (p / 2) * special.gamma((p + 1) / 2) / math.sqrt(math.pi)
        assert (sizes**p * density).sum().item() == pytest.approx(normal ** (1 / depth), rel=tolerance)
    mean = (sizes.log() * density).sum().item()
    assert mean == pytest.approx(-(np.euler_gamma + math.log(2)) / (2 * depth), abs=1e-6)
    assert ((sizes.log() - mean) ** 2 * density).sum().item() == pytest.approx(math.pi**2 / 8 / depth, rel=1e-6)


def test_gaussian_factors_at_depth_one_invert_the_normal_distribution():
    u = torch.logspace(-9, math.log10(0.5), 1000, dtype=torch.float64)
    for v in (u, 1 - u):
        sizes = gaussian._interpolated(gaussian._quantiles(1, 2000), 1.0)(v, torch.ones(()))
        expected = stats.halfnorm.ppf(v.numpy())
        np.testing.assert_allclose(sizes.numpy(), expected, rtol=1e-5)
