"""Whatever the network and however its units died: the smaller copy computes the same."""

from __future__ import annotations

import random

import pytest
import torch
from random_nets import FAMILIES, kill, make
from torch import Tensor, nn

import sparsenn
from sparsenn.prune import compact


def outputs(net: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        found = net(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


def assert_same_function(net: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...], tolerance: float = 1e-12) -> None:
    for old, new in zip(outputs(net, inputs), outputs(small, inputs), strict=True):
        assert old.shape == new.shape
        assert (old - new).abs().max() <= tolerance * old.abs().max()


def numel(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_outputs_stay(family, seed):
    net, inputs = make(family, seed)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small = compact(net, tuple(x[:1] for x in inputs))
    assert_same_function(net, small, inputs)
    after = net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    own = {tensor.data_ptr() for tensor in (*small.state_dict().values(),) if tensor.numel()}
    assert not own & {tensor.data_ptr() for tensor in after.values() if tensor.numel()}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_time_changes_nothing(family, seed):
    net, inputs = make(family, seed)
    once = compact(net, inputs)
    twice = compact(once, inputs)
    assert numel(twice) <= numel(once)
    assert_same_function(net, twice, inputs)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_outputs_stay_with_widths_that_are_multiples(family, seed):
    net, inputs = make(family, seed)
    small = compact(net, inputs, round_to=3)
    assert_same_function(net, small, inputs)
    old = {name: m.weight.shape for name, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)}
    for name, shape in old.items():
        rows = small.get_submodule(name).weight.shape[0]
        assert rows % 3 == 0 or rows == shape[0] or getattr(small.get_submodule(name), "groups", 1) > 1


def alive(net: nn.Sequential, inputs: Tensor) -> list[int]:
    """How many units of each layer but the last vary with the inputs and move the outputs, found by trying."""
    places = [i for i, layer in enumerate(net) if isinstance(layer, nn.Linear | nn.Conv2d)][:-1]
    found = []
    for place in places:
        # a unit is what the next layer reads: after normalization, activation and pooling
        end = next(j for j in range(place + 1, len(net)) if isinstance(net[j], nn.Linear | nn.Conv2d | nn.Flatten))
        hidden = net[:end](inputs)
        rest = net[end:]
        count = 0
        for unit in range(hidden.shape[1]):
            varies = not torch.allclose(hidden[:, unit], hidden[:, unit].flatten()[0], rtol=0, atol=1e-13)
            moved = hidden.clone()
            moved[:, unit] += torch.randn_like(hidden[:, unit])
            count += varies and not torch.equal(rest(moved), rest(hidden))
        found.append(max(count, 1))
    return found


@pytest.mark.parametrize("seed", range(60))
@torch.no_grad()
def test_only_units_that_vary_and_matter_are_left(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    if seed % 2:
        widths = [rng.randint(2, 8) for _ in range(rng.randint(3, 5))]
        pairs = list(zip(widths[1:], widths, strict=False))
        layers = [layer for rows, columns in pairs for layer in (nn.Linear(columns, rows), nn.Sigmoid())]
        x = torch.randn(200, widths[0])
    else:
        layers = [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Tanh(), nn.Conv2d(5, 6, 3, padding=1, padding_mode="circular")]
        layers += [nn.Sigmoid(), nn.AvgPool2d(2), nn.Conv2d(6, 4, 1), nn.Softplus(), nn.Flatten(), nn.Linear(36, 3)]
        x = torch.randn(50, 2, 8, 8)
    net = nn.Sequential(*layers)
    kill(net, rng, rng.choice((0.2, 0.5, 0.8)))
    net, x = net.double().eval(), x.double()
    small = compact(net, x[:1])
    rows = [layer.weight.shape[0] for layer in small if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert rows[:-1] == alive(net, x)


@pytest.mark.parametrize("name", sparsenn.models.names())
def test_the_networks_of_the_papers_in_float32(name):
    torch.manual_seed(0)
    net = sparsenn.models.build(name, in_channels=3, image_size=32).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.bias.normal_(0, 0.1)
                module.weight *= torch.rand(module.num_features) < 0.5
            elif isinstance(module, nn.Linear) and module.out_features > 10:
                module.bias.normal_(0, 0.1)
                module.weight *= (torch.rand(module.out_features) < 0.5)[:, None]
    x = torch.rand(2, 3, 32, 32)
    small = compact(net, x[:1])
    assert numel(small) < 0.5 * numel(net)
    assert_same_function(net, small, (x,), 1e-6)
