"""Factors that multiply to a given weight, and the entry that all methods share."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DTYPES
from factor_cases import N, empty, filled, product, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsenn import init

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
