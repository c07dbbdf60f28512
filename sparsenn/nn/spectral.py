"""Layers whose weights are given by the eigenvectors and eigenvalues of the graph between two layers of neurons."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.common_types import _size_1_t, _size_2_t

from sparsenn.ops import spectral_linear, spectral_weight
from sparsenn.ops.reference import DTYPES

Init = float | Callable[[Tensor], Any]
SPECTRUM = ("phi", "lambda_in", "lambda_out")


class SpectralLayer(nn.Module):
    """What the spectral layers share: the parameters ``phi``, ``lambda_in`` and ``lambda_out``, and ``weight`` made of them.

    A layer is the plain layer of torch (``plain``) without its weight. Subclasses set ``plain`` and compute.
    """

    plain: type[nn.Module]
    phi: Tensor
    lambda_in: Tensor | None
    lambda_out: Tensor | None

    def adopt(
        self,
        plain: nn.Module,
        train_lambda_in: bool = False,
        train_lambda_out: bool = True,
        train_phi: bool = True,
        lambda_in_init: Init = 0.0,
        lambda_out_init: Init = 1.0,
        phi_init: Init = nn.init.xavier_uniform_,
    ) -> None:
        """Take over a plain layer, which may be this one; its weight becomes φ, and the eigenvalues have no values yet."""
        name = type(self).__name__
        _check_inits(name, lambda_in_init=lambda_in_init, lambda_out_init=lambda_out_init, phi_init=phi_init)
        if not (train_lambda_in or train_lambda_out or callable(lambda_in_init)) and lambda_in_init == lambda_out_init:
            raise ValueError(
                f"{name}: lambda_in and lambda_out are both {lambda_in_init} and untrained, so that the weight would stay 0; "
                f"train one of them or give one another init"
            )
        absent_in = not train_lambda_in and _is_zero(lambda_in_init)
        absent_out = not train_lambda_out and _is_zero(lambda_out_init)
        state = dict(plain.__dict__)
        parameters = dict(state.pop("_parameters"))
        weight, bias = parameters.pop("weight"), parameters.pop("bias")
        if weight.dtype not in DTYPES:
            raise ValueError(f"{name}: dtype is {weight.dtype}; it takes float64, float32, bfloat16 or float16")
        nn.Module.__init__(self)
        self.__dict__.update(state)
        self.lambda_in_init, self.lambda_out_init, self.phi_init = lambda_in_init, lambda_out_init, phi_init
        self.phi = nn.Parameter(weight.detach(), requires_grad=train_phi)
        for argument, absent, size, train in (
            ("lambda_in", absent_in, weight.shape[1], train_lambda_in),
            ("lambda_out", absent_out, weight.shape[0], train_lambda_out),
        ):
            value = None if absent else nn.Parameter(weight.detach().new_empty(size), requires_grad=train)
            self.register_parameter(argument, value)
        self.register_parameter("bias", bias)
        self._parameters.update(parameters)

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with, composed at each access; writing into it changes nothing."""
        return spectral_weight(self.phi, self.lambda_in, self.lambda_out)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew: φ, λ_in and λ_out by their inits, the bias as in the plain layer."""
        for name, init in (("phi", self.phi_init), ("lambda_in", self.lambda_in_init), ("lambda_out", self.lambda_out_init)):
            value = getattr(self, name)
            if value is not None and value.numel():
                _fill(value, init)
        bias = self._parameters["bias"]
        if bias is not None:
            fan_in = math.prod(self.phi.shape[1:])
            bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
            nn.init.uniform_(bias, -bound, bound)

    def become_plain(self, weight: Tensor) -> None:
        """Turn into the plain layer with a weight in the place of the spectrum; a user's subclass keeps its class."""
        trained = any(p is not None and p.requires_grad for p in map(self._parameters.get, SPECTRUM))
        others = {name: p for name, p in self._parameters.items() if name not in SPECTRUM}
        self._parameters.clear()
        del self.lambda_in_init, self.lambda_out_init, self.phi_init
        self.__class__ = self.plain  # type: ignore[assignment]
        self.register_parameter("weight", nn.Parameter(weight.detach(), requires_grad=trained))
        self._parameters.update(others)

    def extra_repr(self) -> str:
        """The plain layer's settings, then what is trained."""
        flags = (f"train_{name}={p is not None and p.requires_grad}" for name, p in self._spectrum())
        return ", ".join([super().extra_repr(), *flags])

    def _spectrum(self) -> list[tuple[str, Tensor | None]]:
        return [("lambda_in", self.lambda_in), ("lambda_out", self.lambda_out), ("phi", self.phi)]


def _check_inits(layer: str, **inits: Any) -> None:
    for argument, init in inits.items():
        if not (isinstance(init, Real) or callable(init)):
            raise ValueError(f"{layer}: {argument} is {init!r}; it takes a number or a function that fills a tensor in place")


def _is_zero(init: Init) -> bool:
    return not callable(init) and init == 0


def _fill(value: Tensor, init: Init) -> None:
    if callable(init):
        init(value)
    else:
        value.fill_(init)


class SpectralLinear(SpectralLayer, nn.Linear):  # type: ignore[override]
    r"""``torch.nn.Linear`` by the eigenvectors and eigenvalues of the graph between its inputs and outputs.

    .. math:: z_o = \sum_i (\lambda^{in}_i - \lambda^{out}_o)\, \varphi_{oi}\, x_i + b_o

    With the defaults λ_in = 0 is not trained and left out, λ_out starts at 1 and φ by Glorot's uniform draw, as in the paper:
    the initial weight is −φ. A small |λ_out| then switches a whole neuron off, so that an L2 penalty on λ_out and φ finds
    those which are not needed. :func:`sparsenn.spectralize` gives an existing net this form, :func:`sparsenn.collapse` takes
    it away.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        bias: Whether there is a bias.
        train_lambda_in: Whether λ_in is trained. Where it is neither trained nor started away from 0 it is left out: None.
        train_lambda_out: Whether λ_out is trained; likewise.
        train_phi: Whether φ is trained.
        lambda_in_init: What λ_in starts at: a number, or a function that fills a tensor in place.
        lambda_out_init: What λ_out starts at.
        phi_init: What φ starts at.
        device: Where the parameters live. On ``"meta"`` they have no values until ``to_empty`` and ``reset_parameters``.
        dtype: float64, float32, bfloat16 or float16.

    Attributes:
        phi: φ, (out_features, in_features).
        lambda_in: (in_features,), or None.
        lambda_out: (out_features,), or None.
        weight: :math:`(\lambda^{in}_i - \lambda^{out}_o)\varphi_{oi}`, composed at each access.

    Shape:
        - Input: (\*, in_features). Output: (\*, out_features).

    Raises:
        ValueError: where both eigenvalues are one number and untrained (the weight would stay 0), for an init that is neither a
            number nor a function, and for another dtype.

    Source: Giambagli et al. 2023, Equations 4 to 6 and "Formulation of the algorithm".

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.SpectralLinear(3, 2)
        >>> layer(torch.randn(5, 3)).shape
        torch.Size([5, 2])
        >>> torch.equal(layer.weight, -layer.phi)
        True
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
        train_lambda_in: bool = False,
        train_lambda_out: bool = True,
        train_phi: bool = True,
        lambda_in_init: Init = 0.0,
        lambda_out_init: Init = 1.0,
        phi_init: Init = nn.init.xavier_uniform_,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        plain = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.adopt(plain, train_lambda_in, train_lambda_out, train_phi, lambda_in_init, lambda_out_init, phi_init)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """The product, by :func:`sparsenn.ops.spectral_linear`."""
        return spectral_linear(input, self.phi, self.lambda_in, self.lambda_out, self.bias)


class _SpectralConv(SpectralLayer):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """The convolution with the composed weight."""
        return self._conv_forward(input, self.weight, self.bias)  # type: ignore[operator]


class SpectralConv1d(_SpectralConv, nn.Conv1d):  # type: ignore[override]
    r"""Not the Fourier layer of that name: ``torch.nn.Conv1d`` with a weight of eigenvectors and eigenvalues.

    .. math:: y = W \star x + b, \qquad W_{oik} = (\lambda^{in}_i - \lambda^{out}_o)\, \varphi_{oik}

    A convolution is a linear layer whose matrix repeats its filters; φ repeats them, and λ has one value for each channel, so
    that |λ_out| is the relevance of a filter. The paper's case of one channel is the special case of this one.

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
        train_lambda_in: As in :class:`SpectralLinear`, and so are the five that follow.
        train_lambda_out: Whether λ_out is trained.
        train_phi: Whether φ is trained.
        lambda_in_init: What λ_in starts at.
        lambda_out_init: What λ_out starts at.
        phi_init: What φ starts at.
        device: Where the parameters live.
        dtype: float64, float32, bfloat16 or float16.

    Attributes:
        phi: φ, (out_channels, in_channels / groups, kernel_size).
        lambda_in: (in_channels / groups,), shared by the groups, or None.
        lambda_out: (out_channels,), or None.
        weight: The composed weight, of φ's shape.

    Shape:
        - Input: (N, in_channels, L) or (in_channels, L). Output: with out_channels, and the length of ``nn.Conv1d``.

    Raises:
        ValueError: as :class:`SpectralLinear`, and for what ``nn.Conv1d`` refuses.

    Source: Giambagli et al. 2023, Appendix B.2.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.SpectralConv1d(1, 4, 3, stride=3)
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
        padding_mode: Any = "zeros",
        *,
        train_lambda_in: bool = False,
        train_lambda_out: bool = True,
        train_phi: bool = True,
        lambda_in_init: Init = 0.0,
        lambda_out_init: Init = 1.0,
        phi_init: Init = nn.init.xavier_uniform_,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        plain = nn.Conv1d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.adopt(plain, train_lambda_in, train_lambda_out, train_phi, lambda_in_init, lambda_out_init, phi_init)
        self.reset_parameters()


class SpectralConv2d(_SpectralConv, nn.Conv2d):  # type: ignore[override]
    r"""Not the Fourier layer of that name: ``torch.nn.Conv2d`` with a weight of eigenvectors and eigenvalues.

    .. math:: y = W \star x + b, \qquad W_{oikl} = (\lambda^{in}_i - \lambda^{out}_o)\, \varphi_{oikl}

    A convolution is a linear layer whose matrix repeats its filters; φ repeats them, and λ has one value for each channel, so
    that |λ_out| is the relevance of a filter. The paper's case of one channel is the special case of this one.

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
        train_lambda_in: As in :class:`SpectralLinear`, and so are the five that follow.
        train_lambda_out: Whether λ_out is trained.
        train_phi: Whether φ is trained.
        lambda_in_init: What λ_in starts at.
        lambda_out_init: What λ_out starts at.
        phi_init: What φ starts at.
        device: Where the parameters live.
        dtype: float64, float32, bfloat16 or float16.

    Attributes:
        phi: φ, (out_channels, in_channels / groups, \*kernel_size).
        lambda_in: (in_channels / groups,), shared by the groups, or None.
        lambda_out: (out_channels,), or None.
        weight: The composed weight, of φ's shape and memory format.

    Shape:
        - Input: (N, in_channels, H, W) or (in_channels, H, W). Output: with out_channels, and the size of ``nn.Conv2d``.

    Raises:
        ValueError: as :class:`SpectralLinear`, and for what ``nn.Conv2d`` refuses.

    Source: Giambagli et al. 2023, Appendix B.2.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.SpectralConv2d(3, 8, 3, padding=1)
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
        padding_mode: Any = "zeros",
        *,
        train_lambda_in: bool = False,
        train_lambda_out: bool = True,
        train_phi: bool = True,
        lambda_in_init: Init = 0.0,
        lambda_out_init: Init = 1.0,
        phi_init: Init = nn.init.xavier_uniform_,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        plain = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.adopt(plain, train_lambda_in, train_lambda_out, train_phi, lambda_in_init, lambda_out_init, phi_init)
        self.reset_parameters()


class SpectralGate(nn.Module):
    r"""An eigenvalue for each channel, behind any layer.

    .. math:: y_{n c \dots} = \lambda_c\, x_{n c \dots}

    This is a spectral layer with λ_in = 0 where the layer before has no bias (with one, the gate scales the bias too), for nets
    whose layers are to stay as they are. λ has one value per channel along ``dim``, in convolutions as in linear layers.

    Args:
        num_features: Channels: the size of the input along ``dim``.
        dim: The dimension of the channels. -1 fits linear layers with any number of leading dimensions.
        init: What λ starts at: a number, or a function that fills a tensor in place.
        device: Where λ lives.
        dtype: A floating dtype.

    Attributes:
        lambda_out: λ, (num_features,).

    Shape:
        - Input: any with num_features along ``dim``. Output: the same.

    Raises:
        ValueError: for an ``init`` that is neither a number nor a function; for an input without the dimension ``dim``, or of
            another size there.

    Source: Giambagli et al. 2023, Equation 2.

    Example:
        >>> import torch, sparsenn
        >>> gate = sparsenn.nn.SpectralGate(3, init=2.0)
        >>> gate(torch.ones(1, 3, 2, 2))[0, :, 0, 0]
        tensor([2., 2., 2.], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self, num_features: int, dim: int = 1, *, init: Init = 1.0, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        _check_inits("SpectralGate", init=init)
        self.num_features, self.dim, self.init = num_features, dim, init
        self.lambda_out = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew by ``init``."""
        _fill(self.lambda_out, self.init)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """The gated input."""
        if not -input.dim() <= self.dim < input.dim() or input.shape[self.dim] != self.num_features:
            raise ValueError(
                f"SpectralGate: input has shape {tuple(input.shape)}; it takes {self.num_features} channels along "
                f"dimension {self.dim}"
            )
        behind = input.dim() - 1 - self.dim % input.dim()
        return input * self.lambda_out.view(-1, *(1,) * behind)

    def extra_repr(self) -> str:
        """The arguments, as they are written in a call."""
        return f"{self.num_features}, dim={self.dim}"
