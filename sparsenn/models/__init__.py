"""The networks of the papers."""

from sparsenn.models.committee import feature_head, soft_committee
from sparsenn.models.lenet import lenet5, lenet_300_100
from sparsenn.models.registry import build, names
from sparsenn.models.resnet import resnet18, resnet34, wide_resnet16_8
from sparsenn.models.vgg import vgg16, vgg19

__all__ = [
    "build",
    "feature_head",
    "lenet5",
    "lenet_300_100",
    "names",
    "resnet18",
    "resnet34",
    "soft_committee",
    "vgg16",
    "vgg19",
    "wide_resnet16_8",
]
