"""Proximal steps on ridge nets end where the penalised objective is stationary, and leave exact zeros."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import sparsenn
from sparsenn import spectralize
from sparsenn.metrics import kkt_residual
from sparsenn.nn import RidgeNet
from sparsenn.optim import Proximal, ridge_proximal
from sparsenn.penalties import L1, rbv2, rbv2_path

LAM = 3e-2
BASES = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.2, momentum=0.9),
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-2),
}


def task() -> tuple[RidgeNet, Tensor, Tensor]:
    torch.manual_seed(0)
    net = RidgeNet(2, 2, depth=1, width=12, dtype=torch.float64)
    x = torch.cartesian_prod(*[torch.linspace(-1, 1, 7, dtype=torch.float64)] * 2)
    return net, x, torch.stack([(x[:, 0] - 0.3).relu() - 0.5 * x[:, 1].abs(), x.sum(1).relu()], dim=1)


@pytest.fixture(scope="module", params=[("path", "sgd"), ("path", "adam"), ("squares", "sgd")], ids="-".join)
def trained(request) -> tuple[str, RidgeNet, Tensor, Tensor, Proximal]:
    form, base = request.param
    net, x, y = task()
    optimizer = ridge_proximal(net, BASES[base], LAM, form=form)
    for _ in range(1000):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    return form, net, x, y, optimizer


def test_the_end_is_stationary_for_the_published_objective(trained):
    """Where weights are not 0 the objective is smooth: its own gradient, by autograd of its formula, has to vanish."""
    form, net, x, y, _ = trained
    block = net[0]
    net.zero_grad()
    ((net(x) - y).square().mean() + LAM * {"path": rbv2_path, "squares": rbv2}[form](net)).backward()
    alive = (block.outer.weight != 0).any(0)
    assert 0 < alive.sum() < 12 if form == "path" else alive.all()
    for p in (block.outer.weight, block.skip.weight):
        assert p.grad[p != 0].abs().max() < 1e-4
    assert block.inner.weight.grad[alive].abs().max() < 1e-4
    assert block.inner.bias.grad.abs().max() < 1e-4
    if form == "path":
        torch.testing.assert_close(block.inner.weight.norm(dim=1), torch.ones(12, dtype=torch.float64))


def test_the_report_of_stationarity_sees_that_too(trained):
    """On unit spheres the gradient of W keeps a part along W, of 2 lam ||v||_1, which is no residual."""
    form, net, x, y, optimizer = trained
    report = kkt_residual(net, lambda: (net(x) - y).square().mean(), optimizer)
    assert report.total.max < 1e-4 < report.gradient_scale
    if form == "path":
        plain = torch.autograd.grad((net(x) - y).square().mean(), net[0].inner.weight)[0]
        along = (plain * net[0].inner.weight).sum(1).neg()
        torch.testing.assert_close(along, 2 * LAM * net[0].outer.weight.detach().abs().sum(0), rtol=0, atol=1e-4)


def test_both_forms_end_at_the_same_height(trained):
    """Equation 2 and its path form have the same least value; here 0.09734725595971522, found by either from any base."""
    _, net, x, y, _ = trained
    height = (net(x) - y).square().mean() + LAM * rbv2_path(net)
    assert height.item() == pytest.approx(0.09734725595971522, rel=1e-6)


def test_dead_neurons_can_be_taken_out(trained):
    form, net, x, *_ = trained
    net = copy.deepcopy(net)
    before = net(x)
    net.balance_()
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-12)
    left = len(sparsenn.prune.compact(net, x)[0].inner.weight)
    assert left <= 3 if form == "path" else left == 12


def test_a_closure_gets_the_same_steps():
    results = []
    for closed in (False, True):
        net, x, y = task()
        optimizer = ridge_proximal(net, BASES["sgd"], LAM)

        def closure(net=net, x=x, y=y, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            return loss

        for _ in range(5):
            if closed:
                loss = optimizer.step(closure)
                assert loss > 0
            else:
                closure()
                optimizer.step()
        results.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_errors():
    net = RidgeNet(2, 1, width=3)
    with pytest.raises(ValueError, match=r"ridge_proximal: form is 'sum'; it takes 'path' or 'squares'"):
        ridge_proximal(net, BASES["sgd"], 1e-3, form="sum")
    with pytest.raises(ValueError, match=r"ridge_proximal: Linear has no sparsenn.nn.RidgeBlock"):
        ridge_proximal(nn.Linear(2, 1), BASES["sgd"], 1e-3)
    with pytest.raises(ValueError, match=r"Sigmoid is not positively homogeneous"):
        ridge_proximal(RidgeNet(2, 1, width=3, activation=nn.Sigmoid), BASES["sgd"], 1e-3)
    with pytest.raises(ValueError, match=r"ridge_proximal: lam is -1; it takes a finite number >= 0"):
        ridge_proximal(net, BASES["sgd"], -1)
    with pytest.raises(ValueError, match=r"lam is a tensor of shape \(2,\); it takes a single number"):
        ridge_proximal(net, BASES["sgd"], torch.ones(2))
    with pytest.raises(ValueError, match=r"ridge_proximal: inner is a SpectralLinear that composes its weight"):
        ridge_proximal(spectralize(net), BASES["sgd"], 1e-3, form="squares")


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("form", ["path", "squares"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("closed", [False, True])
def test_a_copy_trains_on_to_the_same_bits(way, form, base, closed):
    net, x, y = task()
    optimizer = ridge_proximal(net, BASES[base], LAM, form=form)

    def train(net, optimizer, steps: int) -> list[Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            return loss

        for _ in range(steps):
            if closed:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    before = train(net, optimizer, 3)
    twin, other = COPIES[way]((net, optimizer))
    expected = train(net, optimizer, 5)
    assert all(map(torch.equal, train(twin, other, 0), before))  # the copy has parameters of its own
    assert all(map(torch.equal, train(twin, other, 5), expected))
    if form == "path":
        torch.testing.assert_close(twin[0].inner.weight.norm(dim=1), torch.ones(12, dtype=torch.float64))


def test_hooks_of_the_user_are_called_once_a_step():
    Proximal(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1), L1(0.1))  # torch wraps a class's step with its first object
    net, x, y = task()
    optimizer, calls = ridge_proximal(net, BASES["sgd"], LAM), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    (net(x) - y).square().mean().backward()
    optimizer.step()
    assert calls == ["before", "after"]
