"""Networks by the names that the command line uses."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from sparsenn.models.lenet import lenet5, lenet_300_100
from sparsenn.models.resnet import resnet18, resnet34, wide_resnet16_8
from sparsenn.models.transformer import row_transformer
from sparsenn.models.vgg import vgg16, vgg19

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet5,
    "vgg-16": vgg16,
    "vgg-19": vgg19,
    "resnet-18": resnet18,
    "resnet-34": resnet34,
    "wide-resnet-16-8": wide_resnet16_8,
    "row-transformer": row_transformer,
}


def names() -> tuple[str, ...]:
    """The names that :func:`build` knows.

    Example:
        >>> import sparsenn
        >>> sparsenn.models.names()[:3]
        ('lenet-300-100', 'lenet-5', 'vgg-16')
    """
    return tuple(_BUILDERS)


def build(name: str, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """A freshly initialised network by its name; PyTorch's global generator draws the weights.

    Args:
        name: one of :func:`names`.
        num_classes: width of the output.
        in_channels: channels of the images.
        image_size: height and width of the images.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), or a size that the network does not take.

    Example:
        >>> import sparsenn
        >>> net = sparsenn.models.build("lenet-300-100", image_size=8)
        >>> net[1].weight.shape
        torch.Size([300, 64])
    """
    if name not in _BUILDERS:
        raise ValueError(f"model: unknown name {name!r}; known are {', '.join(names())}")
    return _BUILDERS[name](num_classes=num_classes, in_channels=in_channels, image_size=image_size)
