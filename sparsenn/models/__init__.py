"""The networks of the papers."""

from sparsenn.models.lenet import lenet5, lenet_300_100
from sparsenn.models.registry import build, names
from sparsenn.models.resnet import resnet18, resnet34, wide_resnet16_8
from sparsenn.models.skip_mlp import SkipMLP
from sparsenn.models.vgg import vgg16, vgg19

__all__ = [
    "SkipMLP",
    "build",
    "lenet5",
    "lenet_300_100",
    "names",
    "resnet18",
    "resnet34",
    "vgg16",
    "vgg19",
    "wide_resnet16_8",
]
