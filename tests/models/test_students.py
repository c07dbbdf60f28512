import math

import pytest
import torch
from torch import nn

from sparsenn.models.students import ACTIVATIONS, STUDENTS, baseline_cnn, build_student, fcn, start_
from sparsenn.nn import PatchConv1d

FUNCTIONS = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
}
WEIGHTS = {"baselineCNN": 7, "splitFilterCNN": 12, "multiChannelCNN": 52, "fcn_256_32": 11296, "fcn_128_128": 18048}


def as_matrix(layer: nn.Module, inputs: int) -> torch.Tensor:
    """The layer's weight as one matrix, by its answers to the unit vectors."""
    shape = (inputs, layer.in_channels, inputs // layer.in_channels) if isinstance(layer, PatchConv1d) else (inputs, inputs)
    return layer(torch.eye(inputs, dtype=torch.float64).view(shape)).flatten(1).t()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", STUDENTS)
def test_the_network_is_three_products_each_followed_by_the_activation(name, activation):
    net = build_student(name, activation, seed=1).double()
    layers = [layer for layer in net if isinstance(layer, (PatchConv1d, nn.Linear))]
    assert len(layers) == 3
    assert all(layer.bias is None for layer in layers)
    x = expected = torch.randn(20, 12, dtype=torch.float64)
    for layer in layers:
        expected = FUNCTIONS[activation](expected @ as_matrix(layer, expected.shape[1]).t())
    assert expected.shape == (20, 1)
    torch.testing.assert_close(net(x), expected)
    assert sum(p.numel() for p in net.parameters()) == WEIGHTS.get(name, 12 * 1024 + 1024 * 128 + 128)


def test_the_last_activation_can_be_left_out():
    x = torch.randn(5, 12)
    plain = build_student("fcn_128_128", "tanh", seed=2, output_activation=False)
    torch.testing.assert_close(torch.tanh(plain(x)), build_student("fcn_128_128", "tanh", seed=2)(x))
    assert not isinstance(baseline_cnn(output_activation=False)[-2], nn.ReLU)


@pytest.mark.parametrize(("activation", "gain"), [("relu", 0.0), ("sigmoid", 1.0), ("tanh", 5 / 3)])
def test_the_start_has_the_published_spread(activation, gain):
    net = start_(fcn((300, 900), activation), activation, 0.2)
    weight = net[2].weight.detach() / 0.2
    if gain:
        bound = gain * math.sqrt(6 / 1200)
        assert 0.999 * bound < weight.abs().max() <= bound * (1 + 1e-6)
        assert weight.var() == pytest.approx(bound**2 / 3, rel=0.01)
    else:
        assert weight.std() == pytest.approx(math.sqrt(2 / 900), rel=0.01)


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_the_start_of_gelu_is_that_of_the_public_code_whatever_the_scale(scale):
    net = start_(fcn((300, 900), "gelu"), "gelu", scale)
    assert net[2].weight.detach().std() == pytest.approx(math.sqrt(2 / 300), rel=0.01)


def test_each_filter_of_a_convolution_counts_alone():
    layer = PatchConv1d(30, 50, 4, bias=False, filters=3)
    start_(nn.Sequential(layer), "relu")
    assert layer.weight.detach().std(dim=(1, 2, 3)).tolist() == pytest.approx([math.sqrt(2 / 200)] * 3, rel=0.04)


def test_scale_multiplies_one_draw_and_zero_leaves_the_weights():
    full, small = (build_student("multiChannelCNN", "tanh", scale=s, seed=7) for s in (1.0, 0.2))
    for a, b in zip(full.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(b, 0.2 * a)
    net = fcn((5,))
    before = [p.clone() for p in net.parameters()]
    start_(net, "relu", 0)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_a_seed_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_student("baselineCNN", "relu", seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_wrong_names_and_numbers():
    with pytest.raises(ValueError, match="unknown name 'fcn_7'; known are baselineCNN, splitFilterCNN"):
        build_student("fcn_7", "relu")
    with pytest.raises(ValueError, match="unknown name 'swish'; known are relu, sigmoid, tanh, gelu"):
        build_student("baselineCNN", "swish")
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        start_(fcn(()), "swish")
    with pytest.raises(ValueError, match="baseline_cnn: unknown activation 'swish'"):
        baseline_cnn("swish")
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale is"):
            build_student("baselineCNN", "relu", scale=scale)
    with pytest.raises(ValueError, match=r"widths is \[3, 0\]"):
        fcn((3, 0))
