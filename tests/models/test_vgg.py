import pytest
import torch
from torch import nn

from sparsenn import models

# Convolutions with biases; two numbers a channel of batch normalization; 512 x 512 + 512; 512 x 10 + 10.
CONVOLUTIONS = {"vgg-16": 14_714_688, "vgg-19": 20_024_384}
CHANNELS = {"vgg-16": 4_224 + 512, "vgg-19": 5_504 + 512}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_known_numbers_of_parameters(name):
    net = models.build(name, in_channels=3, image_size=32)
    by_kind = dict.fromkeys((nn.Conv2d, nn.Linear), 0)
    rest = 0
    for layer in net:
        numel = sum(p.numel() for p in layer.parameters())
        if type(layer) in by_kind:
            by_kind[type(layer)] += numel
        else:
            rest += numel
    assert by_kind == {nn.Conv2d: CONVOLUTIONS[name], nn.Linear: 512 * 512 + 512 + 5130}
    assert rest == 2 * CHANNELS[name]


@pytest.mark.parametrize(("name", "convolutions"), [("vgg-16", 13), ("vgg-19", 16)])
def test_a_normalization_stands_before_every_relu_and_a_pooling_after_every_group(name, convolutions):
    kinds = [type(layer) for layer in models.build(name)]
    assert kinds.count(nn.Conv2d) == convolutions
    assert kinds.count(nn.MaxPool2d) == 5
    for i, kind in enumerate(kinds):
        if kind is nn.ReLU:
            assert kinds[i - 1] in (nn.BatchNorm2d, nn.BatchNorm1d)


@pytest.mark.parametrize(("size", "features"), [(32, 512), (64, 2048), (28, 512), (1, 512), (33, 2048)])
def test_poolings_round_up(size, features):
    net = models.vgg16(image_size=size, in_channels=1)
    hidden = next(layer for layer in net if isinstance(layer, nn.Linear))
    assert hidden.in_features == features
    assert net.eval()(torch.zeros(1, 1, size, size)).shape == (1, 10)
