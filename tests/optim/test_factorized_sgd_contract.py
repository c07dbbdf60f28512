"""FactorizedSGD as an optimizer of torch, beyond what all owe: groups, depths, factors and their states."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from small_training import batch, net, train
from torch import nn

from sparsenn.ops import hadamard_product
from sparsenn.optim import FactorizedSGD


def test_param_groups_have_their_own_options(backend):
    options = [{"lr": 0.05, "depth": 3, "lam": 0.1}, {"lr": 0.2, "depth": 2, "momentum": 0.9}]
    model = net()
    layers = [list(model[i].parameters()) for i in (0, 2)]
    ours = FactorizedSGD([{"params": p, **o} for p, o in zip(layers, options, strict=True)], 0.5)
    assert [len(ours.factors(p[0])) for p in layers] == [3, 2]
    twin = copy.deepcopy(model)
    factors = [[[nn.Parameter(f.clone()) for f in ours.factors(p)] for p in layer] for layer in layers]
    theirs = torch.optim.SGD(
        [
            {
                "params": list(itertools.chain(*f)),
                "lr": o["lr"],
                "momentum": o.get("momentum", 0.0),
                "weight_decay": 2 * o.get("lam", 0.0) / o["depth"],
            }
            for f, o in zip(factors, options, strict=True)
        ]
    )
    for step in range(20):
        train(model, ours, [step])
        theirs.zero_grad()
        x, y = batch(step)
        weights = [hadamard_product(f) for layer in factors for f in layer]
        names = [name for name, _ in twin.named_parameters()]
        (torch.func.functional_call(twin, dict(zip(names, weights, strict=True)), (x,)) - y).square().mean().backward()
        theirs.step()
    for p, f in zip(model.parameters(), itertools.chain(*factors), strict=True):
        torch.testing.assert_close(p, hadamard_product(f), rtol=1e-10, atol=1e-12)


def test_groups_that_are_added_are_factorized_at_once(backend):
    model = net()
    optimizer = FactorizedSGD(model[0].parameters(), 0.1)
    optimizer.add_param_group({"params": list(model[2].parameters()), "depth": 4})
    assert len(optimizer.factors(model[2].weight)) == 4
    for bad in ({"depth": 0}, {"factor_init": "zeros"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **bad})
    assert len(optimizer.param_groups) == 2


def test_a_state_that_does_not_fit_is_refused(backend):
    saved = FactorizedSGD(net().parameters(), 0.1, depth=3).state_dict()
    other = FactorizedSGD([nn.Parameter(torch.ones(2, 2)) for _ in range(4)], 0.1, depth=3)
    before = [p.clone() for p in other.param_groups[0]["params"]]
    with pytest.raises(ValueError, match="shape"):
        other.load_state_dict(saved)
    del saved["state"][0]["factor_1"]
    with pytest.raises(ValueError, match="depth 3 needs"):
        FactorizedSGD(net().parameters(), 0.1, depth=3).load_state_dict(saved)
    for p, q in zip(before, other.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


def test_a_changed_depth_is_refused_before_any_parameter_moves(backend):
    for depth in (1, 3):
        model = net()
        groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
        optimizer = FactorizedSGD(groups, 0.1, depth=2)
        train(model, optimizer, [0])
        before = copy.deepcopy(model.state_dict())
        optimizer.param_groups[1]["depth"] = depth
        with pytest.raises(RuntimeError, match=f"depth of a group was changed to {depth}"):
            train(model, optimizer, [1])
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_constructor_that_raises_leaves_the_weights(backend):
    model = net()
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="NaN or infinity"):
        FactorizedSGD(model.parameters(), 0.1, factor_init="dwf")
    assert all(torch.equal(p.nan_to_num(), before[name].nan_to_num()) for name, p in model.state_dict().items())


def test_loading_a_state_leaves_the_random_numbers_and_brings_the_seed(backend):
    model, other = net(), net()
    optimizer = FactorizedSGD(model.parameters(), 0.1)
    restored = FactorizedSGD(other.parameters(), 0.1)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    other.load_state_dict(model.state_dict())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(torch.rand(3), expected)
    for m, o in ((model, optimizer), (other, restored)):
        with torch.no_grad():
            m[0].weight.mul_(2.0)
        o.resync()
    assert all(
        torch.equal(a, b) for a, b in zip(optimizer.factors(model[0].weight), restored.factors(other[0].weight), strict=True)
    )


def test_bad_arguments_are_named():
    p = [nn.Parameter(torch.ones(2))]
    for bad, match in (
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": 0.1, "lam": float("inf")}, "lam is inf"),
        ({"lr": 0.1, "depth": 2.5}, "depth is 2.5"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs momentum"),
        ({"lr": torch.ones(2)}, "lr is a"),
        ({"lr": torch.tensor(-1.0)}, "lr is tensor"),
        ({"lr": "0.1"}, "lr is '0.1'"),
        ({"lr": 0.1, "factor_init": "zeros"}, "'zeros'.*preserve"),
    ):
        with pytest.raises(ValueError, match=match):
            FactorizedSGD(p, **bad)
    with pytest.raises(ValueError, match="no parameter of this optimizer"):
        FactorizedSGD(p, 0.1).factors(torch.ones(2))
