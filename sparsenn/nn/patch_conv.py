"""A one-dimensional convolution over patches that do not overlap."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class PatchConv1d(nn.Module):
    r"""``torch.nn.Conv1d`` whose stride is its kernel size, with one filter for all patches or several that alternate.

    .. math:: y_{n o p} = b_{f o} + \sum_{c, j} w_{f o c j}\, x_{n c (pk + j)}, \qquad f = p \bmod \mathrm{filters}

    The input is cut into patches of k, and patch p meets filter p mod ``filters``: a reshape and one product. With one filter
    ``weight[0]`` and ``bias[0]`` are those of ``nn.Conv1d(in_channels, out_channels, k, stride=k)``. Weights start as there.

    Args:
        in_channels: C, channels of the input, 1 or more.
        out_channels: O, channels of the output, 1 or more.
        kernel_size: k, the length of a patch, 1 or more.
        bias: Whether there is a bias.
        filters: F, how many filters alternate, 1 or more.
        device: Where the parameters live.
        dtype: Their floating-point type.

    Shape:
        - Input: (N, C, L) or (C, L), with L ≥ k; the last L mod k values are not read.
        - Output: (N, O, ⌊L / k⌋) or (O, ⌊L / k⌋).
        - ``weight``: (F, O, C, k). ``bias``: (F, O), or None.

    Raises:
        ValueError: if a size is below 1; in a call, for an input of another shape.

    Source: Schulz and Poggio, L1-regularization: The path to sparsity, Section 3.2 (the convolutions of all its networks).

    Example:
        >>> import torch
        >>> from sparsenn.nn import PatchConv1d
        >>> layer = PatchConv1d(1, 1, 2, bias=False, filters=2)
        >>> with torch.no_grad():
        ...     layer.weight.copy_(torch.tensor([1.0, 1.0, 1.0, -1.0]).view(2, 1, 1, 2))
        Parameter containing:
        ...
        >>> layer(torch.arange(8.0).view(1, 1, 8)).tolist()
        [[[1.0, -1.0, 9.0, -1.0]]]
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        *,
        filters: int = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size, "filters": filters}
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"PatchConv1d: {name} is {size!r}; it takes an int, 1 or more")
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size, self.filters = sizes.values()
        settings = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(filters, out_channels, in_channels, kernel_size, **settings))
        self.register_parameter("bias", nn.Parameter(torch.empty(filters, out_channels, **settings)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, in place, each filter as ``nn.Conv1d`` draws its own."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of ``x``."""
        if x.dim() not in (2, 3) or x.shape[-2] != self.in_channels or x.shape[-1] < self.kernel_size:
            raise ValueError(
                f"PatchConv1d: the input has shape {tuple(x.shape)}; "
                f"it takes (N, {self.in_channels}, L) or ({self.in_channels}, L) with L of {self.kernel_size} or more"
            )
        count = x.shape[-1] // self.kernel_size
        patches = x[..., : count * self.kernel_size].unflatten(-1, (count, self.kernel_size))
        if self.filters == 1:
            y = torch.einsum("...cpj,ocj->...op", patches, self.weight[0])
        else:
            which = torch.arange(count, device=x.device) % self.filters
            y = torch.einsum("...cpj,pocj->...op", patches, self.weight.index_select(0, which))
        if self.bias is None:
            return y
        return y + (self.bias.t() if self.filters == 1 else self.bias.index_select(0, which).t())

    def extra_repr(self) -> str:
        """The settings."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"
        return text if self.filters == 1 else f"{text}, filters={self.filters}"
