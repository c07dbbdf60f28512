"""The controller reaches its target on real data, from far starts, with every kind of optimizer."""

from __future__ import annotations

import copy
import json
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


def test_a_step_of_the_strength_alone_takes_a_factor_to_zero_at_most():
    w, v = nn.Parameter(torch.ones(10)), nn.Parameter(torch.ones(10))
    groups = [{"params": [w], "lr": 0.4, "lam": 1e-3}, {"params": [v], "lr": 0.1, "lam": 2e-3}]
    optimizer = FactorizedSGD(groups, 0.1, depth=2)
    control = TargetSparsity(optimizer, 0.5, updates=10)
    for _ in range(200):  # nothing moves
        control.step()
    first, second = optimizer.param_groups
    assert first["lam"] == pytest.approx(2 / (2 * 0.4))
    assert second["lam"] == pytest.approx(2 * first["lam"])
    first["lr"] = 0.01
    for _ in range(200):
        control.step()
    assert second["lam"] == pytest.approx(2 / (2 * 0.1))  # the group that is bound now
    w.grad = v.grad = torch.zeros(10)
    optimizer.step()
    assert float(v.detach().abs().max()) < 1e-14
    assert float(w.min()) > 0.8


@pytest.mark.parametrize(("depth", "share"), [(2, 0.8), (3, 0.8)])
def test_factors_under_momentum_that_the_loss_holds(depth, share):
    """The lasso again, at a constant rate: λ must overcome gradients, which takes far more than to let factors decay."""
    w = nn.Parameter(torch.linspace(-1, 1, 1000))
    optimizer = FactorizedSGD([w], 0.1, depth=depth, lam=1e-3, momentum=0.9)
    control = TargetSparsity(optimizer, share, updates=300, threshold=1e-4, gain=0.03)
    run(w, optimizer, control, 500)
    assert control.sparsity() == pytest.approx(share, abs=0.05)


def test_the_law_written_out():
    """Two groups whose thresholds and λ differ, with weights that are put where they are: every λ, by the equations."""
    generator = torch.Generator().manual_seed(0)
    w, v = (nn.Parameter(torch.rand(n, generator=generator, dtype=torch.float64) + 0.1) for n in (70, 30))
    optimizer = ProxSGD([{"params": [w], "lam": 1e-2, "lr": 0.1}, {"params": [v], "lam": 2e-3, "lr": 0.5}], 0.1)
    share, updates, gain = 0.75, 40, 0.2
    control = TargetSparsity(optimizer, share, updates=updates, gain=gain, threshold=lambda group: 1e-3 * group["lr"])

    def ways():
        ratios = torch.cat([w.detach() / 1e-4, v.detach() / 5e-4])
        return float(ratios.sort().values[74].log()), math.log(max(int((ratios > 1).sum()), 1) / 25)

    first, excess = ways()
    ratio = first / excess
    before, fall, sign, pace, lam = min(ways()[0], ratio * excess), None, 0.0, gain, 1e-2
    slowest = gain
    for k in range(1, 61):
        with torch.no_grad():
            shrink = 10 ** (0.4 * torch.randn(1, generator=generator, dtype=torch.float64) - 0.08)
            w.mul_(shrink), v.mul_(shrink)
        control.step()
        last, excess = ways()
        way = min(last, ratio * excess)
        seen, before = before - way, way
        fall = seen if fall is None else 0.8 * fall + 0.2 * seen
        wanted = way / max(updates - k, updates / 8)
        change = (wanted - fall) / (abs(wanted) + abs(fall) + 1 / updates)
        pace = min(max(pace * (0.7 if change * sign < 0 else 1.2), gain / 16), gain)
        lam, sign, slowest = lam * math.exp(pace * change), change, min(slowest, pace)
        assert [g["lam"] for g in optimizer.param_groups] == pytest.approx([lam, 0.2 * lam], rel=1e-9)
    assert gain / 16 <= slowest < gain / 2


def test_weights_that_are_frozen_or_not_finite_on_the_way():
    w, v = nn.Parameter(torch.linspace(0.1, 1, 50)), nn.Parameter(torch.linspace(0.1, 1, 150))
    optimizer = ProxSGD([w, v], 0.1, lam=1e-2)
    control = TargetSparsity(optimizer, 0.8, updates=10, threshold=0.5)
    control.step()
    v.requires_grad_(False)
    control.step()
    assert control.sparsity() == pytest.approx(float((w <= 0.5).double().mean()))
    lam = control.lam
    with torch.no_grad():
        w.fill_(math.nan)
    control.step()
    assert control.sparsity() == 0.0
    assert control.lam == lam
    with pytest.raises(ValueError, match="some of the weights are not finite"):
        TargetSparsity(optimizer, 0.8, updates=10)


@pytest.mark.parametrize(("share", "numel"), [(0.07, 100), (0.55, 100), (0.28, 25), (0.999, 100)])
def test_the_share_is_met_exactly(share, numel):
    """With just as many weights above the threshold as are wanted nothing is left to do."""
    w = nn.Parameter(torch.ones(numel))
    optimizer = ProxSGD([w], 0.1, lam=1e-2)
    dead = min(round(share * numel), numel)
    with torch.no_grad():
        w[:dead] = 0
    control = TargetSparsity(optimizer, share, updates=10)
    control.step()
    assert control.lam == 1e-2


def test_more_than_a_million_weights():
    """Of which some tell the last to die."""
    w = nn.Parameter(torch.linspace(1e-3, 1, 2_500_000).flip(0))
    many = TargetSparsity(ProxSGD([w], 0.1, lam=1e-2), 0.8, updates=10)
    few = TargetSparsity(ProxSGD([nn.Parameter(w.detach()[::25].clone())], 0.1, lam=1e-2), 0.8, updates=10)
    assert many.state_dict()["way"] == pytest.approx(few.state_dict()["way"], rel=1e-4)


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
    """To the bit, with several groups, and from where the gain is not what it was in the beginning."""

    def make():
        w, v = nn.Parameter(torch.linspace(-1, 1, 1000)), nn.Parameter(torch.linspace(-0.5, 1, 500))
        optimizer = ProxSGD([{"params": [w], "lam": 1e-3}, {"params": [v], "lam": 7e-4 / 3}], 0.1)
        return w, v, optimizer, TargetSparsity(optimizer, 0.8, updates=60)

    def go_on(w, v, optimizer, control):
        for _ in range(130):
            w.grad, v.grad = w.detach() - torch.linspace(-1, 1, 1000), v.detach() - torch.linspace(-0.5, 1, 500)
            optimizer.step()
            control.step()

    first, second = make(), make()
    go_on(*first)
    state = first[3].state_dict()
    assert 0 < state["pace"] < 0.15
    with torch.no_grad():
        for mine, theirs in zip(second[:2], first[:2], strict=True):
            mine.copy_(theirs)
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    second[3].load_state_dict(json.loads(json.dumps(state)))
    go_on(*first)
    go_on(*second)
    assert list(second[3].state_dict().values())[:-1] == list(first[3].state_dict().values())[:-1]
    assert [g["lam"] for g in second[2].param_groups] == [g["lam"] for g in first[2].param_groups]
    assert all(map(torch.equal, first[:2], second[:2]))
    assert "target=0.8" in repr(second[3])
    assert "update 260 of 60" in repr(second[3])
    third = make()[3]
    before = third.state_dict()
    with pytest.raises(KeyError):
        third.load_state_dict(dict.fromkeys(list(state)[:3], 1.0))
    assert third.state_dict() == before


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
