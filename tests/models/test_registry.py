import pytest
import torch
from torch import fx, nn

from sparsenn import models

WEIGHTED = (nn.Linear, nn.Conv2d)


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 32, 7), (2, 13, 2)], ids=["mnist", "colour", "odd"])
def test_every_net_gives_one_logit_a_class(name, channels, size, classes):
    net = models.build(name, num_classes=classes, in_channels=channels, image_size=size)
    assert net(torch.zeros(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_takes_part_in_the_output(name):
    torch.manual_seed(0)
    net = models.build(name)
    net(torch.rand(8, 1, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", models.names())
def test_weights_start_with_variance_two_over_fan_in_and_biases_at_zero(name):
    torch.manual_seed(0)
    for layer in models.build(name).modules():
        if isinstance(layer, WEIGHTED):
            scaled = layer.weight.detach().flatten() * (layer.weight[0].numel() / 2) ** 0.5
            slack = 4 / scaled.numel() ** 0.5
            assert scaled.mean().abs() < slack
            assert scaled.square().mean() == pytest.approx(1, abs=1.5 * slack)
            assert layer.bias is None or layer.bias.count_nonzero() == 0


@pytest.mark.parametrize("name", models.names())
def test_every_net_can_be_traced(name):
    net = models.build(name, in_channels=3, image_size=16).eval()
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_a_seed_decides_the_weights():
    torch.manual_seed(3)
    first = models.build("lenet-5").state_dict()
    torch.manual_seed(3)
    second = models.lenet5().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown name 'lenet-7'; known are lenet-300-100, lenet-5, vgg-16"):
        models.build("lenet-7")


@pytest.mark.parametrize("size", ["num_classes", "in_channels", "image_size"])
@pytest.mark.parametrize("name", models.names())
def test_a_size_below_one_is_named(name, size):
    with pytest.raises(ValueError, match=f"{size} is 0; it takes 1 or more"):
        models.build(name, **{size: 0})
