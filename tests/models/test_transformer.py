import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.models import row_transformer
from sparsenn.models.transformer import EncoderBlock
from sparsenn.nn import RidgeBlock, SpectralLinear
from sparsenn.prune import compact


def in_torch(block: EncoderBlock) -> nn.TransformerEncoderLayer:
    """torch's own encoder layer with the same weights."""
    width, hidden = block.outer.in_features, block.neurons.inner.out_features
    layer = nn.TransformerEncoderLayer(
        width, block.heads, hidden, dropout=0.0, activation="relu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    ours = (block.inner, block.outer, block.before_attention, block.before_neurons, block.neurons.inner, block.neurons.outer)
    attention = layer.self_attn
    theirs = (attention, attention.out_proj, layer.norm1, layer.norm2, layer.linear1, layer.linear2)
    for own, other in zip(ours, theirs, strict=True):
        names = ("in_proj_weight", "in_proj_bias") if other is attention else ("weight", "bias")
        for source, name in zip(("weight", "bias"), names, strict=True):
            getattr(other, name).data.copy_(getattr(own, source))
    return layer


@torch.no_grad()
def generic(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.normal_()
    return model.double()


@pytest.mark.parametrize(("width", "heads", "hidden", "length"), [(8, 2, 16, 5), (6, 3, 1, 1), (4, 1, 7, 3)])
def test_a_block_is_torch_s_pre_norm_encoder_layer(width, heads, hidden, length):
    block = generic(EncoderBlock(width, heads, hidden))
    x = torch.randn(3, length, width, dtype=torch.float64)
    torch.testing.assert_close(block(x), in_torch(block)(x), rtol=1e-10, atol=1e-10)


def test_rows_are_the_tokens_with_all_their_channels():
    net = generic(row_transformer(3, in_channels=2, image_size=5, width=4))
    images = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    tokens = torch.stack([torch.cat([images[:, 0, i], images[:, 1, i]], dim=1) for i in range(5)], dim=1)
    stream = net.embed(tokens) + net.position
    for block in net.blocks:
        stream = in_torch(block)(stream)
    expected = net.head(net.norm(stream).mean(dim=1))
    torch.testing.assert_close(net(images), expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(net(images), net(images.flip(2)))  # positions are told apart


def test_number_of_parameters():
    width, hidden, side = 32, 128, 8
    block = 3 * width * width + 3 * width + width * width + width + 2 * width * hidden + hidden + width + 4 * width
    expected = side * width + width + side * width + 2 * block + 2 * width + 10 * width + 10
    assert sum(p.numel() for p in row_transformer(image_size=side).parameters()) == expected


def test_all_linear_layers_can_be_spectral_and_dead_neurons_of_ridge_blocks_go():
    net = generic(row_transformer(image_size=8, width=8, hidden=10)).eval()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        net.blocks[0].neurons.inner.weight[2:5] = 0
        net.blocks[1].neurons.outer.weight[:, 7] = 0
    before = net(x)
    small = compact(net, x[:1])
    assert [b.inner.out_features for b in small.modules() if isinstance(b, RidgeBlock)] == [7, 9]
    torch.testing.assert_close(small(x), before, rtol=1e-9, atol=1e-9)
    sparsenn.spectralize(net)
    assert sum(isinstance(layer, SpectralLinear) for layer in net.modules()) == 2 + 2 * 4
    torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "EncoderBlock: heads is 3; it takes a divisor of the width, 32"),
        ({"hidden": 0}, "EncoderBlock: hidden is 0; it takes 1 or more"),
        ({"depth": 0}, "row_transformer: depth is 0; it takes 1 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        row_transformer(**options)
