"""A small transformer that reads an image as the sequence of its rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsenn.models.lenet import check_sizes, kaiming_
from sparsenn.nn.ridge import RidgeBlock

_POSITION_STD = 0.02


class EncoderBlock(nn.Module):
    r"""Pre-norm self-attention, then ReLU neurons that act on every position alone, each beside a skip.

    .. math:: h = x + O \, \mathrm{attention}(A \, \mathrm{LN}(x)), \qquad y = h + V \rho(W \, \mathrm{LN}(h) - b) + c_0

    The second half is a :class:`~sparsenn.nn.RidgeBlock` whose skip is the residual stream instead of a matrix C. The maps to
    queries, keys and values are one ``nn.Linear``, ``inner``, and the one from the heads another, ``outer``: all weights but
    those of the normalization belong to plain linear layers, so :func:`sparsenn.spectralize` reaches attention too.

    Args:
        width: E ≥ 1, that of the residual stream.
        heads: H ≥ 1, a divisor of E.
        hidden: K ≥ 1, neurons.

    Shape:
        Input and output (N, S, E) for any length S.

    Raises:
        ValueError: for a size below 1, or heads that do not divide the width.

    Source: Vaswani et al. 2017, with normalization before each half as in Xiong et al. 2020.

    Example:
        >>> import torch
        >>> from sparsenn.models.transformer import EncoderBlock
        >>> EncoderBlock(8, 2, 16)(torch.randn(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        check_sizes("EncoderBlock", width=width, heads=heads, hidden=hidden)
        if width % heads:
            raise ValueError(f"EncoderBlock: heads is {heads}; it takes a divisor of the width, {width}")
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 3 * width)
        self.outer = nn.Linear(width, width)
        self.before_neurons = nn.LayerNorm(width)
        self.neurons = RidgeBlock(width, hidden, width, skip=False)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after both halves."""
        queries, keys, values = self.inner(self.before_attention(x)).chunk(3, -1)
        read = functional.scaled_dot_product_attention(self._split(queries), self._split(keys), self._split(values))
        x = x + self.outer(read.transpose(1, 2).flatten(2))
        return x + self.neurons(self.before_neurons(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class RowTransformer(nn.Module):
    """What :func:`row_transformer` makes."""

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, width: int, depth: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(in_channels * image_size, width)
        self.position = nn.Parameter(torch.empty(image_size, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        kaiming_(self)
        nn.init.normal_(self.position, std=_POSITION_STD)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        rows = images.transpose(1, 2).flatten(2)  # (N, S, K * S)
        return self.head(self.norm(self.blocks(self.embed(rows) + self.position)).mean(1))


def row_transformer(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    *,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    hidden: int = 128,
) -> RowTransformer:
    r"""A pre-norm transformer encoder whose tokens are the rows of the image.

    Row i, of all channels, is embedded linearly and gets a learned position; ``depth`` :class:`EncoderBlock`, a last layer
    normalization, the mean over the rows, a linear layer to the logits. No dropout.

    Args:
        num_classes: width C of the output.
        in_channels: channels K of the images.
        image_size: height and width S of the images.
        width: E, that of the residual stream.
        depth: number of blocks.
        heads: of each attention, a divisor of E.
        hidden: neurons of each block.

    Shape:
        Input (N, K, S, S), output (N, C), the logits.

    Raises:
        ValueError: if a size is below 1, or ``heads`` does not divide ``width``.

    Source:
        Vaswani et al. 2017; rows as tokens, sizes and start are choices. Linear layers start as those of the LeNets (variance
        2 / fan_in, biases 0).

    Example:
        >>> from sparsenn.models import row_transformer
        >>> sum(p.numel() for p in row_transformer(image_size=8).parameters())
        26346
    """
    check_sizes("row_transformer", num_classes=num_classes, in_channels=in_channels, image_size=image_size, depth=depth)
    return RowTransformer(num_classes, in_channels, image_size, width, depth, heads, hidden)
