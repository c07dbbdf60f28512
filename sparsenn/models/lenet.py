"""The two LeNets of the sparsity literature."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

_Net = TypeVar("_Net", bound=nn.Module)
_SMALLEST_LENET5 = 12


def lenet_300_100(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """The fully connected LeNet: flatten, then widths 300, 100 and ``num_classes`` with ReLU between them, Kaiming start.

    Args:
        num_classes: width C of the output.
        in_channels: channels K of the images.
        image_size: height and width S of the images.

    Shape:
        Input (N, K, S, S), output (N, C), the logits.

    Raises:
        ValueError: if a size is below 1.

    Source:
        Deep Weight Factorization (arXiv 2502.02496), Appendix G.2. 266,610 parameters on 28 × 28 images.

    Example:
        >>> from sparsenn.models import lenet_300_100
        >>> sum(p.numel() for p in lenet_300_100().parameters())
        266610
    """
    check_sizes("lenet_300_100", num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )
    return kaiming_(net)


def lenet5(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """LeNet-5 with batch normalization, ReLU and average pooling after each of its two 5 × 5 convolutions.

    The first convolution pads by 2, as the 1998 net did by drawing its 28 × 28 digits on 32 × 32 paper: a feature map of
    16 × 5 × 5 meets the layers of 120, 84 and ``num_classes`` neurons.

    Args:
        num_classes: width C of the output.
        in_channels: channels K of the images.
        image_size: height and width S of the images, 12 or more.

    Shape:
        Input (N, K, S, S), output (N, C), the logits.

    Raises:
        ValueError: if a size is below 1, or the images are too small for two convolutions and two poolings.

    Source:
        LeCun et al. 1998; batch normalization and average pooling as in Deep Weight Factorization (arXiv 2502.02496),
        Appendix G.2. 61,706 parameters on 28 × 28 images, and 44 of batch normalization.

    Example:
        >>> from sparsenn.models import lenet5
        >>> sum(p.numel() for p in lenet5().parameters())
        61750
    """
    check_sizes("lenet5", num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if image_size < _SMALLEST_LENET5:
        raise ValueError(
            f"lenet5: image_size is {image_size}; it takes {_SMALLEST_LENET5} or more (two convolutions, two poolings); "
            "lenet_300_100 takes any size"
        )
    side = (image_size // 2 - 4) // 2
    net = nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5, padding=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side**2, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
    return kaiming_(net)


def kaiming_(net: _Net) -> _Net:
    r"""Draw every weight of a ReLU network anew, in place, and set every bias to 0.

    .. math:: w \sim N(0, 2 / \mathrm{fan\_in}), \qquad b = 0

    The start of the paper's networks. It is wider than PyTorch's own for linear layers, whose variance is 1 / (3 fan_in), and a
    factorized net that starts wide loses less accuracy on its way to few weights. Normalization layers are left alone.

    Source:
        He et al. 2015; "standard Kaiming initialization" in Deep Weight Factorization (arXiv 2502.02496), Table 4.

    Example:
        >>> import torch
        >>> from sparsenn.models.lenet import kaiming_
        >>> layer = kaiming_(torch.nn.Linear(10_000, 50))
        >>> round(layer.weight.var().item() * 10_000, 1), layer.bias.abs().max().item()
        (2.0, 0.0)
    """
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def check_sizes(model: str, **sizes: int) -> None:
    """Refuse a size below 1 by its name."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{model}: {name} is {size}; it takes 1 or more")
