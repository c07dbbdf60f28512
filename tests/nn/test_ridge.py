"""Blocks of ridge functions: the formula of Theorem 1, and what leaves the function as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.models import SkipMLP
from sparsenn.nn import RidgeBlock, RidgeNet

HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity)


def net_with_dead_neurons(activation: type[nn.Module] = nn.ReLU) -> RidgeNet:
    """A neuron that says nothing, one that says a constant, and one of which nothing is left but its bias, in either block."""
    torch.manual_seed(0)
    net = RidgeNet(4, 3, width=12, functional_width=5, activation=activation, dtype=torch.float64)
    with torch.no_grad():
        for block in net:
            block.outer.weight[:, 1] = 0
            block.inner.weight[2] = 0
            block.inner.bias[2] = 0.7
            block.inner.weight[3] = 0
            block.outer.weight[:, 3] = 0
    return net


@pytest.mark.parametrize("skip", [True, False])
def test_a_net_is_the_recursion_of_the_theorem(skip):
    torch.manual_seed(1)
    net = RidgeNet(4, 2, depth=3, width=7, functional_width=3, skip=skip, dtype=torch.float64)
    assert [(len(b.inner.weight), b.inner.in_features, b.outer.out_features) for b in net] == [(7, 4, 3), (7, 3, 3), (7, 3, 2)]
    x = torch.randn(11, 4, dtype=torch.float64)
    expected = x
    for block in net:
        v, w, b, c0 = block.outer.weight, block.inner.weight, -block.inner.bias, block.outer.bias
        c = block.skip.weight if skip else torch.zeros(len(v), w.shape[1], dtype=torch.float64)
        expected = torch.stack([v @ (w @ row - b).clamp(min=0) + c @ row + c0 for row in expected])
    torch.testing.assert_close(net(x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("activation", HOMOGENEOUS)
def test_balancing_keeps_the_function_and_makes_the_norms_equal(activation):
    net = net_with_dead_neurons(activation)
    x = torch.randn(40, 4, dtype=torch.float64)
    before = net(x)
    net.balance_()
    torch.testing.assert_close(net(x), before, rtol=1e-12, atol=1e-13)
    for block in net:
        torch.testing.assert_close(block.outer.weight.abs().sum(0), block.inner.weight.norm(dim=1), rtol=1e-13, atol=0)
        dead = block.neuron_norms() == 0
        assert dead.nonzero().flatten().tolist() == [1, 2, 3]
        assert (block.inner.bias[dead] == 0).all()
    again = copy.deepcopy(net).balance_()
    for mine, other in zip(net.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-14, atol=0)


def test_normalizing_keeps_the_function_and_makes_unit_rows():
    net = net_with_dead_neurons()
    x = torch.randn(40, 4, dtype=torch.float64)
    before = net(x)
    for block in net:
        norms = block.inner.weight.norm(dim=1)
        block.normalize_()
        torch.testing.assert_close(block.inner.weight.norm(dim=1), (norms > 0).double(), rtol=1e-14, atol=0)
    torch.testing.assert_close(net(x), before, rtol=1e-12, atol=1e-13)


def test_a_slope_for_each_neuron_balances_too():
    torch.manual_seed(0)
    block = RidgeBlock(3, 4, 2, activation=nn.PReLU(4, dtype=torch.float64), dtype=torch.float64)
    with torch.no_grad():
        block.activation.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        block.inner.weight[1] = 0
        block.inner.bias[1] = -0.7  # it says 0.2 * -0.7
    x = torch.randn(9, 3, dtype=torch.float64)
    before = block(x)
    torch.testing.assert_close(block.balance_()(x), before, rtol=1e-12, atol=1e-13)
    assert (block.neuron_norms() == 0).tolist() == [False, True, False, False]


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_rescaling_keeps_weights_whose_squares_leave_the_range(size):
    torch.manual_seed(0)
    block = RidgeBlock(3, 4, 2)
    with torch.no_grad():
        block.inner.weight.mul_(size)
        block.inner.bias.mul_(size)
        block.outer.weight.div_(size)
    x = torch.randn(9, 3)
    before, norms = block(x), block.neuron_norms()
    unit = copy.deepcopy(block).normalize_()
    torch.testing.assert_close(unit(x), before)
    torch.testing.assert_close(unit.inner.weight.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(unit.outer.weight.abs().sum(0), norms)
    block.balance_()
    torch.testing.assert_close(block(x), before)
    torch.testing.assert_close(block.inner.weight.norm(dim=1), norms.sqrt())


def test_compact_takes_the_dead_neurons_of_a_balanced_net_out():
    net = net_with_dead_neurons().balance_()
    x = torch.randn(40, 4, dtype=torch.float64)
    small = sparsenn.prune.compact(net, x)
    assert [len(block.inner.weight) for block in small] == [9, 9]
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-12)


def test_neuron_norms_are_the_norm_of_each_ridge_function():
    block = RidgeBlock(2, 2, 2)
    with torch.no_grad():
        block.inner.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        block.outer.weight.copy_(torch.tensor([[1.0, 5.0], [-2.0, 5.0]]))
    assert block.neuron_norms().tolist() == [15.0, 0.0]


def test_an_activation_that_is_not_homogeneous_can_run_but_not_be_rescaled():
    net = RidgeNet(4, 1, width=8, activation=nn.Tanh)
    for call in (net.balance_, net[0].normalize_):
        with pytest.raises(ValueError, match=r"Tanh is not positively homogeneous; it takes ReLU, LeakyReLU, PReLU, Identity"):
            call()


@pytest.mark.parametrize(
    "change", [sparsenn.spectralize, lambda net: sparsenn.factorize(net, 2)], ids=["spectral", "factorized"]
)
def test_what_is_written_into_a_composed_weight_would_be_lost(change):
    net = change(RidgeNet(4, 1, width=8))
    for call in (net.balance_, net[0].balance_, net[0].normalize_):
        with pytest.raises(ValueError, match=r"inner is a \w+ that composes its weight; collapse the model first"):
            call()
    sparsenn.collapse(net).balance_()


def tied(how: str) -> RidgeNet:
    net = RidgeNet(4, 4, width=8, functional_width=4)
    if how == "weight":
        net[1].inner.weight = net[0].inner.weight
    elif how == "layer":
        net[1].outer = net[0].outer
    else:
        net.append(nn.Linear(8, 4))
        net[2].weight = net[1].outer.weight
    return net


@pytest.mark.parametrize(("how", "index"), [("weight", 0), ("layer", 0), ("outside", 1)])
def test_a_block_that_shares_its_scale_can_not_have_another(how, index):
    with pytest.raises(ValueError, match=f"RidgeNet.balance_: block {index} shares parameters with another layer"):
        tied(how).balance_()


def test_a_block_that_is_used_twice_can_be_rescaled():
    torch.manual_seed(0)
    block = RidgeBlock(4, 8, 4)
    net = RidgeNet(4, 4, width=8, functional_width=4)
    net[0] = net[1] = block
    x = torch.randn(9, 4)
    before = net(x)
    torch.testing.assert_close(net.balance_()(x), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RidgeBlock(2, 4, 4, nn.ReLU), "RidgeBlock: activation is <class .*ReLU'>; it takes a module"),
        (lambda: RidgeNet(4, 1, activation=nn.ReLU()), r"RidgeNet: activation is ReLU\(\); it takes what makes one"),
        (lambda: RidgeBlock(0, 4, 4), "RidgeBlock: in_features is 0; it takes an integer >= 1"),
        (lambda: RidgeBlock(4, -1, 4), "RidgeBlock: width is -1; it takes an integer >= 0"),
        (lambda: RidgeNet(4, 1, depth=0), "RidgeNet: depth is 0; it takes an integer >= 1"),
        (lambda: SkipMLP(4, 1, width=0), "SkipMLP: width is 0; it takes an integer >= 1"),
    ],
)
def test_sizes_out_of_range_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_control_is_a_ridge_net_with_its_products_multiplied_out():
    """Without the last skip W V, W C and W c are all that the control has."""
    torch.manual_seed(2)
    net = RidgeNet(4, 2, width=6, functional_width=3).double()
    control = SkipMLP(4, 2, width=6).double()
    with torch.no_grad():
        first, last = net
        last.skip.weight.zero_()
        control.layers[0].weight.copy_(first.inner.weight)
        control.layers[0].bias.copy_(first.inner.bias)
        control.layers[1].weight.copy_(last.inner.weight @ first.outer.weight)
        control.layers[1].bias.copy_(last.inner.weight @ first.outer.bias + last.inner.bias)
        control.skips[0].weight.copy_(last.inner.weight @ first.skip.weight)
        control.layers[2].weight.copy_(last.outer.weight)
        control.layers[2].bias.copy_(last.outer.bias)
        control.skips[1].weight.zero_()
    x = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(control(x), net(x), rtol=1e-12, atol=1e-12)
