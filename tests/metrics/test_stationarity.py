from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.metrics import kkt_residual
from sparsenn.optim import FactorizedSGD, Proximal, ProxSGD, param_groups
from sparsenn.penalties import L1, L2_3, GroupL1


def setup(bias: bool = True):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    y = (x @ torch.tensor([2.0, -1, 0, 0, 0.5, 0], dtype=torch.float64)).unsqueeze(1) + 0.3
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=bias).double()
    return model, x, y, lambda: (model(x) - y).square().mean() / 2


def fit(optimizer, closure, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()


def test_is_the_lasso_s_condition_written_out():
    model, x, y, closure = setup()
    with torch.no_grad():
        model.weight[0, 2:4] = 0
    residual = (x @ model.weight[0] + model.bias - y[:, 0]).detach()
    g, g_bias, w = x.T @ residual / 50, residual.mean(), model.weight[0].detach()
    expected = torch.where(w == 0, (g.abs() - 0.2).clamp(min=0), (g + 0.2 * w.sign()).abs())
    report = kkt_residual(model, closure, {"weight": L1(0.2)})
    weight, bias = report.layers
    assert (weight.name, weight.shape, weight.penalty, weight.count) == ("weight", (1, 6), "L1(lam=0.2)", 6)
    assert (bias.name, bias.penalty, bias.count) == ("bias", None, 1)
    assert weight.max == pytest.approx(float(expected.max()), rel=1e-12)
    assert weight.rms == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-12)
    assert bias.max == bias.rms == pytest.approx(abs(float(g_bias)), rel=1e-12)
    scale = max(float(g.abs().max()), abs(float(g_bias)))
    assert report.gradient_scale == pytest.approx(scale, rel=1e-12)
    assert weight.relative == pytest.approx(weight.max / scale, rel=1e-12)
    everything = torch.cat([expected, g_bias.abs().reshape(1)])
    assert report.total.max == pytest.approx(float(everything.max()), rel=1e-12)
    assert report.total.rms == pytest.approx(float(everything.square().mean().sqrt()), rel=1e-12)
    assert report.total.count == 7
    assert kkt_residual(model, closure, 0.2).layers[1].penalty == "L1(lam=0.2)"


@pytest.mark.parametrize(
    "make",
    [
        lambda model: ProxSGD(param_groups(model, lam=0.1), 0.1, momentum=0.9),
        lambda model: ProxSGD(param_groups(model, lam=0.1), 0.1, weight_decay=0.3),
        lambda model: Proximal(torch.optim.SGD(model.parameters(), 0.1, momentum=0.5), GroupL1(0.05, "columns")),
        lambda model: Proximal(torch.optim.Adam(param_groups(model, lam=0.1), 0.01, weight_decay=0.1), L1(9.0)),
        lambda model: FactorizedSGD(param_groups(model, lam=0.05), 0.1, depth=1),
    ],
    ids=["prox", "prox_decay", "group", "adam", "ridge"],
)
def test_an_optimizer_knows_its_own_problem_and_solves_it(make):
    model, _, _, closure = setup(bias=False)
    optimizer = make(model)
    assert kkt_residual(model, closure, optimizer).total.max > 0.05
    fit(optimizer, closure, 3000)
    assert kkt_residual(model, closure, optimizer).total.max <= 1e-8
    optimizer.param_groups[0]["lam"] = 0.2
    assert kkt_residual(model, closure, optimizer).total.max > 0.04


def test_factors_solve_the_problem_of_their_depth():
    model, _, _, closure = setup(bias=False)
    optimizer = FactorizedSGD(model.parameters(), 0.1, depth=3, lam=0.1, generator=torch.Generator().manual_seed(2))
    fit(optimizer, closure, 4000)
    sparsenn.collapse(model)
    assert (model.weight == 0).any()
    report = kkt_residual(model, closure, optimizer)
    assert report.layers[0].penalty == "L2_3(lam=0.1)"
    assert report.total.max <= 1e-8
    assert kkt_residual(model, closure, L2_3(0.1)).total.max == report.total.max
    assert kkt_residual(model, closure, L1(0.1)).total.max > 1e-3


def test_leaves_no_trace():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(20, 6)
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kkt_residual(model, lambda: model(x).square().mean(), 0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model[0].weight.grad == 7).all()
    assert model[2].weight.grad is None


def test_table_and_dict():
    model, _, _, closure = setup()
    report = kkt_residual(model, closure, {"weight": L1(0.2)})
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "shape", "penalty", "max", "rms", "relative"]
    assert lines[2].split()[:3] == ["weight", "1x6", "L1(lam=0.2)"]
    assert lines[3].split()[:3] == ["bias", "1", "none"]
    assert lines[-1].startswith("total")
    assert len({len(line) for line in lines}) == 1
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["total"]["max"] == report.total.max
    assert [row["name"] for row in plain["layers"]] == ["weight", "bias"]
    short = kkt_residual(model, closure, 0.2, per_layer=False)
    assert short.layers == ()
    assert len(str(short).splitlines()) == 3
    with torch.no_grad():
        model.weight.fill_(math.nan)
    lost = kkt_residual(model, closure, 0.2)
    assert math.isnan(lost.total.max)
    assert lost.to_dict()["total"]["max"] is None


def test_parameters_out_of_reach_empty_and_shared_and_frozen():
    model, _, _, closure = setup()
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model.empty = nn.Parameter(torch.ones(0, 3, dtype=torch.float64))
    model.twin = model.weight
    report = kkt_residual(model, closure, 0.2)
    assert [row.name for row in report.layers] == ["weight", "bias", "unused", "empty"]
    assert report.layers[2].max == pytest.approx(0.2)  # L1 pulls, nothing holds
    assert (report.layers[3].count, report.layers[3].max, report.layers[3].rms) == (0, 0.0, 0.0)
    model.bias.requires_grad_(False)
    assert kkt_residual(model, closure, {"weight": L1(0.2)}).layers[1].max == 0


def test_sparse_gradients_are_those_of_the_dense_layer():
    index = torch.tensor([1, 2, 2])
    reports = []
    for sparse in (False, True):
        layer = nn.Embedding(5, 2, sparse=sparse, _weight=torch.arange(10.0).reshape(5, 2) - 4)
        reports.append(kkt_residual(layer, lambda layer=layer: layer(index).square().sum(), 0.1).to_dict())
    assert reports[0] == reports[1]
    assert reports[0]["total"]["max"] > 1


def test_what_is_wrong_is_one_sentence():
    model, _, _, closure = setup()
    with pytest.raises(ValueError, match=r"closure returned a tensor of shape \(50, 1\); it takes a function that"):
        kkt_residual(model, lambda: model(torch.ones(50, 6, dtype=torch.float64)), 0.1)
    with pytest.raises(ValueError, match=r"closure returned 3\.0; it takes"):
        kkt_residual(model, lambda: 3.0, 0.1)
    with pytest.raises(ValueError, match="penalty is 'l1'; it takes a penalty, a number, a mapping or an optimizer"):
        kkt_residual(model, closure, "l1")
    with pytest.raises(ValueError, match=r"^kkt_residual: penalty has 'head', which means no parameter that is left of "):
        kkt_residual(model, closure, {"head": L1(0.1)})
    with pytest.raises(ValueError, match="penalty is a SGD, which has none"):
        kkt_residual(model, closure, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"bias has shape \(1,\); groups='rows' takes 2 dimensions"):
        kkt_residual(model, closure, GroupL1(0.1, "rows"))
    with pytest.raises(ValueError, match="the optimizer has none of the model's parameters"):
        kkt_residual(model, closure, ProxSGD(setup()[0].parameters(), 0.1, lam=0.1))
    with pytest.raises(ValueError, match="the optimizer has depth 6; it takes a depth of 1 to 4"):
        kkt_residual(model, closure, FactorizedSGD(model.parameters(), 0.1, depth=6))
