"""The controller reaches its target on real data, from far starts, with every kind of optimizer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.optim import FactorizedSGD, Proximal, ProxSGD, TargetSparsity, param_groups
from sparsenn.penalties import L1

BATCHES = 23  # an epoch of the digits in batches of 64

MAKERS = {
    "prox": lambda groups: ProxSGD(groups, 0.1, momentum=0.9),
    "adam": lambda groups: Proximal(torch.optim.Adam(groups, 2e-3), L1(1.0)),
    "factorized_2": lambda groups: FactorizedSGD(
        groups, 0.2, depth=2, momentum=0.9, generator=torch.Generator().manual_seed(0)
    ),
    "factorized_3": lambda groups: FactorizedSGD(
        groups, 0.2, depth=3, momentum=0.9, generator=torch.Generator().manual_seed(0)
    ),
}


@pytest.mark.parametrize("lam", [1e-4, 1e-3])
@pytest.mark.parametrize("kind", MAKERS)
def test_reaches_95_percent_on_the_digits(kind, lam):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    data = sparsenn.data.load_digits()
    epochs, threshold = (20, 1.2e-7) if not kind.startswith("factorized") else (40, 1e-4)
    model = sparsenn.models.lenet_300_100(image_size=8)
    optimizer = MAKERS[kind](param_groups(model, lam=lam))
    total = epochs * BATCHES
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
    control = TargetSparsity(optimizer, 0.95, updates=int(0.6 * total / 5), threshold=threshold)
    step, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_images), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train_images[batch]), data.train_labels[batch]).backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 5 == 0:
                control.step()
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    below = sum(int((p.abs() <= threshold).sum()) for p in weights) / sum(p.numel() for p in weights)
    assert control.sparsity() == pytest.approx(below, rel=1e-12)
    assert below == pytest.approx(0.95, abs=0.02)
    sparsenn.collapse(model, threshold)
    right = model(data.test_images).argmax(1) == data.test_labels
    assert float(right.float().mean()) > 0.85
    assert optimizer.param_groups[1]["lam"] == 0.0


def small(lam=1e-3, **options):
    w = nn.Parameter(torch.linspace(-1, 1, 1000))
    optimizer = ProxSGD([{"params": [w], "lam": lam}], 0.1)
    return w, optimizer, TargetSparsity(optimizer, 0.8, updates=100, **options)


def run(w, optimizer, control, steps):
    for _ in range(steps):
        w.grad = w.detach() - torch.linspace(-1, 1, 1000)
        optimizer.step()
        control.step()


@pytest.mark.parametrize("lam", [1e-6, 1e-2, 0.5, torch.tensor(1e-3)], ids=str)
def test_finds_the_lasso_s_strength_from_any_start(lam):
    """Of the weights of this lasso the share lam is zero: the strength for 80 % is known."""
    w, optimizer, control = small(lam)
    run(w, optimizer, control, 400)
    assert control.lam == pytest.approx(0.8, abs=0.01)
    assert float((w == 0).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert (optimizer.param_groups[0]["lam"] is lam) == isinstance(lam, torch.Tensor)


def test_the_last_weight_to_die_falls_in_equal_ratios_and_meets_the_threshold_on_time():
    """A plant that obeys at once: the weights shrink by λ nepers a step, all of them alike."""
    w = nn.Parameter(torch.linspace(0.5, 1.5, 1001, dtype=torch.float64))
    optimizer = ProxSGD([w], 0.1, lam=1e-3)
    control = TargetSparsity(optimizer, 0.8, updates=400, threshold=1e-6)
    falls = []
    for _ in range(400):
        with torch.no_grad():
            w.mul_(math.exp(-control.lam))
        control.step()
        falls.append(control.lam)
    way = math.log(1.3 / 1e-6)
    assert falls[100:300] == pytest.approx([way / 400] * 200, rel=0.15)
    assert abs(math.log(float(w[800].detach()) / 1e-6)) < 0.05 * way


@pytest.mark.parametrize(("weight", "sign"), [(1.0, 1), (0.0, -1)])
def test_a_call_changes_the_strength_by_the_gain_at_most(weight, sign):
    w, _, control = small(gain=0.5)
    with torch.no_grad():
        w.fill_(weight)
    control.step()  # the jump of the weights themselves
    before = control.lam
    for _ in range(20):
        control.step()
        assert 0 < sign * math.log(control.lam / before) < 0.5
        before = control.lam
    assert sign * math.log(control.lam / 1e-3) > 1


def test_the_strength_is_critical_damping_at_most():
    """Two factors under momentum and λω: roots of x² - (1 + μ - lr λ) x + μ are one at the bound, and complex beyond."""
    w = nn.Parameter(torch.ones(10))
    v = nn.Parameter(torch.ones(10))
    groups = [{"params": [w], "lr": 0.4, "lam": 1e-3}, {"params": [v], "lr": 0.1, "lam": 2e-3}]
    optimizer = FactorizedSGD(groups, 0.1, depth=2, momentum=0.9)
    control = TargetSparsity(optimizer, 0.5, updates=10)
    for _ in range(200):  # nothing moves
        control.step()
    lam = optimizer.param_groups[0]["lam"]
    assert (1 + 0.9 - 0.4 * lam) ** 2 - 4 * 0.9 == pytest.approx(0, abs=1e-9)
    assert optimizer.param_groups[1]["lam"] == pytest.approx(2 * lam)
    optimizer.param_groups[0]["lr"] = 0.01
    for _ in range(200):
        control.step()
    lam = optimizer.param_groups[1]["lam"]  # the group that is bound now
    assert (1 + 0.9 - 0.1 * lam) ** 2 - 4 * 0.9 == pytest.approx(0, abs=1e-9)


def test_a_threshold_that_follows_the_group():
    """Weights that hover within a step of the subgradient are counted, each by the step of its own group."""
    w, v = nn.Parameter(torch.full((60,), 3e-3)), nn.Parameter(torch.full((40,), 3e-3))
    optimizer = torch.optim.SGD([{"params": [w], "lam": 0.1}, {"params": [v], "lam": 0.01}], 0.1)
    control = TargetSparsity(optimizer, 0.5, updates=9, threshold=lambda group: group["lr"] * group["lam"])
    assert control.sparsity() == 0.6
    optimizer.param_groups[1]["lr"] = 1.0
    assert control.sparsity() == 1.0
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match=r"threshold is 0.0; it takes a finite number > 0"):
        control.step()


def test_a_resumed_run_is_the_same():
    first = small()
    run(*first, 60)
    w, optimizer, _ = small()
    with torch.no_grad():
        w.copy_(first[0])
    optimizer.load_state_dict(copy.deepcopy(first[1].state_dict()))
    control = TargetSparsity(optimizer, 0.8, updates=100)
    control.load_state_dict(first[2].state_dict())
    run(*first, 60)
    run(w, optimizer, control, 60)
    assert control.lam == first[2].lam
    assert torch.equal(w, first[0])
    assert "target=0.8" in repr(control)
    assert "update 120 of 100" in repr(control)


def test_what_is_wrong_is_one_sentence():
    w = nn.Parameter(torch.ones(3))
    optimizer = ProxSGD([w], 0.1, lam=0.1)
    for options, message in (
        ({"target": 1.0, "updates": 5}, "target is 1.0; it takes a number between 0 and 1"),
        ({"target": "0.5", "updates": 5}, "target is '0.5'; it takes a number between 0 and 1"),
        ({"target": 0.5, "updates": True}, "updates is True; it takes an integer >= 1"),
        ({"target": 0.5, "updates": 0}, "updates is 0; it takes an integer >= 1"),
        ({"target": 0.5, "updates": 5, "threshold": 0.0}, "threshold is 0.0; it takes a finite number > 0"),
        ({"target": 0.5, "updates": 5, "gain": -1.0}, "gain is -1.0; it takes a finite number > 0"),
        ({"target": 0.5, "updates": 5, "gain": math.nan}, "gain is nan; it takes a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            TargetSparsity(optimizer, **options)
    with pytest.raises(ValueError, match="every group of the optimizer has lam 0"):
        TargetSparsity(ProxSGD([w], 0.1), 0.5, updates=5)
    with pytest.raises(ValueError, match="a group of the optimizer has no 'lam'"):
        TargetSparsity(torch.optim.SGD([w], 0.1), 0.5, updates=5)


def test_frozen_weights_are_not_counted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    net[0].weight.requires_grad_(False)
    optimizer = ProxSGD(param_groups(net, lam=1e-3), 0.05)
    control = TargetSparsity(optimizer, 0.8, updates=200)
    x = torch.randn(100, 20)
    for _ in range(300):
        optimizer.zero_grad()
        (net(x) - x).square().mean().backward()
        optimizer.step()
        control.step()
    assert 0.75 < float((net[1].weight == 0).double().mean()) < 0.85
    assert control.sparsity() == pytest.approx(float((net[1].weight == 0).double().mean()))
    for p in net.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no weights that require a gradient"):
        TargetSparsity(optimizer, 0.8, updates=10)


def test_a_target_out_of_reach_is_not_chased_to_infinity():
    weight = nn.Parameter(torch.ones(10))
    optimizer = ProxSGD([weight], 0.1, lam=1e-3)
    control = TargetSparsity(optimizer, 0.5, updates=10)
    for _ in range(2000):  # without gradients nothing moves
        control.step()
    assert control.lam == pytest.approx(1e3)
    with torch.no_grad():
        weight.zero_()
    for _ in range(2000):
        control.step()
    assert control.lam == pytest.approx(1e-9)
