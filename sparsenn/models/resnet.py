"""Residual networks for small images, and with the stem of ImageNet."""

from __future__ import annotations

from torch import Tensor, nn

from sparsenn.models.lenet import check_sizes, kaiming_

STEMS = ("small", "imagenet")
_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    r"""Two 3 × 3 convolutions and a shortcut: :math:`y = \rho(F(x) + S(x))`.

    S is the identity, or a 1 × 1 convolution with batch normalization where the stride or the width changes.

    Args:
        in_channels: width of the input.
        out_channels: width of both convolutions.
        stride: of the first convolution, and of the shortcut.

    Shape:
        Input (N, in_channels, H, W), output (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉).

    Source:
        He et al. 2016, Figure 2 and Section 3.3 (shortcut B).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        branch = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(branch)) + self.downsample(x))


class ResNet(nn.Module):
    """A stem, four stages of :class:`BasicBlock` with widths 64, 128, 256 and 512, global average pooling, a linear layer.

    Modules have the names of torchvision's networks. Made by :func:`resnet18` and :func:`resnet34`.

    Args:
        blocks: number of blocks of each of the four stages.
        num_classes: width C of the output.
        in_channels: channels K of the images.
        stem: ``"small"``: a 3 × 3 convolution; ``"imagenet"``: 7 × 7 with stride 2 and a max pooling.

    Shape:
        Input (N, K, S, S), output (N, C), the logits.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int, stem: str) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = nn.Conv2d(
            in_channels, _WIDTHS[0], 3 if small else 7, 1 if small else 2, padding=1 if small else 3, bias=False
        )
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(blocks[0], _WIDTHS[0], _WIDTHS[0], 1)
        self.layer2 = _stage(blocks[1], _WIDTHS[0], _WIDTHS[1], 2)
        self.layer3 = _stage(blocks[2], _WIDTHS[1], _WIDTHS[2], 2)
        self.layer4 = _stage(blocks[3], _WIDTHS[2], _WIDTHS[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(_WIDTHS[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(count: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(count - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)


def resnet18(num_classes: int = 10, in_channels: int = 3, image_size: int = 32, *, stem: str = "small") -> ResNet:
    """ResNet-18, Kaiming start: a stem, four stages of two blocks, global average pooling, one linear layer.

    Args:
        num_classes: width C of the output.
        in_channels: channels K of the images.
        image_size: height and width S of the images; the network is the same for all.
        stem: ``"small"`` for images as small as CIFAR's, a 3 × 3 convolution and no pooling; ``"imagenet"`` for large ones, a
            7 × 7 convolution with stride 2 and a max pooling.

    Shape:
        Input (N, K, S, S), output (N, C), the logits. Global pooling takes any S ≥ 1.

    Raises:
        ValueError: if a size is below 1, or for an unknown stem.

    Source:
        He et al. 2016; the small stem as in Deep Weight Factorization (arXiv 2502.02496), Appendix G.2.

    Example:
        >>> from sparsenn.models import resnet18
        >>> sum(p.numel() for p in resnet18().parameters())
        11173962
    """
    return _resnet("resnet18", (2, 2, 2, 2), num_classes, in_channels, image_size, stem)


def resnet34(num_classes: int = 10, in_channels: int = 3, image_size: int = 32, *, stem: str = "small") -> ResNet:
    """ResNet-34, Kaiming start: as :func:`resnet18` with 3, 4, 6 and 3 blocks.

    Args:
        num_classes: width C of the output.
        in_channels: channels K of the images.
        image_size: height and width S of the images; the network is the same for all.
        stem: ``"small"`` or ``"imagenet"``, see :func:`resnet18`.

    Shape:
        Input (N, K, S, S), output (N, C), the logits. Global pooling takes any S ≥ 1.

    Raises:
        ValueError: if a size is below 1, or for an unknown stem.

    Source:
        He et al. 2016; the small stem as in Deep Weight Factorization (arXiv 2502.02496), Appendix G.2.

    Example:
        >>> from sparsenn.models import resnet34
        >>> sum(p.numel() for p in resnet34().parameters())
        21282122
    """
    return _resnet("resnet34", (3, 4, 6, 3), num_classes, in_channels, image_size, stem)


def _resnet(
    name: str, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int, image_size: int, stem: str
) -> ResNet:
    check_sizes(name, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if stem not in STEMS:
        raise ValueError(f"{name}: stem is {stem!r}; it takes {' or '.join(map(repr, STEMS))}")
    return kaiming_(ResNet(blocks, num_classes, in_channels, stem))


class PreactivationBlock(nn.Module):
    r"""Normalize, rectify, convolve, twice: :math:`y = F(\rho(x)) + S(x)`.

    S is the identity, or a 1 × 1 convolution of the rectified input where the stride or the width changes.

    Args:
        in_channels: width of the input.
        out_channels: width of both convolutions.
        stride: of the first convolution, and of the shortcut.

    Shape:
        Input (N, in_channels, H, W), output (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉).

    Source:
        Zagoruyko and Komodakis 2016, Figure 1 (basic, B(3, 3)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        rectified = self.relu(self.bn1(x))
        branch = self.conv2(self.relu(self.bn2(self.conv1(rectified))))
        return branch + (x if self.shortcut is None else self.shortcut(rectified))


class WideResNet(nn.Module):
    """A 3 × 3 convolution, three stages of :class:`PreactivationBlock`, normalization, global average pooling, a linear layer.

    Made by :func:`wide_resnet16_8`.

    Args:
        depth: number of convolutions on the longest path, and the linear layer: 6n + 4 for n blocks a stage.
        widen: the stages have widths 16, 32 and 64 times this.
        num_classes: width C of the output.
        in_channels: channels K of the images.

    Shape:
        Input (N, K, S, S), output (N, C), the logits.
    """

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        width, stages = 16, []
        for stage in range(3):
            new_width = 16 * 2**stage * widen
            blocks = []
            for block in range((depth - 4) // 6):
                blocks.append(PreactivationBlock(width, new_width, 2 if stage > 0 and block == 0 else 1))
                width = new_width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.relu(self.bn(self.stages(self.conv1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def wide_resnet16_8(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> WideResNet:
    """WRN-16-8, Kaiming start: three stages of two blocks with widths 128, 256 and 512, without dropout.

    Args:
        num_classes: width C of the output.
        in_channels: channels K of the images.
        image_size: height and width S of the images; the network is the same for all.

    Shape:
        Input (N, K, S, S), output (N, C), the logits. Global pooling takes any S ≥ 1.

    Raises:
        ValueError: if a size is below 1.

    Source:
        Zagoruyko and Komodakis 2016, Table 1; used in Deep Weight Factorization (arXiv 2502.02496), Appendix G.2.

    Example:
        >>> from sparsenn.models import wide_resnet16_8
        >>> sum(p.numel() for p in wide_resnet16_8().parameters())
        10961370
    """
    check_sizes("wide_resnet16_8", num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return kaiming_(WideResNet(16, 8, num_classes, in_channels))
