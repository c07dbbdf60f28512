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


def test_the_smallest_image_of_lenet5_is_12():
    assert models.lenet5(image_size=12)(torch.zeros(2, 1, 12, 12)).shape == (2, 10)
    with pytest.raises(ValueError, match="image_size is 11; it takes 12 or more"):
        models.lenet5(image_size=11)
