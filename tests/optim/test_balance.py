"""FactorizedSGD with one root a weight, against itself with all factors."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from small_training import RULES, net, train
from torch import nn

import sparsenn
from sparsenn.ops import hadamard_product
from sparsenn.optim import FactorizedSGD
from sparsenn.optim.balance import EVERY


def words(optimizer: FactorizedSGD, p: torch.Tensor) -> float:
    """What a parameter's state holds of memory, in words of it a weight."""
    tensors = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
    return sum(x.untyped_storage().nbytes() for x in tensors) / tensors[0].element_size() / p.numel()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_a_balanced_start_is_the_same_with_one_root(depth, rule):
    """250 steps of a loss whose minimizer has other signs, with steps that carry factors over zero."""
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn(60, generator=generator, dtype=torch.float64) for _ in range(2))
    options = {"depth": depth, "lam": 0.01, "factor_init": "root", **RULES[rule]}
    sign = -1 if options.get("maximize") else 1
    full, one = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [FactorizedSGD([full], 0.03, **options), FactorizedSGD([one], 0.03, balanced=True, **options)]
    crossed = torch.zeros(60, dtype=torch.bool)
    for step in range(250):
        noise = torch.randn(60, generator=generator, dtype=torch.float64) * (10 if step % 50 == 0 else 0.1)
        before = optimizers[0].factors(full)[0].sign()
        for p, optimizer in zip((full, one), optimizers, strict=True):
            p.grad = sign * ((p.detach() - target).tanh() + noise)
            optimizer.step()
        crossed |= optimizers[0].factors(full)[0].sign() != before
        if depth <= 4:
            assert torch.equal(one, full)
        else:  # products of the same numbers are formed in another order
            torch.testing.assert_close(one, full, rtol=1e-10, atol=1e-10)
    changed = (one.detach().sign() != start.sign()).sum()
    if options.get("momentum", 0.0) > 0.5:  # without it hardly a root comes over zero
        assert crossed.sum() > 25
        assert changed > 20 if depth % 2 else changed == 0
    torch.testing.assert_close(hadamard_product(optimizers[1].factors(one)), one.detach(), rtol=0, atol=0)
    assert sparsenn.metrics.misalignment(optimizers[1].factors(one)) == 0
    assert len(optimizers[1].factors(one)) == depth


def pulled(balanced, dtype=torch.float64, **options) -> tuple[nn.Parameter, FactorizedSGD]:
    generator = torch.Generator().manual_seed(3)
    p = nn.Parameter(torch.randn(400, 5, generator=generator, dtype=torch.float64).to(dtype))
    return p, FactorizedSGD(
        [p], 0.1, lam=0.5, balanced=balanced, generator=generator, **{"depth": 3, "momentum": 0.5, **options}
    )


def pull(p: nn.Parameter, optimizer: FactorizedSGD, steps) -> None:
    """Steps towards magnitudes of about 3: weights live, and the decay balances their factors within a hundred steps."""
    for step in steps:
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        p.grad = (p.detach() - 3 * torch.where(p.detach() < 0, -1.0, 1.0) + 0.1 * noise).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("depth", [2, 3])
def test_auto_switches_when_balanced_and_reports_the_jump(backend, caplog, depth):
    p, auto = pulled("auto", depth=depth)
    q, full = pulled(False, depth=depth)
    pull(p, auto, range(EVERY - 1))
    pull(q, full, range(EVERY - 1))
    assert auto.switches() == []
    assert 2 * depth <= words(auto, p) < 2 * depth + 0.7  # each tensor begins a little further into its memory
    with caplog.at_level(logging.INFO, logger="sparsenn.optim"):
        pull(p, auto, [EVERY - 1])
        pull(q, full, [EVERY - 1])
    (switch,) = auto.switches()
    assert str(switch) in caplog.text
    factors, velocities = full.factors(q), [full.state[q][f"momentum_{d}"] for d in range(depth)]
    for found, tensors in (
        (switch.factors, [f.abs() for f in factors]),
        (switch.momenta, [v * f.sign() for v, f in zip(velocities, factors, strict=True)]),
    ):
        stack = torch.stack(tensors)
        assert 0 < found <= 1e-3
        assert found == pytest.approx(float((stack - stack.mean(0)).norm() / stack.norm()), rel=1e-9)
    jump = (p.detach() - q.detach()).abs()
    assert switch.jump == jump.max() <= 1e-14
    assert switch.relative_jump == pytest.approx(float(jump.norm() / q.detach().norm()), rel=1e-9)
    assert (switch.parameter, switch.shape) == (0, (400, 5))
    mean = torch.stack([v * f.sign() for v, f in zip(velocities, factors, strict=True)]).mean(0) * q.detach().sign()
    torch.testing.assert_close(auto.state[p]["root_momentum"], mean)
    assert 2 <= words(auto, p) < 2.2
    assert sum(isinstance(x, torch.Tensor) for x in auto.state[p].values()) == 2
    pull(p, auto, range(EVERY, 2 * EVERY))
    pull(q, full, range(EVERY, 2 * EVERY))
    torch.testing.assert_close(p, q, rtol=2e-3, atol=0)  # what the tolerance allows
    assert auto.switches() == [switch]


def test_unbalanced_factors_are_kept(backend):
    p, optimizer = pulled("auto", balance_tolerance=1e-9)
    q, full = pulled(False)
    pull(p, optimizer, range(EVERY + 5))
    pull(q, full, range(EVERY + 5))
    assert optimizer.switches() == []
    assert torch.equal(p, q)
    momentum = optimizer.state[p]["momentum_1"]
    momentum.mul_(1.5)  # balanced factors alone are not enough
    assert optimizer.balance(tolerance=1e-2) == []
    momentum.div_(1.5)
    kept = momentum[0, 0].clone()
    momentum[0, 0] = torch.inf
    assert optimizer.balance(tolerance=float("inf")) == []
    momentum[0, 0] = kept
    assert len(optimizer.balance(tolerance=1e-2)) == 1
    assert optimizer.balance(tolerance=1e-2) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_restored_run_goes_on_to_the_bit(backend, tmp_path, dtype):
    p, optimizer = pulled("auto", dtype, balance_tolerance=2e-2)
    saved = {}
    for begin in range(0, 3 * EVERY, EVERY // 2):
        torch.save((p.detach(), optimizer.state_dict()), tmp_path / f"{begin}.pt")
        saved[begin] = bool(optimizer.switches())
        pull(p, optimizer, range(begin, begin + EVERY // 2))
    assert not saved[EVERY // 2]  # one before the switch and one after it
    assert saved[5 * EVERY // 2]
    for begin in (EVERY // 2, 5 * EVERY // 2):
        q, other = pulled(False, dtype)
        weights, state = torch.load(tmp_path / f"{begin}.pt", weights_only=True)
        other.load_state_dict(state)
        with torch.no_grad():
            q.copy_(weights)
        pull(q, other, range(begin, 3 * EVERY))
        assert torch.equal(p, q)
        assert other.switches() == optimizer.switches()
        assert other.state[q]["root"].dtype == optimizer.state[p]["root"].dtype != torch.bfloat16
        assert all(torch.equal(a, b) for a, b in zip(other.factors(q), optimizer.factors(p), strict=True))


def test_a_state_from_before_there_were_roots_goes_on():
    (p, optimizer), (q, other) = pulled(False), pulled("auto")
    pull(p, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    for name in ("balanced", "balance_tolerance", "balance_steps"):
        del state["param_groups"][0][name]
    other.load_state_dict(state)
    q.data.copy_(p.data)
    pull(p, optimizer, range(3, 6))
    pull(q, other, range(3, 6))
    assert torch.equal(p, q)
    assert len(other.balance(tolerance=float("inf"))) == 1


def test_changed_weights_are_noticed_and_resynced(backend):
    for factor_init, balanced in (("root", True), ("preserve", False)):
        p, optimizer = pulled(balanced, factor_init=factor_init, depth=2)
        pull(p, optimizer, range(3))
        optimizer.balance(tolerance=float("inf"))
        before = [[x[1:].clone() for x in optimizer.factors(p)], optimizer.state[p]["root_momentum"][1:].abs().clone()]
        with torch.no_grad():
            p[0] = torch.tensor([4.0, -9.0, 0.0, 1e-6, -1e-6], dtype=torch.float64)
        with pytest.raises(RuntimeError, match=r"parameter 0 .*resync"):
            pull(p, optimizer, [3])
        optimizer.resync()
        assert ("root" in optimizer.state[p]) == balanced  # others need their signs
        assert bool(optimizer.switches()) is False
        assert all(torch.equal(x[1:], y) for x, y in zip(optimizer.factors(p), before[0], strict=True))
        momenta = [optimizer.state[p][name] for name in (("root_momentum",) if balanced else ("momentum_0", "momentum_1"))]
        for momentum in momenta:
            assert (momentum[0] == 0).all()
            assert torch.equal(momentum[1:].abs(), before[1])
        low = 0.0 if factor_init == "root" else 1e-4
        expected = torch.tensor([4.0, -9.0, low, max(low, 1e-6), -max(low, 1e-6)], dtype=torch.float64)
        lifted = p.detach()[0].clone()
        lifted[2] = lifted[2].abs()  # its sign is drawn
        torch.testing.assert_close(lifted, expected, rtol=1e-12, atol=0)
        pull(p, optimizer, [3])


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_zeros_of_a_switched_parameter_grow_again_after_a_resync(backend, depth):
    p = nn.Parameter(torch.full((200,), -0.5, dtype=torch.float64))
    optimizer = FactorizedSGD([p], 0.05, depth=depth, momentum=0.9, generator=torch.Generator().manual_seed(0))
    assert len(optimizer.balance(tolerance=float("inf"))) == 1
    with torch.no_grad():
        p.zero_()
    optimizer.resync()
    for _ in range(3000):
        p.grad = p.detach() - 1.0
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.ones(200, dtype=torch.float64), rtol=1e-3, atol=0)


def test_a_switch_and_back_moves_as_before(backend):
    """Balanced factors with momenta to match: for all that follows it makes no difference that they were a root."""
    for depth in (2, 3, 4):
        (p, optimizer), (q, full) = (pulled(b, depth=depth, factor_init="root", balance_tolerance=0.0) for b in ("auto", False))
        pull(p, optimizer, range(20))
        pull(q, full, range(20))
        for group in optimizer.param_groups:
            group["factor_init"] = "preserve"
        with torch.no_grad():
            for weight in (p, q):
                weight[0] = 1.0
        optimizer.resync()
        assert "root" not in optimizer.state[p]
        with torch.no_grad():
            for x, y in zip(full.factors(q), optimizer.factors(p), strict=True):
                x[0] = y[0]
            for d in range(depth):
                full.state[q][f"momentum_{d}"][0] = 0.0
            q.copy_(hadamard_product(full.factors(q)))
        full.resync()
        pull(p, optimizer, range(20, 60))
        pull(q, full, range(20, 60))
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_parameter_that_is_named_twice_is_switched_once(backend):
    p, optimizer = pulled(False)
    before = p.detach().clone()
    assert len(optimizer.balance([p, p], tolerance=float("inf"))) == 1
    torch.testing.assert_close(p.detach(), before, rtol=1e-12, atol=0)


def test_looks_pass_by_what_no_step_has_moved(backend):
    a, b, c = (nn.Parameter(torch.full((3,), 0.5)) for _ in range(3))
    optimizer = FactorizedSGD([{"params": [a, b]}, {"params": [c]}], 0.1, depth=2, balanced="auto", balance_tolerance=10.0)
    with torch.no_grad():
        b.mul_(2.0)  # and never trained
    for _ in range(EVERY):
        a.grad, c.grad = a.detach() - 1, c.detach() - 1
        optimizer.step()
    assert [switch.parameter for switch in optimizer.switches()] == [0, 2]
    assert [group["balance_steps"] for group in optimizer.param_groups] == [EVERY, EVERY]


def test_momenta_count_though_no_option_asks_for_them(backend):
    p, optimizer = pulled(False, depth=2, factor_init="root")
    pull(p, optimizer, range(1))
    optimizer.state[p]["momentum_0"].fill_(1.0)
    optimizer.param_groups[0]["momentum"] = 0.0
    assert optimizer.balance() == []
    (switch,) = optimizer.balance(tolerance=10.0)
    assert switch.momenta > 0.1


def test_what_is_not_finite_is_refused_before_anything_changes(backend):
    for factor_init, balanced in (("root", True), ("root", False), ("preserve", False)):
        a, b = (nn.Parameter(torch.full((3,), 0.5)) for _ in range(2))
        b.requires_grad_(False)
        optimizer = FactorizedSGD([a, b], 0.1, factor_init=factor_init, balanced=balanced)
        with torch.no_grad():
            b[0] = torch.nan
        b.requires_grad_()
        a.grad, b.grad = torch.ones(3), torch.ones(3)
        with pytest.raises(ValueError, match=r"a parameter of shape \(3,\) holds NaN or infinity"):
            optimizer.step()
        with torch.no_grad():
            b[0] = 1.0
        optimizer.step()
        with torch.no_grad():
            a.mul_(2.0)
            b[0] = torch.inf
        kept = [x.clone() for x in optimizer.factors(a)]
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            optimizer.resync()
        assert all(torch.equal(x, y) for x, y in zip(kept, optimizer.factors(a), strict=True))


def test_a_root_and_factors_step_together_as_each_alone(backend):
    drawn = torch.randn(2, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    together, alone = ([nn.Parameter(x.clone()) for x in drawn] for _ in range(2))
    options = {"depth": 3, "lam": 0.01, "momentum": 0.9, "factor_init": "root"}
    optimizers = [FactorizedSGD(params, 0.1, **options) for params in (together, *([p] for p in alone))]
    optimizers[0].balance([together[1]])
    optimizers[2].balance()
    for step in range(5):
        for p in (*together, *alone):
            p.grad = p.detach() - step
        for optimizer in optimizers:
            optimizer.step()
    assert ["root" in optimizers[0].state[p] for p in together] == [False, True]
    assert all(torch.equal(p, q) for p, q in zip(together, alone, strict=True))


def test_groups_differ_and_what_does_not_fit_is_refused(backend):
    model = net()
    layers = [list(model[i].parameters()) for i in (0, 2)]
    groups = [{"params": layers[0], "factor_init": "root", "balanced": True}, {"params": layers[1]}]
    optimizer = FactorizedSGD(groups, 0.05, depth=3, lam=0.01, momentum=0.9, dampening=0.1)
    train(model, optimizer, range(3))
    assert ["root" in optimizer.state[p] for p in model.parameters()] == [True, True, False, False]
    before = copy.deepcopy(model.state_dict())
    optimizer.param_groups[0]["depth"] = 2
    with pytest.raises(RuntimeError, match="depth of a group was changed to 2"):
        train(model, optimizer, [3])
    with pytest.raises(RuntimeError, match="depth of a group was changed to 2"):
        optimizer.resync()
    optimizer.param_groups[0]["depth"] = 3
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["root_depth"] = 2
    with pytest.raises(ValueError, match="depth 3 needs a root of that depth; the state has one of 2"):
        optimizer.load_state_dict(state)
    state["state"][0]["root_depth"], state["state"][0]["root"] = 3, torch.zeros(2)
    with pytest.raises(ValueError, match="root has shape"):
        optimizer.load_state_dict(state)
    with torch.no_grad():
        layers[1][0].add_(1.0)
    with pytest.raises(RuntimeError, match=r"parameter 2 .*resync"):
        optimizer.balance(tolerance=1.0)
    layers[1][0].data.sub_(1.0)
    assert all(torch.equal(p, before[name]) or name == "2.weight" for name, p in model.state_dict().items())
    for bad, match in (
        ({"balanced": True}, "balanced=True with factor_init 'preserve'"),
        ({"balanced": "always"}, "balanced is 'always'; it takes False, True or 'auto'"),
        ({"balance_tolerance": -1.0}, "balance_tolerance is -1.0"),
        ({"balance_tolerance": True}, "balance_tolerance is True"),
    ):
        with pytest.raises(ValueError, match=match):
            FactorizedSGD([nn.Parameter(torch.ones(2))], 0.1, **bad)
    with pytest.raises(ValueError, match=r"FactorizedSGD.balance: a tensor is no parameter of this optimizer"):
        optimizer.balance([torch.ones(2)])
    with pytest.raises(ValueError, match="balance_tolerance is nan"):
        optimizer.balance(layers[0], tolerance=float("nan"))
    for index, name, lacking in ((0, "root_momentum", "has begun with a momentum"), (2, "momentum_1", "'momentum_1'")):
        state = copy.deepcopy(optimizer.state_dict())
        del state["state"][index][name]
        with pytest.raises(ValueError, match=lacking):
            optimizer.load_state_dict(state)


def test_a_compiled_step_is_the_eager_one(kernels):
    models = [net(), net()]
    options = {"depth": 4, "lam": 0.01, "momentum": 0.9, "dampening": 0.5, "factor_init": "root", "balanced": True}
    optimizers = [FactorizedSGD(model.parameters(), 0.05, **options) for model in models]
    torch._dynamo.reset()
    step = torch.compile(optimizers[0].step, backend="eager", fullgraph=True)
    for i in range(4):
        train(models[1], optimizers[1], [i])
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            p.grad = q.grad.clone()
        step()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_any_shape_and_layout_is_switched_and_keeps_its_weights(backend, dtype):
    drawn = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in ((), (0, 3), (5,), (2, 3, 4, 5))]
    params = [nn.Parameter(x) for x in (*drawn, drawn[-1].to(memory_format=torch.channels_last))]
    optimizer = FactorizedSGD(params, 0.01, depth=4, momentum=0.9)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    switches = optimizer.balance(tolerance=float("inf"))
    assert [switch.parameter for switch in switches] == [0, 1, 2, 3, 4]
    eps = torch.finfo(torch.float32 if dtype == torch.float16 else dtype).eps
    for p, old, switch in zip(params, before, switches, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=10 * max(eps, torch.finfo(dtype).eps / 5), atol=0)
        assert optimizer.state[p]["root"].stride() == p.stride()
        assert switch.jump == (float((p.detach().double() - old.double()).abs().max()) if p.numel() else 0.0)
    optimizer.step()
    with torch.no_grad():
        params[2].zero_()
    optimizer.resync([params[2]])
    optimizer.step()
