"""Layers of torch whose weight and bias are products of factors."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn.common_types import _size_1_t, _size_2_t
from torch.nn.utils import parametrize

from sparsenn.nn.parametrizations import HadamardProduct, factors_of, hadamard_parametrizations_of, split_

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class FactorizedLayer(nn.Module):
    """What the factorized layers share; comes before the plain layer among the bases."""

    plain: ClassVar[type[nn.Module]]
    depth: int
    factor_init: str

    def _factorize(self, product: HadamardProduct) -> None:
        self.depth, self.factor_init = product.depth, product.factor_init
        for name, parameter in list(self._parameters.items()):
            if parameter is not None:
                parametrize.register_parametrization(self, name, HadamardProduct(self.depth, self.factor_init))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw anew: weight and bias as the plain layer does, then their factors, in place."""
        if not parametrize.is_parametrized(self):  # the constructor of the plain layer draws before there are factors
            super().reset_parameters()  # type: ignore[misc]
            return
        plain = self._plain_twin()
        plain.reset_parameters()  # type: ignore[operator]
        for name, parametrization in hadamard_parametrizations_of(self):
            split_(parametrization, plain.get_parameter(name))

    def _plain_twin(self) -> nn.Module:
        """A plain layer with this one's settings and fresh tensors where this one has products."""
        twin = self.plain.__new__(self.plain)
        nn.Module.__init__(twin)
        twin.__dict__.update({name: value for name, value in self.__dict__.items() if name not in twin.__dict__})
        twin._parameters.update(self._parameters)
        for name, parametrization in hadamard_parametrizations_of(self):
            twin.register_parameter(name, nn.Parameter(torch.empty_like(factors_of(parametrization)[0])))
        return twin

    def become_plain(self) -> None:
        """Turn into the plain layer, once no factors are left; a user's subclass may hold more and keeps its class."""
        if type(self).__dict__.get("plain") is not None and not parametrize.is_parametrized(self):
            del self.depth, self.factor_init
            self.__class__ = self.plain  # type: ignore[assignment]

    def extra_repr(self) -> str:
        """The plain layer's settings, then depth and factor_init."""
        if not parametrize.is_parametrized(self):
            return super().extra_repr()
        return f"{super().extra_repr()}, depth={self.depth}, factor_init={self.factor_init!r}"


class HadamardLinear(FactorizedLayer, nn.Linear):
    r"""``torch.nn.Linear`` whose weight and bias are products of D factors each.

    .. math:: y = x W^\top + b, \qquad W = \omega_1 \odot \dots \odot \omega_D, \quad b = \beta_1 \odot \dots \odot \beta_D

    ``layer.weight`` and ``layer.bias`` are the products, computed at each access; the parameters are the factors
    (see :class:`HadamardProduct`). :func:`sparsenn.collapse` makes it a plain ``nn.Linear``.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        bias: Whether there is a bias.
        depth: D, the number of factors, an int ≥ 1.
        factor_init: How the plain layer's initial values become factors, one of :data:`sparsenn.init.FACTOR_INITS`.
        device: Where the factors live. On ``"meta"`` they have no values until ``to_empty`` and ``reset_parameters``.
        dtype: float64, float32, bfloat16 or float16.

    Shape:
        - Input: (\*, in_features). Output: (\*, out_features).

    Raises:
        ValueError: for a depth that is not an int ≥ 1, or an unknown ``factor_init``.

    Source: Kolb et al. 2025, Definition 2.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.HadamardLinear(3, 2, depth=4)
        >>> layer(torch.randn(5, 3)).shape
        torch.Size([5, 2])
        >>> len(list(layer.parameters()))
        8
        >>> sparsenn.collapse(layer)
        Linear(in_features=3, out_features=2, bias=True)
    """

    plain = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        depth: int = 2,
        factor_init: str = "preserve",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        product = HadamardProduct(depth, factor_init)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._factorize(product)


class HadamardConv1d(FactorizedLayer, nn.Conv1d):
    r"""``torch.nn.Conv1d`` whose weight and bias are products of D factors each.

    .. math:: y = W \star x + b, \qquad W = \omega_1 \odot \dots \odot \omega_D, \quad b = \beta_1 \odot \dots \odot \beta_D

    ``layer.weight`` and ``layer.bias`` are the products, computed at each access; the parameters are the factors
    (see :class:`HadamardProduct`). :func:`sparsenn.collapse` makes it a plain ``nn.Conv1d``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel.
        stride: As in ``nn.Conv1d``, and so are the five that follow.
        padding: Zeros added on both sides, or ``"valid"``, ``"same"``.
        dilation: Spacing between the points of the kernel.
        groups: Number of blocked connections.
        bias: Whether there is a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        depth: D, the number of factors, an int ≥ 1.
        factor_init: How the plain layer's initial values become factors, one of :data:`sparsenn.init.FACTOR_INITS`.
        device: Where the factors live. On ``"meta"`` they have no values until ``to_empty`` and ``reset_parameters``.
        dtype: float64, float32, bfloat16 or float16.

    Shape:
        - Input: (N, in_channels, L) or (in_channels, L). Output: with out_channels, and the length of ``nn.Conv1d``.

    Raises:
        ValueError: for a depth that is not an int ≥ 1, an unknown ``factor_init``, or what ``nn.Conv1d`` refuses.

    Source: Kolb et al. 2025, Definition 2.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.HadamardConv1d(1, 4, 3, stride=3, depth=3)
        >>> layer(torch.randn(2, 1, 12)).shape
        torch.Size([2, 4, 4])
    """

    plain = nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_1_t,
        stride: _size_1_t = 1,
        padding: str | _size_1_t = 0,
        dilation: _size_1_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        depth: int = 2,
        factor_init: str = "preserve",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        product = HadamardProduct(depth, factor_init)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self._factorize(product)


class HadamardConv2d(FactorizedLayer, nn.Conv2d):
    r"""``torch.nn.Conv2d`` whose weight and bias are products of D factors each.

    .. math:: y = W \star x + b, \qquad W = \omega_1 \odot \dots \odot \omega_D, \quad b = \beta_1 \odot \dots \odot \beta_D

    ``layer.weight`` and ``layer.bias`` are the products, computed at each access; the parameters are the factors
    (see :class:`HadamardProduct`), in the memory format of the weight (``channels_last`` stays). :func:`sparsenn.collapse`
    makes it a plain ``nn.Conv2d``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel.
        stride: As in ``nn.Conv2d``, and so are the five that follow.
        padding: Zeros added on all sides, or ``"valid"``, ``"same"``.
        dilation: Spacing between the points of the kernel.
        groups: Number of blocked connections.
        bias: Whether there is a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        depth: D, the number of factors, an int ≥ 1.
        factor_init: How the plain layer's initial values become factors, one of :data:`sparsenn.init.FACTOR_INITS`.
        device: Where the factors live. On ``"meta"`` they have no values until ``to_empty`` and ``reset_parameters``.
        dtype: float64, float32, bfloat16 or float16.

    Shape:
        - Input: (N, in_channels, H, W) or (in_channels, H, W). Output: with out_channels, and the size of ``nn.Conv2d``.

    Raises:
        ValueError: for a depth that is not an int ≥ 1, an unknown ``factor_init``, or what ``nn.Conv2d`` refuses.

    Source: Kolb et al. 2025, Definition 2.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.HadamardConv2d(3, 8, 3, padding=1)
        >>> layer(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    plain = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: str | _size_2_t = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        depth: int = 2,
        factor_init: str = "preserve",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        product = HadamardProduct(depth, factor_init)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self._factorize(product)
