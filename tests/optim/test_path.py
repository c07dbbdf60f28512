"""Where all is zero, grids, and paths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from sparsenn.metrics import kkt_residual
from sparsenn.optim import (
    FactorizedAdam,
    FactorizedSGD,
    Proximal,
    ProxSGD,
    lambda_max,
    lambda_path,
    param_groups,
    regularization_path,
)
from sparsenn.penalties import L0_5, L1, ElasticNet, GroupL1, SparseGroupL1


def setup(outputs: int = 2):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    w = torch.randn(outputs, 6, generator=generator, dtype=torch.float64)
    y = x @ w.T
    torch.manual_seed(0)
    model = nn.Linear(6, outputs, bias=False).double()
    return model, x, y, lambda: (model(x) - y).square().mean() / 2


def fit(model, optimizer, closure, steps=1500):
    for _ in range(steps):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "penalty", [L1(1), ElasticNet(1, 0.5), GroupL1(1, "rows"), GroupL1(1, "columns"), SparseGroupL1(1, 0.3)], ids=repr
)
def test_at_lambda_max_and_above_all_is_zero_and_below_it_is_not(penalty):
    model, _, _, closure = setup()
    before = model.weight.detach().clone()
    top = lambda_max(model, closure, penalty)
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None
    optimizer = Proximal(torch.optim.SGD(model.parameters(), 0.3), penalty)
    for factor, dead in ((1.0001, True), (0.98, False)):
        optimizer.param_groups[0]["lam"] = top * factor
        fit(model, optimizer, closure)
        assert bool((model.weight == 0).all()) == dead
        assert kkt_residual(model, closure, optimizer).total.max <= 1e-10


def test_it_is_the_largest_gradient():
    model, x, y, closure = setup()
    expected = (x.T @ y / y.numel()).abs().max()
    assert lambda_max(model, closure) == pytest.approx(float(expected), rel=1e-12)
    here = torch.autograd.grad(closure(), model.weight)[0].abs().max()
    assert lambda_max(model, closure, at="here") == pytest.approx(float(here), rel=1e-12)
    step = 0.3
    assert lambda_max(model, closure, L0_5(1), step=step) == pytest.approx((2 / 3 * float(expected)) ** 1.5 * step**0.5)


def test_unpenalised_parameters_stay_and_penalties_are_by_pattern():
    model = nn.Sequential(nn.Linear(6, 2)).double()
    x = torch.randn(60, 6, dtype=torch.float64)
    y = torch.randn(60, 2, dtype=torch.float64)
    closure = lambda: (model(x) - y).square().mean() / 2  # noqa: E731
    centred = y - model[0].bias.detach()
    assert lambda_max(model, closure) == pytest.approx(float((x.T @ centred / 120).abs().max()), rel=1e-12)
    both = lambda_max(model, closure, {"0.weight": L1(1), "0.bias": L1(1)}, exclude=())
    assert both == pytest.approx(max(float((x.T @ y / 120).abs().max()), float((y.sum(0) / 120).abs().max())), rel=1e-12)


def test_a_deep_network_has_no_lambda_max_and_says_so():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 2))
    x = torch.randn(20, 6)
    closure = lambda: model(x).square().mean()  # noqa: E731
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"zero is stationary for every lam\. Use at='here'"):
        lambda_max(model, closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    largest = max(float(g.abs().max()) for g in torch.autograd.grad(closure(), [model[0].weight, model[2].weight]))
    assert lambda_max(model, closure, at="here") == pytest.approx(largest)
    with pytest.raises(ValueError, match="at is 'there'; it takes 'zero' or 'here'"):
        lambda_max(model, closure, at="there")


def test_weights_come_back_when_the_closure_fails():
    model, _, _, _ = setup()
    before = model.weight.detach().clone()

    def closure():
        raise KeyError("no data")

    with pytest.raises(KeyError):
        lambda_max(model, closure)
    assert torch.equal(model.weight, before)


def test_lambda_path():
    lams = lambda_path(0.3, 31, 1e-3)
    assert len(lams) == 31
    assert lams[0] == 0.3
    assert lams[-1] == pytest.approx(3e-4, rel=1e-14)
    ratios = [math.log(b / a) for a, b in itertools.pairwise(lams)]
    assert ratios == pytest.approx([ratios[0]] * 30, rel=1e-12)
    assert lambda_path(0.3, 1) == [0.3]
    for bad, message in (
        ((0.0,), "lam_max is 0.0"),
        ((math.inf,), "lam_max is inf"),
        ((1.0, 0), "n is 0"),
        ((1.0, 3, 0), "eps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            lambda_path(*bad)


def test_a_path_is_warm_started_and_its_points_are_the_cold_ones():
    model, _, _, closure = setup()
    optimizer = ProxSGD(param_groups(model, lam=1.0), 0.3)
    lams = lambda_path(1.01 * lambda_max(model, closure), 5, 0.05)
    starts = []

    def one(lam):
        assert optimizer.param_groups[0]["lam"] == lam
        starts.append(model.weight.detach().clone())
        fit(model, optimizer, closure)
        return model.weight.detach().clone()

    points = regularization_path(one, lams, optimizer)
    assert [point.lam for point in points] == lams
    for point, start in zip(points, starts[1:], strict=False):
        assert torch.equal(point.result, start)
    zeros = [int((point.result == 0).sum()) for point in points]
    assert zeros == sorted(zeros, reverse=True)
    assert zeros[0] == 12
    for point in points:
        cold, _, _, loss = setup()
        fit(cold, ProxSGD(cold.parameters(), 0.3, lam=point.lam), loss)
        torch.testing.assert_close(cold.weight.detach(), point.result, rtol=1e-8, atol=1e-10)


def test_groups_keep_their_proportions_and_tensors_their_identity():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    tensor = torch.full((2, 1), 0.25)
    groups = [
        {"params": [model[0].weight], "lam": 0.5},
        {"params": [model[1].weight], "lam": tensor},
        {"params": [model[0].bias, model[1].bias], "lam": 0.0},
    ]
    for optimizer in (
        ProxSGD([dict(g) for g in groups], 0.1),
        Proximal(torch.optim.SGD([dict(g) for g in groups], 0.1), L1(1)),
    ):
        seen = []
        regularization_path(lambda lam, o=optimizer, s=seen: s.append([g["lam"] for g in o.param_groups]), [2.0], optimizer)
        assert seen[0][0] == 2.0
        assert seen[0][1] is tensor
        assert torch.equal(tensor, torch.full((2, 1), 1.0))
        assert seen[0][2] == 0.0
        regularization_path(lambda lam: None, [0.5], optimizer)


@pytest.mark.parametrize(("kind", "lr"), [(FactorizedSGD, 0.1), (FactorizedAdam, 0.01)])
def test_factors_go_up_a_path(kind, lr):
    model, _, _, closure = setup()
    optimizer = kind(model.parameters(), lr, lam=1e-4, generator=torch.Generator().manual_seed(0))

    def one(lam):
        fit(model, optimizer, closure, 1500)
        return int((model.weight.abs() <= 1e-6).sum())

    points = regularization_path(one, [1e-4, 0.1, 0.3, 2.0], optimizer)
    zeros = [point.result for point in points]
    assert zeros == sorted(zeros)
    assert zeros[0] == 0
    assert zeros[-1] == 12


def test_what_is_wrong_is_one_sentence():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"lams has -1\.0; it takes finite numbers >= 0"):
        regularization_path(lambda lam: pytest.fail("ran"), [1.0, -1.0])
    with pytest.raises(ValueError, match="a group of the optimizer has no 'lam'"):
        regularization_path(lambda lam: None, [1.0], torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="every group of the optimizer has lam 0"):
        regularization_path(lambda lam: None, [1.0], ProxSGD(model.parameters(), 0.1))
