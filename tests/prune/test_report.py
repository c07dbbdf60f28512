import copy
import json

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.prune import compact, compaction_report


def test_the_report_counts_layers_parameters_and_inputs():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)).eval()
    with torch.no_grad():
        net[0].weight[:2] = 0
        net[0].weight[:, 1] = 0
        net[1].bias[:2] = 0
    small = compact(net, torch.randn(1, 3, 4, 4))
    report = compaction_report(net, small)
    assert [(row.name, row.before, row.after) for row in report.layers] == [("0", (3, 6), (2, 4)), ("4", (24, 2), (16, 2))]
    assert [(row.parameters_before, row.parameters_after) for row in report.layers] == [(168, 76), (50, 34)]
    assert (report.parameters_before, report.parameters_after) == (168 + 12 + 50, 76 + 8 + 34)
    assert report.ratio == 230 / 118
    assert {name: index.tolist() for name, index in report.input_maps.items()} == {"0": [0, 2]}
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["layers"][0]["after"] == [2, 4]
    assert plain["input_maps"] == {"0": [0, 2]}
    assert "24 x 2" in str(report)


def test_factors_count_as_their_product_and_tied_weights_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    net[2].weight = net[0].weight
    numel = sum(p.numel() for p in net.parameters())
    assert numel == 16 + 4 + 4 + 5
    sparsenn.factorize(net, 3, "root")
    report = compaction_report(net, sparsenn.collapse(nn.Sequential(*map(copy.deepcopy, net)), 0.0))
    assert report.parameters_before == numel
    assert report.parameters_after == numel + 16  # copied one by one, they are tied no more


def test_groups_count_all_channels():
    net = nn.Sequential(nn.Conv2d(6, 9, 1, groups=3))
    assert compaction_report(net, net).layers[0].before == (6, 9)


def test_another_model_is_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="compaction_report: after has no layer '1'; it takes what compact made of before"):
        compaction_report(net, net[:1])
