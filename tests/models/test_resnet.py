import pytest
import torch
from torch import nn

from sparsenn import models
from sparsenn.models.resnet import BasicBlock, PreactivationBlock


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("net", "numel"),
    [
        (models.resnet18(), 11_173_962),
        (models.resnet34(), 21_282_122),
        (models.resnet18(1000, stem="imagenet"), 11_689_512),  # torchvision's figures for these two
        (models.resnet34(1000, stem="imagenet"), 21_797_672),
        (models.wide_resnet16_8(), 10_961_370),
    ],
    ids=["18", "34", "18-imagenet", "34-imagenet", "wide"],
)
def test_the_known_numbers_of_parameters(net, numel):
    assert count(net) == numel


@pytest.mark.parametrize(
    ("net", "layers"),
    [(models.resnet18(), 18), (models.resnet34(), 34), (models.wide_resnet16_8(), 14)],
    ids=["18", "34", "wide"],  # WRN-16 counts the 1 x 1 convolutions of two of its three shortcuts
)
def test_the_number_in_the_name_counts_the_layers_on_the_longest_path(net, layers):
    sizes = [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert sum(size != (1, 1) for size in sizes) + 1 == layers


def sizes_of(net: nn.Module, stages: list[nn.Module], x: torch.Tensor) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    hooks = [stage.register_forward_hook(lambda _m, _x, y: shapes.append(tuple(y.shape[1:]))) for stage in stages]
    net.eval()(x)
    for hook in hooks:
        hook.remove()
    return shapes


def test_a_small_image_keeps_its_size_until_the_second_stage():
    net = models.resnet18()
    stages = [net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4]
    assert sizes_of(net, stages, torch.rand(1, 3, 32, 32)) == [
        (64, 32, 32),
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]


def test_the_stem_of_imagenet_divides_the_size_by_four():
    net = models.resnet18(stem="imagenet")
    assert sizes_of(net, [net.conv1, net.maxpool], torch.rand(1, 3, 64, 64)) == [(64, 32, 32), (64, 16, 16)]


def test_the_wide_net_has_widths_128_256_512():
    net = models.wide_resnet16_8()
    expected = [(128, 32, 32), (256, 16, 16), (512, 8, 8)]
    assert sizes_of(net, list(net.stages), torch.rand(1, 3, 32, 32)) == expected


def test_a_block_without_its_branch_is_its_shortcut():
    x = torch.randn(2, 4, 6, 6)
    basic, narrow = BasicBlock(4, 4, 1).eval(), BasicBlock(4, 8, 2).eval()
    wide, same = PreactivationBlock(4, 8, 2).eval(), PreactivationBlock(4, 4, 1).eval()
    for branch in (basic.bn2.weight, narrow.bn2.weight, wide.conv2.weight, same.conv2.weight):
        nn.init.zeros_(branch)
    assert torch.equal(basic(x), x.relu())
    assert torch.equal(narrow(x), narrow.downsample(x).relu())
    assert torch.equal(same(x), x)
    assert torch.equal(wide(x), wide.shortcut(wide.bn1(x).relu()))


def test_an_unknown_stem_is_named():
    with pytest.raises(ValueError, match="resnet34: stem is 'large'; it takes 'small' or 'imagenet'"):
        models.resnet34(stem="large")
