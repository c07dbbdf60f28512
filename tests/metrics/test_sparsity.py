from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from sparsenn.metrics import SparsityReport, sparsity, sparsity_report

EPS = torch.finfo(torch.float32).eps


class Product(nn.Module):
    def forward(self, *factors):
        return torch.stack(factors).prod(0)

    def right_inverse(self, weight):
        return weight.clone(), torch.ones_like(weight), torch.ones_like(weight)


class Shifted(nn.Module):
    def forward(self, weight):
        return weight - 1


def names(report: SparsityReport) -> list[str]:
    return [row.name for row in report.layers]


def model() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 1e-8, 1.0], [-2.0, -EPS, 2 * EPS]]))
        net[0].bias.copy_(torch.tensor([0.5, 0.0]))
        net[1].weight.fill_(1.0)
        net[1].bias.fill_(-1e-9)
        net[2].weight.fill_(0.0)
    return net


def test_counts_exact_zeros_and_those_below_apart():
    report = sparsity_report(model())
    rows = {row.name: (row.shape, row.numel, row.zeros, row.below) for row in report.layers}
    assert rows == {
        "0.weight": ((2, 3), 6, 1, 3),
        "0.bias": ((2,), 2, 1, 1),
        "1.weight": ((2,), 2, 0, 0),
        "1.bias": ((2,), 2, 0, 2),
        "2.weight": ((1, 2), 2, 2, 2),
    }
    total = report.total
    assert (total.numel, total.zeros, total.below) == (14, 4, 8)
    assert report.threshold == EPS
    assert report.compression_ratio == 14 / 6
    assert report.exact_compression_ratio == 14 / 10
    assert [row.compression_ratio for row in report.layers] == [2.0, 2.0, 1.0, math.inf, math.inf]
    assert report.layers[3].exact_compression_ratio == 1.0


@pytest.mark.parametrize(("threshold", "below"), [(0.0, 4), (1e-8, 7), (0.5, 10), (math.inf, 14)])
def test_the_threshold_is_included(threshold, below):
    report = sparsity_report(model(), threshold)
    assert report.total.below == below
    assert report.total.zeros == 4
    assert sparsity(model(), threshold) == below / 14


def test_sparsity_of_tensors():
    values = torch.tensor([0.0, -0.0, 1e-9, math.nan, math.inf, -3.0])
    assert sparsity(values) == 2 / 6
    assert sparsity(values, 1e-9) == 3 / 6
    assert sparsity(values, math.inf) == 5 / 6
    assert sparsity(torch.tensor(0.0)) == 1.0
    assert sparsity(torch.empty(0, 3)) == 0.0
    assert sparsity(torch.tensor([0, 1, -2])) == 1 / 3
    assert sparsity(torch.tensor([True, False])) == 1 / 2
    assert sparsity(torch.eye(4).T[::2]) == 6 / 8
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert sparsity(torch.tensor([0.0, 0.25, -0.25, 0.5], dtype=dtype), 0.25) == 3 / 4


def test_large_counts_are_exact():
    # float32 cannot count beyond 2^24.
    weight = torch.zeros(2**24 + 3, dtype=torch.bfloat16)
    weight[:2] = 1
    assert sparsity(weight) == (2**24 + 1) / (2**24 + 3)


def test_a_factorized_weight_counts_as_its_product():
    net = model()
    parametrize.register_parametrization(net[0], "weight", Product())
    before = {name: row for row in sparsity_report(model()).layers for name in [row.name]}
    report = sparsity_report(net)
    assert {row.name: row for row in report.layers} == before
    # Small factors, a tiny product; and one zero factor among large ones.
    with torch.no_grad():
        for factor in net[0].parametrizations.weight.parameters():
            factor.fill_(1e-3)
        net[0].parametrizations.weight.original2[0, 0] = 0
    row = next(row for row in sparsity_report(net).layers if row.name == "0.weight")
    assert (row.numel, row.zeros, row.below) == (6, 1, 6)
    assert sparsity(net) == (1 + 1 + 2) / 14


def test_any_parametrization_counts_by_what_the_module_computes_with():
    layer = nn.Linear(2, 2, bias=False)
    nn.init.ones_(layer.weight)
    parametrize.register_parametrization(layer, "weight", Shifted(), unsafe=True)
    assert sparsity_report(layer).layers[0].zeros == 4


def test_counting_changes_nothing():
    layer = parametrizations.spectral_norm(nn.Linear(4, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sparsity_report(layer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(module.training for module in layer.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_weights_count_once_frozen_ones_count_and_buffers_never():
    net = nn.Module()
    net.a, net.b, net.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    net.b.weight = net.a.weight
    net.again = net.c
    net.c.requires_grad_(False)
    net.register_buffer("mask", torch.zeros(100))
    assert names(sparsity_report(net)) == ["a.weight", "a.bias", "b.bias", "c.weight", "c.bias"]
    assert sparsity_report(net).total.numel == 9 + 3 + 3 + 9 + 3

    parametrize.register_parametrization(net.c, "weight", Product())
    net.b.weight = nn.Parameter(torch.zeros(3, 3))
    parametrize.register_parametrization(net.b, "weight", Product())
    originals = net.c.parametrizations.weight
    for name in ("original0", "original1", "original2"):
        setattr(net.b.parametrizations.weight, name, getattr(originals, name))
    assert sparsity_report(net).total.numel == 9 + 3 + 3 + 9 + 3

    with_buffer = nn.BatchNorm1d(4)
    parametrize.register_parametrization(with_buffer, "running_mean", Shifted(), unsafe=True)
    assert names(sparsity_report(with_buffer)) == ["weight", "bias"]


def test_a_model_without_weights():
    report = sparsity_report(nn.ReLU())
    assert report.layers == ()
    assert report.compression_ratio == report.exact_compression_ratio == 1.0
    assert sparsity(nn.ReLU()) == 0.0
    assert str(report).splitlines()[-1].split() == ["total", "0", "0", "0", "1.00", "1.00"]
    hollow = nn.Linear(0, 3, bias=False)
    assert sparsity_report(hollow).layers[0].compression_ratio == 1.0


def test_the_dict_is_json_and_an_infinite_ratio_is_none():
    data = json.loads(json.dumps(sparsity_report(model()).to_dict(), allow_nan=False))
    assert data["threshold"] == EPS
    assert data["total"] == {
        "name": "total",
        "shape": None,
        "numel": 14,
        "zeros": 4,
        "below": 8,
        "compression_ratio": 14 / 6,
        "exact_compression_ratio": 14 / 10,
    }
    assert [row["compression_ratio"] for row in data["layers"]] == [2.0, 2.0, 1.0, None, None]
    assert data["layers"][0]["shape"] == [2, 3]


def test_the_table_is_aligned_and_holds_every_count():
    lines = str(sparsity_report(model())).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["0.weight", "2x3", "6", "1", "3", "2.00", "1.20"]
    assert lines[6].split() == ["2.weight", "1x2", "2", "2", "2", "inf", "inf"]
    assert lines[-1].split() == ["total", "14", "4", "8", "2.33", "1.40"]
    scalar = nn.Module()
    scalar.gate = nn.Parameter(torch.tensor(1.0))
    assert str(sparsity_report(scalar)).splitlines()[2].split()[:2] == ["gate", "scalar"]


def test_errors_are_sentences():
    for threshold in (-1.0, math.nan):
        with pytest.raises(ValueError, match="threshold must be at least 0; got"):
            sparsity_report(nn.Linear(1, 1), threshold)
        with pytest.raises(ValueError, match="threshold must be at least 0; got"):
            sparsity(torch.ones(1), threshold)
    with pytest.raises(ValueError, match="weight is on the meta device and has no values to count"):
        sparsity_report(nn.Linear(1, 1, device="meta"))
    for counted in (sparsity, sparsity_report):
        with pytest.raises(TypeError, match=r"model is OrderedDict; it takes a torch\.nn\.Module"):
            counted(nn.Linear(1, 1).state_dict())
