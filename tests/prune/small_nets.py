"""Small networks with generic weights, and what it means that two compute the same."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@torch.no_grad()
def generic(net: nn.Module) -> nn.Module:
    """No parameter and no statistic is zero or one; float64, eval mode."""
    for parameter in net.parameters():
        parameter.normal_()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return net.double().eval()


@torch.no_grad()
def assert_same_function(net: nn.Module, small: nn.Module, *inputs: Tensor) -> None:
    old, new = net(*inputs), small(*inputs)
    assert old.shape == new.shape
    assert old.dtype == new.dtype
    assert (old - new).abs().max() <= BOUNDS[old.dtype] * old.abs().max()


@torch.no_grad()
def zero(tensor: Tensor, *units: int, dim: int = 0) -> None:
    tensor.index_fill_(dim, torch.tensor(units), 0.0)


def perceptron(*widths: int, activation: type[nn.Module] = nn.Sigmoid) -> nn.Sequential:
    layers: list[nn.Module] = []
    for columns, rows in itertools.pairwise(widths):
        layers += [nn.Linear(columns, rows), activation()]
    return generic(nn.Sequential(*layers[:-1]))
