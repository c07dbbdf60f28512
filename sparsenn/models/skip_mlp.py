"""The fully connected net with skips that nets of ridge blocks are compared with."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class SkipMLP(nn.Module):
    r"""A fully connected ReLU net whose later layers see the input, too.

    .. math:: z^{(1)} = A^{(1)} x - b^{(1)}, \qquad
        z^{(\ell)} = A^{(\ell)} \rho(z^{(\ell - 1)}) + S^{(\ell)} x - b^{(\ell)}, \qquad y = z^{(L + 1)}

    It is :class:`~sparsenn.nn.RidgeNet` of the same depth with full matrices in the place of the products
    :math:`W^{(\ell + 1)} V^{(\ell)}` between neurons, and without what the skips of later blocks add to those: paths from one
    hidden layer past the next. The paper does not say how its control skips.

    Args:
        in_features: d.
        out_features: D.
        depth: L ≥ 1, the number of hidden layers.
        width: K ≥ 1, neurons of each.
        skip: Whether there is S.

    Shape:
        Input (\*, d), output (\*, D).

    Raises:
        ValueError: for a size below 1.

    Source: Parhi, Wolf and Nowak 2021, Section 3 and its footnote 1.

    Example:
        >>> import torch, sparsenn
        >>> net = sparsenn.models.SkipMLP(4, 1)
        >>> net.layers[1].weight.shape
        torch.Size([1296, 1296])
    """

    def __init__(self, in_features: int, out_features: int, *, depth: int = 2, width: int = 1296, skip: bool = True) -> None:
        super().__init__()
        for name, value in {"in_features": in_features, "out_features": out_features, "depth": depth, "width": width}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"SkipMLP: {name} is {value!r}; it takes an integer >= 1")
        sizes = [in_features, *[width] * depth, out_features]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(sizes))
        self.skips = nn.ModuleList(nn.Linear(in_features, after, bias=False) for after in sizes[2:]) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """The net's y for every x."""
        z = self.layers[0](x)
        for index, layer in enumerate(self.layers[1:]):
            z = layer(torch.relu(z))
            if self.skips is not None:
                z = z + self.skips[index](x)
        return z
