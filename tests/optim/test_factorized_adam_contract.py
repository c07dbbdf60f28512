"""FactorizedAdam as an optimizer of torch, where it differs from FactorizedSGD: moments, steps, their states and options."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from small_training import batch, net, train
from torch import nn

from sparsenn.metrics import kkt_residual
from sparsenn.ops import hadamard_product
from sparsenn.optim import FactorizedAdam, FactorizedSGD


def test_param_groups_have_their_own_options(backend):
    options = [{"lr": 0.05, "depth": 3, "lam": 0.1, "amsgrad": True}, {"depth": 2, "betas": (0.5, 0.9), "decoupled": True}]
    model = net()
    layers = [list(model[i].parameters()) for i in (0, 2)]
    ours = FactorizedAdam([{"params": p, **o} for p, o in zip(layers, options, strict=True)], 0.02, lam=0.3)
    twin = copy.deepcopy(model)
    factors = [[[nn.Parameter(f.clone()) for f in ours.factors(p)] for p in layer] for layer in layers]
    flat = [list(itertools.chain(*f)) for f in factors]
    theirs = [
        torch.optim.Adam(flat[0], 0.05, weight_decay=2 * 0.1 / 3, amsgrad=True),
        torch.optim.AdamW(flat[1], 0.02, weight_decay=0.3, betas=(0.5, 0.9)),
    ]
    for step in range(20):
        train(model, ours, [step])
        x, y = batch(step)
        weights = [hadamard_product(f) for layer in factors for f in layer]
        names = [name for name, _ in twin.named_parameters()]
        for optimizer in theirs:
            optimizer.zero_grad()
        (torch.func.functional_call(twin, dict(zip(names, weights, strict=True)), (x,)) - y).square().mean().backward()
        for optimizer in theirs:
            optimizer.step()
    for p, f in zip(model.parameters(), itertools.chain(*factors), strict=True):
        torch.testing.assert_close(p, hadamard_product(f), rtol=1e-10, atol=1e-12)


def test_every_parameter_counts_its_own_steps(backend):
    """One that had no gradient for a while is corrected as torch.optim.Adam does, and so is one that joins late."""
    ours_net, torch_net = net(), net()
    ours = FactorizedAdam(ours_net[0].parameters(), 0.05, depth=1)
    theirs = torch.optim.Adam(torch_net[0].parameters(), 0.05, foreach=False)
    for model, optimizer in ((ours_net, ours), (torch_net, theirs)):
        train(model, optimizer, range(3))
        optimizer.add_param_group({"params": list(model[2].parameters())})
        model[0].bias.requires_grad_(False)
        train(model, optimizer, range(3, 6))
        model[0].bias.requires_grad_(True)
        train(model, optimizer, range(6, 9))
    for p, q in zip(ours_net.parameters(), torch_net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        assert torch.equal(ours.state[p]["step"], theirs.state[q]["step"])


def test_a_state_that_does_not_fit_is_refused(backend):
    def fresh():
        return FactorizedAdam(net().parameters(), 0.1, depth=3)

    with pytest.raises(ValueError, match="another optimizer"):
        fresh().load_state_dict(torch.optim.Adam(net().parameters()).state_dict())
    with pytest.raises(ValueError, match=r"another optimizer.*no momentum"):
        FactorizedSGD(net().parameters(), 0.1, depth=3).load_state_dict(fresh().state_dict())
    for name in ("step", "exp_avg_2", "exp_avg_sq_0"):
        saved = fresh().state_dict()
        del saved["state"][1][name]
        with pytest.raises(ValueError, match=rf"depth 3 needs .*'{name}'.*; the state"):
            fresh().load_state_dict(saved)
    saved = FactorizedAdam(net().parameters(), 0.1, depth=3, amsgrad=True).state_dict()
    del saved["state"][1]["max_exp_avg_sq_1"]
    with pytest.raises(ValueError, match=r"the state has \['max_exp_avg_sq_0', 'max_exp_avg_sq_2'\]"):
        fresh().load_state_dict(saved)
    saved = fresh().state_dict()
    saved["state"][0]["exp_avg_sq_1"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"exp_avg_sq_1 has shape \(2,\)"):
        fresh().load_state_dict(saved)


def test_amsgrad_may_be_switched_on_later(backend):
    """From then on the largest squares are counted, from 0; torch.optim.Adam can't do so."""
    model, twin = net(), net()
    optimizer, other = (FactorizedAdam(m.parameters(), 0.05, depth=1) for m in (model, twin))
    for m, o in ((model, optimizer), (twin, other)):
        train(m, o, range(3))
    optimizer.param_groups[0]["amsgrad"] = True
    for m, o in ((model, optimizer), (twin, other)):
        train(m, o, [3])
    assert torch.equal(model[0].weight, twin[0].weight)
    state = optimizer.state[model[0].weight]
    assert torch.equal(state["max_exp_avg_sq_0"], state["exp_avg_sq_0"])
    assert float(state["step"]) == 4.0


def test_changed_weights_are_noticed_and_resynced(backend):
    model = net()
    optimizer = FactorizedAdam(model.parameters(), 0.1, depth=3)
    train(model, optimizer, range(3))
    weight = model[2].weight
    with torch.no_grad():
        weight[0, :4] *= 2.0
    target, before = weight.clone(), copy.deepcopy(optimizer.state[weight])
    with pytest.raises(RuntimeError, match=r"FactorizedAdam: parameter 2 .*resync"):
        train(model, optimizer, [3])
    optimizer.resync()
    torch.testing.assert_close(weight, target, rtol=1e-14, atol=0)
    state = optimizer.state[weight]
    for d in range(3):
        assert (state[f"exp_avg_{d}"][0, :4] == 0).all()
        assert torch.equal(state[f"exp_avg_{d}"][1:], before[f"exp_avg_{d}"][1:])
        assert torch.equal(state[f"exp_avg_sq_{d}"], before[f"exp_avg_sq_{d}"])
    assert float(state["step"]) == 3.0
    train(model, optimizer, [3])


def test_the_distance_to_stationarity_is_that_of_the_induced_penalty():
    """Of a coupled lam; a decoupled one has other fixed points."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.9, 1e-3]]))
    x, y = torch.eye(2).double(), torch.tensor([[1.0], [0.05]]).double()

    def loss():
        return (model(x) - y).square().sum() / 2

    report = kkt_residual(model, loss, FactorizedAdam(model.parameters(), 0.1, lam=0.1))
    assert report.total.max == pytest.approx(0.051, rel=1e-6)  # |1e-3 - 0.05 + 0.1|, and 0 for the other
    with pytest.raises(ValueError, match="decoupled"):
        kkt_residual(model, loss, FactorizedAdam(model.parameters(), 0.1, lam=0.1, decoupled=True))


def test_bad_arguments_are_named():
    p = [nn.Parameter(torch.ones(2))]
    for bad, match in (
        ({"lr": -0.1}, "FactorizedAdam: lr is -0.1"),
        ({"lr": 0.1, "depth": 0}, "depth is 0"),
        ({"lr": 0.1, "betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\)"),
        ({"lr": 0.1, "betas": 0.9}, "betas is 0.9"),
        ({"lr": 0.1, "betas": (-0.1, 0.9)}, "below 1"),
        ({"lr": 0.1, "eps": 0.0}, "eps is 0.0; it takes at least 1.2e-38"),
        ({"lr": 0.1, "eps": float("nan")}, "eps is nan"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay is -1.0"),
    ):
        with pytest.raises(ValueError, match=match):
            FactorizedAdam(p, **bad)
    with pytest.raises(ValueError, match=r"FactorizedAdam\.factors: a tensor is no parameter"):
        FactorizedAdam(p, 0.1).factors(torch.ones(2))


def test_the_operator_refuses_what_does_not_fit_before_it_writes(kernels):
    def arguments():
        kinds = [[torch.ones(2), torch.ones(2)] for _ in range(4)]
        scalars = [torch.tensor(0.1), torch.tensor(0.0), 0.9, 0.99, 1e-8, 0.0, False, False]
        return [[torch.ones(2)], *kinds, [torch.zeros(())], [torch.ones(2)], *scalars]

    step, twice = torch.ops.sparsenn.factorized_adam_, torch.ones(2)
    for position, wrong, match in (
        (2, [torch.ones(2)], "one of means and one of squares"),
        (4, [torch.ones(2)], "largest takes one tensor for each factor, or none"),
        (5, [torch.zeros(1)], r"steps\[0\] is float32 \(1,\); it takes a 0-d float32 tensor"),
        (5, [torch.zeros((), dtype=torch.int64)], "float64, float32"),
        (6, [], "one gradient and one step"),
        (
            3,
            [torch.ones(2), torch.ones(3)],
            r"squares\[1\] is float32 \(3,\); its weight is float32 \(2,\), and they must agree",
        ),
        (3, [torch.ones(2), torch.ones(2).double()], r"squares\[1\] is float64 \(2,\); its weight is float32"),
        (4, [torch.ones(2), torch.ones(1).expand(2)], r"largest\[1\] is written but several of its elements share memory"),
        (2, [twice, twice], r"means\[[01]\] and means\[[01]\] share memory"),
    ):
        bad = arguments()
        bad[position] = wrong
        with pytest.raises(RuntimeError, match=match):
            step(*bad)
        good = arguments()
        good[position] = wrong
        assert all(torch.equal(a, b) for x, y in zip(bad[:7], good[:7], strict=True) for a, b in zip(x, y, strict=True))
