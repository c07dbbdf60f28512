"""The controller reaches its target on real data, from far starts, with every kind of optimizer."""

from __future__ import annotations

import copy
import itertools
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
    control = TargetSparsity(optimizer, 0.95, updates=int(0.8 * total / 5), threshold=threshold)
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
    assert control.sparsity() == below
    assert below == pytest.approx(0.95, abs=0.015)
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


def test_the_threshold_falls_from_the_target_s_magnitude_to_the_final_one():
    w, optimizer, control = small(threshold=1e-4)
    assert control.threshold == pytest.approx(0.8, abs=2e-3)
    seen = []
    for _ in range(120):
        run(w, optimizer, control, 1)
        seen.append(control.threshold)
    ratios = [b / a for a, b in itertools.pairwise(seen[:100])]
    assert ratios == pytest.approx([(1e-4 / 0.8) ** 0.01] * 99, rel=1e-3)
    assert seen[99:] == pytest.approx([1e-4] * 21, rel=1e-9)


@pytest.mark.parametrize(("weight", "ratio"), [(1.0, 3 / 2), (0.0, 2 / 3)])
def test_a_call_changes_the_strength_by_half_at_most(weight, ratio):
    w, _, control = small(gain=100.0)
    with torch.no_grad():
        w.fill_(weight)
    for k in range(1, 4):
        control.step()
        assert control.lam == pytest.approx(1e-3 * ratio**k, rel=1e-12)


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
        ({"target": 0.5, "updates": 5, "horizon": math.nan}, "horizon is nan; it takes a finite number >= 0"),
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
