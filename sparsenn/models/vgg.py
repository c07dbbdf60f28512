"""VGG with batch normalization for small images."""

from __future__ import annotations

from torch import nn

from sparsenn.models.lenet import check_sizes, kaiming_

_WIDTHS = (64, 128, 256, 512, 512)
_HIDDEN = 512


def vgg16(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Sequential:
    """VGG-16 for small images: 13 convolutions in five groups, a hidden layer of 512 neurons, a linear layer; Kaiming start.

    Every convolution is 3 × 3 with padding 1; batch normalization stands before every ReLU, a max pooling after every group. Of
    the three linear layers that gave the network its name two became one. Poolings round up, so that any image size is taken.

    Args:
        num_classes: width C of the output.
        in_channels: channels K of the images.
        image_size: height and width S of the images.

    Shape:
        Input (N, K, S, S), output (N, C), the logits.

    Raises:
        ValueError: if a size is below 1.

    Source:
        Simonyan and Zisserman 2014; Deep Weight Factorization (arXiv 2502.02496), Appendix G.2.

    Example:
        >>> from sparsenn.models import vgg16
        >>> sum(p.numel() for p in vgg16().parameters())
        14991946
    """
    return _vgg("vgg16", (2, 2, 3, 3, 3), num_classes, in_channels, image_size)


def vgg19(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Sequential:
    """VGG-19 for small images: as :func:`vgg16` with one more convolution in each of the last three groups.

    Args:
        num_classes: width C of the output.
        in_channels: channels K of the images.
        image_size: height and width S of the images.

    Shape:
        Input (N, K, S, S), output (N, C), the logits.

    Raises:
        ValueError: if a size is below 1.

    Source:
        Simonyan and Zisserman 2014; Deep Weight Factorization (arXiv 2502.02496), Appendix G.2.

    Example:
        >>> from sparsenn.models import vgg19
        >>> sum(p.numel() for p in vgg19().parameters())
        20304202
    """
    return _vgg("vgg19", (2, 2, 4, 4, 4), num_classes, in_channels, image_size)


def _vgg(name: str, convolutions: tuple[int, ...], num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    check_sizes(name, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    layers: list[nn.Module] = []
    width, side = in_channels, image_size
    for count, new_width in zip(convolutions, _WIDTHS, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(width, new_width, 3, padding=1), nn.BatchNorm2d(new_width), nn.ReLU()]
            width = new_width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        side = (side + 1) // 2
    layers += [nn.Flatten(), nn.Linear(width * side**2, _HIDDEN), nn.BatchNorm1d(_HIDDEN), nn.ReLU()]
    layers.append(nn.Linear(_HIDDEN, num_classes))
    return kaiming_(nn.Sequential(*layers))
