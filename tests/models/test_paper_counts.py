"""The number of parameters of every network of the paper, counted layer by layer without building it from its own code."""

import itertools

import pytest
import torch

from sparsenn import models
from sparsenn.training.presets import PRESETS

CLASSES = {"cifar-10": 10, "cifar-100": 100, "tiny-imagenet": 200}
SIDE = {"cifar-10": 32, "cifar-100": 32, "tiny-imagenet": 64}
GREY = {"lenet-300-100": 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10, "lenet-5": 61_706 + 44}


def vgg(last: int, classes: int) -> int:
    """Convolutions with bias and batch normalization, `last` of them in each of the last three groups."""
    widths = [3, 64, 64, 128, 128, *[256] * last, *[512] * (2 * last)]
    convolutions = sum(9 * a * b + b + 2 * b for a, b in itertools.pairwise(widths))
    return convolutions + 512 * 512 + 512 + 2 * 512 + 512 * classes + classes


def resnet(blocks: tuple[int, ...], classes: int) -> int:
    """3 x 3 convolutions without bias, each with batch normalization; projections where the width doubles."""
    total, width = 9 * 3 * 64 + 2 * 64, 64
    for stage, count in enumerate(blocks):
        new = 64 * 2**stage
        total += 9 * width * new + 9 * new * new * (2 * count - 1) + 2 * new * 2 * count
        total += width * new + 2 * new if new != width else 0
        width = new
    return total + 512 * classes + classes


def wide_resnet(classes: int) -> int:
    """16, then twice two blocks of 128, 256 and 512, normalization before each convolution; projections without it."""
    total, width = 9 * 3 * 16, 16
    for new in (128, 256, 512):
        total += 9 * width * new + 9 * new * new * 3 + 2 * width + 2 * new * 3 + width * new
        width = new
    return total + 2 * 512 + 512 * classes + classes


COUNT = {
    "vgg-16": lambda classes: vgg(3, classes),
    "vgg-19": lambda classes: vgg(4, classes),
    "resnet-18": lambda classes: resnet((2, 2, 2, 2), classes),
    "resnet-34": lambda classes: resnet((3, 4, 6, 3), classes),
    "wide-resnet-16-8": wide_resnet,
}


@pytest.mark.parametrize(("dataset", "model"), [key for key in PRESETS if key[0] != "digits"])
def test_every_network_of_table_4_has_its_number_of_parameters(dataset, model):
    grey = dataset not in CLASSES
    classes, channels, side = (10, 1, 28) if grey else (CLASSES[dataset], 3, SIDE[dataset])
    with torch.device("meta"):
        net = models.build(model, num_classes=classes, in_channels=channels, image_size=side)
    expected = GREY[model] if grey else COUNT[model](classes)
    assert sum(p.numel() for p in net.parameters()) == expected
    assert net(torch.zeros(2, channels, side, side, device="meta")).shape == (2, classes)


def test_the_formulas_are_the_numbers_known_elsewhere():
    assert (GREY["lenet-300-100"], GREY["lenet-5"]) == (266_610, 61_750)
    assert COUNT["resnet-18"](10) == 11_173_962
    assert COUNT["resnet-18"](100) == 11_220_132
    assert COUNT["wide-resnet-16-8"](10) == 10_961_370
    assert COUNT["vgg-16"](10) == 14_714_688 + 2 * 4_224 + 512 * 512 + 512 + 2 * 512 + 5_130
