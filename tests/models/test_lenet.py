import pytest
import torch
from torch import nn

from sparsenn import models


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_paper_counts_266610_parameters_in_lenet_300_100():
    assert count(models.lenet_300_100()) == 266_610


def test_the_digits_net_is_64_300_100_10():
    widths = [
        (layer.in_features, layer.out_features) for layer in models.lenet_300_100(image_size=8) if isinstance(layer, nn.Linear)
    ]
    assert widths == [(64, 300), (300, 100), (100, 10)]


def test_lenet5_is_the_1998_net_and_two_batch_normalizations():
    net = models.lenet5()
    normalization = sum(count(layer) for layer in net if isinstance(layer, nn.BatchNorm2d))
    assert normalization == 2 * (6 + 16)
    assert count(net) - normalization == 61_706


def test_lenet5_normalizes_rectifies_and_averages_after_each_convolution():
    kinds = [type(layer) for layer in models.lenet5()]
    block = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d]
    assert kinds[:8] == block * 2


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


def test_a_seed_decides_the_weights():
    torch.manual_seed(3)
    first = models.build("lenet-5").state_dict()
    torch.manual_seed(3)
    second = models.lenet5().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", models.names())
def test_weights_start_with_variance_two_over_fan_in_and_biases_at_zero(name):
    torch.manual_seed(0)
    for layer in models.build(name):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            scaled = layer.weight.detach().flatten() * (layer.weight[0].numel() / 2) ** 0.5
            slack = 4 / scaled.numel() ** 0.5
            assert scaled.mean().abs() < slack
            assert scaled.square().mean() == pytest.approx(1, abs=1.5 * slack)
            assert layer.bias.count_nonzero() == 0


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown name 'lenet-7'; known are lenet-300-100, lenet-5"):
        models.build("lenet-7")


def test_the_smallest_image_of_lenet5_is_12():
    assert models.lenet5(image_size=12)(torch.zeros(2, 1, 12, 12)).shape == (2, 10)
    with pytest.raises(ValueError, match="image_size is 11; it takes 12 or more"):
        models.lenet5(image_size=11)


@pytest.mark.parametrize("size", ["num_classes", "in_channels", "image_size"])
@pytest.mark.parametrize("name", models.names())
def test_a_size_below_one_is_named(name, size):
    with pytest.raises(ValueError, match=f"{size} is 0; it takes 1 or more"):
        models.build(name, **{size: 0})
