"""Who is in which parameter group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.optim import param_groups
from sparsenn.penalties import L1, MCP, GroupL1, Heads


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.conv = nn.Conv1d(4, 8, 3)
        self.norms = nn.ModuleList(
            [nn.BatchNorm1d(8), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), nn.InstanceNorm1d(8, affine=True)]
        )
        self.rnn = nn.LSTM(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(()))


BIASES = {"conv.bias", "rnn.bias_ih_l0", "rnn.bias_hh_l0", "attention.in_proj_bias", "attention.out_proj.bias", "head.bias"}
BIASES |= {"attention.bias_k", "attention.bias_v"}
NORMS = {f"norms.{i}.{name}" for i in range(5) for name in ("weight", "bias")} - {"norms.3.bias"}
WEIGHTS = {"embed.weight", "conv.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "scale"}
WEIGHTS |= {"attention.in_proj_weight", "attention.out_proj.weight"}


def names(model: nn.Module, group: dict) -> set[str]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    assert len({id(p) for p in group["params"]}) == len(group["params"])
    return {by_id[id(p)] for p in group["params"]}


@pytest.mark.parametrize(
    ("exclude", "free"),
    [
        (("bias", "norm"), BIASES | NORMS),
        (("bias",), BIASES | {n for n in NORMS if n.endswith("bias")}),
        (("norm",), NORMS),
        (("embedding",), {"embed.weight"}),
        ("norm", NORMS),
        (nn.Conv1d, {"conv.weight", "conv.bias"}),
        ("*.scale", {"scale"}),
        (("head.*",), {"embed.weight", "head.bias"}),  # shared: any of its names counts
        (("rnn.weight_?h_l0", "scale"), {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "scale"}),
        ((nn.Conv1d, nn.LayerNorm), {"conv.weight", "conv.bias", "norms.1.weight", "norms.1.bias"}),
        ((), set()),
    ],
    ids=str,
)
def test_who_is_excluded(exclude, free):
    model = Net()
    groups = param_groups(model, lam=0.1, exclude=exclude)
    assert names(model, groups[0]) == (WEIGHTS | BIASES | NORMS) - free
    assert [g["lam"] for g in groups] == ([0.1, 0.0] if free else [0.1])
    if free:
        assert names(model, groups[1]) == free
    order = [id(p) for p in model.parameters()]
    for group in groups:
        positions = [order.index(id(p)) for p in group["params"]]
        assert positions == sorted(positions)


def test_parametrized_tensors_keep_their_kind():
    model = sparsenn.factorize(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 2)
    groups = param_groups(model, lam=0.1)
    assert names(model, groups[0]) == {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"}
    groups = param_groups(model, lam=0.1, exclude=(nn.Linear,))
    assert all(name.startswith("1.") for name in names(model, groups[0]))


def test_penalties_by_pattern_and_type_the_first_counts():
    model = Net()
    table = {
        nn.Conv1d: GroupL1(0.1, "filters"),
        "attention.in_proj_weight": GroupL1(0.2, Heads(2, 4)),
        "rnn.*": MCP(0.3),
        "*": L1(0.4),
    }
    groups = param_groups(model, penalties=table)
    assert [g["penalty"] for g in groups] == [*table.values(), None]
    assert [g["lam"] for g in groups] == [0.1, 0.2, 0.3, 0.4, 0.0]
    expected = [{"conv.weight"}, {"attention.in_proj_weight"}, {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}]
    assert [names(model, g) for g in groups[:3]] == expected
    assert names(model, groups[3]) == WEIGHTS - set.union(*expected)
    assert names(model, groups[4]) == BIASES | NORMS
    only = param_groups(model, penalties={"scale": L1(0.1)})
    assert names(model, only[0]) == {"scale"}
    assert names(model, only[1]) == (WEIGHTS | BIASES | NORMS) - {"scale"}
    assert len(param_groups(model, penalties=L1(0.1), exclude=())) == 1


def test_every_optimizer_takes_them():
    for make in (
        lambda groups: sparsenn.optim.FactorizedSGD(groups, lr=0.1),
        lambda groups: sparsenn.optim.ProxSGD(groups, lr=0.1),
        lambda groups: sparsenn.optim.Proximal(torch.optim.Adam(groups), L1(1.0)),
    ):
        model = nn.Linear(3, 2)
        assert [g["lam"] for g in make(param_groups(model, lam=0.2)).param_groups] == [0.2, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lam": 0.1, "exclude": ("bais",)},
            r"param_groups: exclude has 'bais', which is no kind \(bias, norm, embedding\).* 0.weight, 0.bias",
        ),
        ({"lam": 0.1, "exclude": "bais"}, "exclude has 'bais', which is no kind"),
        ({"lam": 0.1, "exclude": (3,)}, "exclude has 3; it takes kinds"),
        ({"lam": 0.1, "exclude": ("*",)}, "exclude leaves nothing to penalise of 0.weight"),
        ({}, "give either lam or penalties"),
        ({"lam": 0.1, "penalties": L1(0.1)}, "give either lam or penalties"),
        (
            {"penalties": {"1.*": L1(0.1)}},
            r"^param_groups: penalties has '1.\*', which means no parameter that is left of 0.weight$",
        ),
        ({"penalties": {nn.Conv2d: L1(0.1)}}, "Conv2d, which means no parameter"),
        (
            {"penalties": {3: L1(0.1)}},
            r"^param_groups: penalties has 3; it takes kinds \(bias, norm, embedding\), name patterns",
        ),
        ({"penalties": {"*": 0.1}}, r"^param_groups: penalties has 0.1 for '\*'; it takes a sparsenn.penalties.Penalty"),
        ({"penalties": GroupL1(0.1, "filters")}, r"0.weight has shape \(2, 3\); groups='filters'"),
        ({"penalties": L1(torch.ones(5))}, r"lam has shape \(5,\), which does not broadcast to 0.weight"),
    ],
)
def test_what_is_wrong_is_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        param_groups(nn.Sequential(nn.Linear(3, 2)), **options)
