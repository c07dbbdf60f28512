from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import nn

from sparsenn import init
from sparsenn.init import gaussian, stream

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
N = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def empty(depth: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.full(shape, math.nan, dtype=dtype) for _ in range(depth)]


def product(factors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([factor.detach().double() for factor in factors]).prod(0)


def filled(weight: torch.Tensor, method: str, depth: int, *, dtype: torch.dtype | None = None, **kwargs) -> list[torch.Tensor]:
    factors = [torch.full_like(weight, math.nan, dtype=dtype) for _ in range(depth)]
    init.fill_(factors, weight, method, **kwargs)
    return factors


def p_value(sample: torch.Tensor, cdf) -> float:
    return stats.kstest(sample.double().flatten().numpy(), cdf).pvalue


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
    assert stream._mix_int(0x9E3779B97F4A7C15) == expected[0]


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


# --- splitting a weight


def targets(weight: torch.Tensor, made: torch.Tensor, floor: float = 1e-4) -> torch.Tensor:
    w = weight.double()
    sign = torch.where(w == 0, made.sign(), w.sign())
    return torch.where(w.abs() < floor, sign * floor, w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 300.0])
def test_preserve_keeps_the_weight_to_one_rounding(dtype, depth, scale):
    weight = (scale * torch.randn(20_000, generator=seeded())).to(dtype)
    weight[:100] = 0
    weight[100:200] = 1e-6
    weight[200] = -0.0
    factors = empty(depth, 20_000, dtype=dtype)
    init.preserve_(factors, weight, generator=seeded())
    if depth == 1:
        assert torch.equal(factors[0], weight)
        return
    made = product(factors)
    # eps / 2 for the last factor; the product itself is formed in float64 here, which rounds where that is the dtype.
    tolerance = torch.finfo(dtype).eps * (0.5 if dtype != torch.float64 else 0.5 + depth)
    assert ((made - targets(weight, made)).abs() <= tolerance * 1.001 * targets(weight, made).abs()).all()
    assert 20 < (made[:100] > 0).sum() < 80
    assert (made[100:200] > 0).all()


def test_preserve_with_no_floor_keeps_zeros_exactly_and_movable():
    weight = torch.tensor([0.0, -0.0, 1e-7, -0.3])
    factors = empty(3, 4)
    init.preserve_(factors, weight.double(), min_weight=0, generator=seeded())
    assert (product(factors)[:2] == 0).all()
    torch.testing.assert_close(product(factors), weight.double(), rtol=1e-14, atol=0)
    assert (torch.stack(factors)[:, :2].abs() > 0).sum(0).tolist() == [2, 2]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_preserve_keeps_the_ratios_of_the_draw(depth):
    weight = 0.05 * torch.randn(50_000, dtype=torch.float64, generator=seeded(1))
    weight = weight[weight.abs() > 1e-4]
    std = init.root_mean_square(weight)
    split, drawn = (filled(weight, method, depth, std=std, seed=3) for method in ("preserve", "dwf"))
    ratio = torch.stack(split) / torch.stack(drawn)
    gain = (weight / torch.stack(split)).abs().amax(0)
    free = gain < 1 - 1e-9
    assert free.double().mean() > 0.9
    torch.testing.assert_close(ratio.abs()[:, free], ratio[:1, free].abs().expand(depth, -1), rtol=1e-12, atol=0)
    assert (ratio[:-1] > 0).all()
    assert 0.4 < (ratio[-1] > 0).double().mean() < 0.6
    assert torch.equal(filled(weight, "preserve", depth, seed=3)[0], split[0])


@pytest.mark.parametrize("depth", [2, 3, 4, 8])
def test_preserve_bounds_the_gradients_of_the_factors(depth):
    for scale in (1e-3, 0.05, 1.0, 300.0):
        weight = scale * torch.randn(20_000, dtype=torch.float64, generator=seeded())
        weight[:10_000] = scale
        factors = filled(weight, "preserve", depth, seed=1)
        size = weight.abs().clamp(min=1e-4)
        gain = (size / torch.stack(factors)).abs().amax(0)
        assert (gain <= torch.clamp(2 * size ** (1 - 1 / depth), min=1) * (1 + 1e-9)).all()
        # The split stays uneven: that is what lets a weight change its sign.
        spread = torch.stack(factors).abs().amax(0) / torch.stack(factors).abs().amin(0)
        assert spread.median() > 1.5


def test_preserve_draws_from_a_support_that_is_never_empty():
    weight = torch.full((1000,), 0.01, dtype=torch.float64)
    for min_abs, widest in ((0.1, 2.0), (0.8, 1.25)):
        factors = empty(3, 1000)
        init.preserve_(factors, weight, std=1e-9, min_abs=min_abs, generator=seeded())
        sizes = torch.stack(factors).abs()
        spread = sizes.amax(0) / sizes.amin(0)
        assert 0.8 * widest < spread.max() <= widest * (1 + 1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4, 8])
@pytest.mark.parametrize("value", [0.0, 1e-12, 1e-4, 1.0, 1e4])
def test_preserve_splits_constant_tensors_of_any_scale(depth, value):
    for std in (None, 1e-9, 0.0):
        factors = empty(depth, 1000)
        init.preserve_(factors, torch.full((1000,), value, dtype=torch.float64), std=std, generator=seeded())
        made = product(factors)
        torch.testing.assert_close(made.abs(), torch.full_like(made, max(value, 1e-4)), rtol=1e-13, atol=0)
        if value >= 1e-4:
            assert factors[0].abs().unique().numel() > 400


def loop(factors: list[torch.Tensor], target: float, lam: float, lr: float, momentum: float, steps: int) -> torch.Tensor:
    """Plain PyTorch: the factors as parameters, squared loss on their product, SGD with decay 2 lam / D, cosine schedule."""
    parameters = [nn.Parameter(factor) for factor in factors]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=2 * lam / len(factors))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        made = parameters[0]
        for parameter in parameters[1:]:
            made = made * parameter
        optimizer.zero_grad()
        (0.5 * (made - target).square().sum()).backward()
        optimizer.step()
        schedule.step()
    return product(parameters)


def test_preserve_of_a_draw_without_spread_is_balanced():
    factors = empty(3, 100)
    init.preserve_(factors, torch.full((100,), -8.0, dtype=torch.float64), min_abs=1 - 2**-53, generator=seeded())
    torch.testing.assert_close(torch.stack(factors).abs(), torch.full((3, 100), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("method", init.FACTOR_INITS)
def test_meta_factors_pass(method):
    factors = [torch.empty(3, device="meta") for _ in range(2)]
    init.fill_(factors, torch.empty(3, device="meta"), method)
    assert all(factor.is_meta for factor in factors)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize(("lr", "momentum", "steps"), [(0.15, 0.9, 600), (0.1, 0.0, 2000)])
def test_zero_biases_learn_from_the_default_start(depth, lr, momentum, steps):
    bias = torch.zeros(64)
    factors = filled(bias, "preserve", depth, seed=1)
    assert {-1.0, 1.0} == set(product(factors).sign().tolist())
    for target in (0.3, -0.3):
        learned = loop([factor.clone() for factor in factors], target, 6e-4, lr, momentum, steps)
        assert (learned - target).abs().max() < 0.01


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(6), lambda: nn.Linear(6, 6)], ids=["batchnorm", "linear"])
def test_shift_and_bias_of_a_layer_learn_beside_its_weight(make, depth):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(64, 6)
    nn.init.zeros_(layer.bias)
    goal = layer(x).detach() + torch.tensor([0.3, -0.3, 0.3, -0.3, 0.0, 0.0])
    factors = {name: [nn.Parameter(f) for f in filled(p.detach(), "preserve", depth)] for name, p in layer.named_parameters()}
    flat = [factor for group in factors.values() for factor in group]
    optimizer = torch.optim.SGD(flat, lr=0.05, momentum=0.9, weight_decay=2 * 6e-4 / depth)
    for _ in range(600):
        made = {name: torch.stack(group).prod(0) for name, group in factors.items()}
        optimizer.zero_grad()
        (0.5 * (torch.func.functional_call(layer, made, x) - goal).square().sum(1).mean()).backward()
        optimizer.step()
    bias = product(factors["bias"])
    assert (bias.abs()[:4] - 0.3).abs().max() < 0.02
    assert bias[:4].sign().tolist() == [1, -1, 1, -1]
    assert bias[4:].abs().max() < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8])
def test_root_is_balanced_and_multiplies_to_the_weight(dtype, depth):
    weight = torch.randn(20_000, generator=seeded()).to(dtype)
    weight[:2] = torch.tensor([0.0, -0.0])
    factors = empty(depth, 20_000, dtype=dtype)
    init.root_(factors, weight)
    for factor in factors[1:]:
        assert torch.equal(factor, factors[0].abs())
        assert not factor.signbit().any()
    w, made = weight.double(), product(factors)
    assert ((made - w).abs() <= depth * torch.finfo(dtype).eps * w.abs()).all()
    assert torch.equal(factors[0].sign(), weight.sign())


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_root_of_a_power_is_exact(depth):
    base = torch.arange(-9.0, 10.0, dtype=torch.float64)
    factors = empty(depth, len(base))
    init.root_(factors, base.sign() * base.abs() ** depth)
    assert torch.equal(factors[0], base)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_balanced_start_never_changes_the_sign_and_preserve_does(depth):
    weight = 0.1 * torch.rand(64, generator=seeded(), dtype=torch.float64) + 0.01
    balanced, mixed = (
        loop(filled(weight, method, depth, seed=1), -0.3, 0.0, 0.02, 0.9, 1500) for method in ("root", "preserve")
    )
    assert (balanced >= 0).all()
    assert (mixed + 0.3).abs().median() < 1e-3


# --- the common entry


def test_fill_takes_the_scale_of_the_weight():
    weight = 0.07 * torch.randn(N, dtype=torch.float64, generator=seeded())
    for method, make in (("dwf", init.dwf_), ("variance_matching", init.variance_matching_), ("standard", init.standard_)):
        named, expected = filled(weight, method, 2, generator=seeded(1)), empty(2, N)
        make(expected, init.root_mean_square(weight), generator=seeded(1))
        assert all(torch.equal(a, b) for a, b in zip(named, expected, strict=True))
    zeros = filled(torch.zeros(N, dtype=torch.float64), "variance_matching", 2, seed=1)
    assert product(zeros).std().item() == pytest.approx(1e-4, rel=0.05)


@given(st.lists(st.floats(-1e6, 1e6), max_size=50))
@settings(max_examples=50, deadline=None)
def test_root_mean_square(values):
    weight = torch.tensor(values, dtype=torch.float64)
    expected = math.sqrt(math.fsum(v * v for v in values) / max(len(values), 1))
    assert init.root_mean_square(weight) == pytest.approx(expected, rel=1e-12)


def test_root_mean_square_is_the_same_bits_for_any_number_of_threads():
    weights, threads = torch.randn(20, 301, 303, generator=seeded()), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = [init.root_mean_square(weight) for weight in weights]
        torch.set_num_threads(3)
        assert [init.root_mean_square(weight) for weight in weights] == one
        assert one == pytest.approx(weights.double().square().mean((1, 2)).sqrt().tolist(), rel=1e-12)
    finally:
        torch.set_num_threads(threads)


def test_errors_are_sentences():
    pair, weight = empty(2, 3), torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="unknown factor_init 'dfw'; it takes one of 'preserve', 'root', 'dwf'"):
        init.fill_(pair, weight, "dfw")
    with pytest.raises(
        ValueError, match=r"between min_abs=0.003 and min\(1, \(2 std\)\^\(1/D\)\) = 0.00141421 for std=1e-06, D=2"
    ):
        init.dwf_(pair, 1e-6)
    with pytest.raises(ValueError, match="at least one tensor; got none"):
        init.preserve_([], weight)
    with pytest.raises(ValueError, match=r"factors\[1\] has shape \(4,\)"):
        init.root_([torch.empty(3), torch.empty(4)], torch.ones(3))
    with pytest.raises(ValueError, match=r"factors\[0\] is torch.int64"):
        init.standard_([torch.zeros(3, dtype=torch.int64)], 1.0)
    with pytest.raises(ValueError, match="index must be an int64 tensor"):
        init.fill_(pair, weight, "dwf", index=torch.arange(4))
    with pytest.raises(ValueError, match="weight holds values that are not finite"):
        init.preserve_(pair, torch.tensor([1.0, math.nan, 0.0], dtype=torch.float64))
    for std in (0.0, -1.0, math.nan, math.inf):
        for make in (init.standard_, init.variance_matching_, init.dwf_, init.gaussian_product_):
            with pytest.raises(ValueError, match="std must be positive and finite"):
                make(pair, std)
    with pytest.raises(ValueError, match=r"min_abs must be in \[0, 1\)"):
        init.preserve_(pair, weight, min_abs=1.0)
    with pytest.raises(ValueError, match="terms must be at least 1"):
        init.gaussian_product_(pair, 1.0, terms=0)
    assert all(factor.isnan().all() for factor in pair)
