"""Blocks of ridge functions with skips, the form that solutions of variational problems in RBV² spaces have."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsenn._numbers import whole
from sparsenn.nn.selection import check_module

HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity)


class RidgeBlock(nn.Module):
    r"""One layer of the deep representer theorem: K neurons and a skip between two narrow layers.

    .. math:: y = V \rho(W x - b) + C x + c_0

    The three affine maps are plain linear layers, so that optimizers, penalties and `sparsenn.prune.compact` meet nothing new:
    ``inner`` is W with the bias **−b**, ``outer`` is V with the bias :math:`c_0`, ``skip`` is C. Neuron k
    is the ridge function with the weights :math:`w_k`, row k of W, and :math:`v_k`, column k of V.

    Args:
        in_features: d, the width of the input, ≥ 1.
        width: K, the number of neurons, ≥ 0.
        out_features: D, the functional width, ≥ 1.
        activation: ρ, a module that acts element by element; None for ReLU. The norm, `balance_` and `normalize_` need one with
            :math:`\rho(a x) = a \rho(x)` for a > 0: ReLU, LeakyReLU, PReLU, Identity.
        skip: Whether there is C; None without.
        device: As for ``nn.Linear``.
        dtype: As for ``nn.Linear``.

    Shape:
        Input (\*, d), output (\*, D).

    Raises:
        ValueError: for a size out of range, and an activation that is no module.

    Source: Parhi, Wolf and Nowak 2021, Theorem 1.

    Example:
        >>> import torch, sparsenn
        >>> block = sparsenn.nn.RidgeBlock(4, 1296, 16)
        >>> block(torch.randn(81, 4)).shape
        torch.Size([81, 16])
    """

    skip: nn.Linear | None

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int,
        activation: nn.Module | None = None,
        skip: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(activation, nn.Module | None):
            raise ValueError(f"RidgeBlock: activation is {activation!r}; it takes a module, such as torch.nn.ReLU()")
        for name, value, least in (("in_features", in_features, 1), ("width", width, 0), ("out_features", out_features, 1)):
            if (size := whole(value)) is None or size < least:
                raise ValueError(f"RidgeBlock: {name} is {value!r}; it takes an integer >= {least}")
        self.inner = nn.Linear(in_features, width, device=device, dtype=dtype)
        self.activation = nn.ReLU() if activation is None else activation
        self.outer = nn.Linear(width, out_features, device=device, dtype=dtype)
        self.skip = nn.Linear(in_features, out_features, bias=False, device=device, dtype=dtype) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """The block's y for every x."""
        y = self.outer(self.activation(self.inner(x)))
        return y if self.skip is None else y + self.skip(x)

    @property
    def homogeneous(self) -> bool:
        """Whether the activation is known to be positively homogeneous."""
        return isinstance(self.activation, HOMOGENEOUS)

    @torch.no_grad()
    def neuron_norms(self) -> Tensor:
        r""":math:`\|v_k\|_1 \|w_k\|_2` for every neuron, (K,): its share of the function's norm; 0 for a dead one."""
        return (self._norms_of_v() * self._norms_of_w()).to(self.inner.weight.dtype)

    @torch.no_grad()
    def balance_(self) -> RidgeBlock:
        r"""Rescale every neuron to :math:`\|v_k\|_1 = \|w_k\|_2`, and clear what is dead. The function stays.

        :math:`(v, w, b) \to (a v, w / a, b / a)` with :math:`a^2 = \|w\|_2 / \|v\|_1` is where Eq 2 has its minimum along the
        rescalings. A neuron with v = 0 says nothing and loses its w and b; one with w = 0 says a constant, which goes to
        :math:`c_0`, and loses its v and b. `sparsenn.prune.compact` then takes them out.

        Raises:
            ValueError: for an activation that is not positively homogeneous, and where W or V is composed of other parameters
                (a factorized or spectral layer): collapse those first.

        Note:
            W and V must be this block's alone; `RidgeNet.balance_` looks.
        """
        _check_rescalable("RidgeBlock.balance_", self)
        self._clear_dead()
        v, w = self._norms_of_v(), self._norms_of_w()
        self._rescale_(torch.where(w == 0, 1.0, w.sqrt() / v.sqrt()))
        return self

    @torch.no_grad()
    def normalize_(self) -> RidgeBlock:
        r"""Rescale every neuron to :math:`\|w_k\|_2 = 1`, but for those with w = 0. The function stays.

        Raises:
            ValueError: as `balance_`.
        """
        _check_rescalable("RidgeBlock.normalize_", self)
        w = self._norms_of_w()
        self._rescale_(torch.where(w == 0, 1.0, w))
        return self

    # in float64: squares of float32 weights leave their range above 1e19 and below 1e-23

    def _norms_of_v(self) -> Tensor:
        return torch.linalg.vector_norm(self.outer.weight, ord=1, dim=0, dtype=torch.float64)

    def _norms_of_w(self) -> Tensor:
        return torch.linalg.vector_norm(self.inner.weight, dim=1, dtype=torch.float64)

    def _rescale_(self, a: Tensor) -> None:
        a = a.to(self.inner.weight.dtype)  # products of two dtypes would cost more than all the rest
        self.outer.weight.mul_(a)
        self.inner.weight.div_(a[:, None])
        self.inner.bias.div_(a)

    def _clear_dead(self) -> None:
        silent = (self.outer.weight == 0).all(0)
        constant = (self.inner.weight == 0).all(1) & ~silent
        if constant.any():
            said = self.activation(torch.where(constant, self.inner.bias, 0.0)[None])[0]  # PReLU: one slope each
            self.outer.bias.add_(self.outer.weight @ said)
            self.outer.weight.masked_fill_(constant, 0.0)
        dead = silent | constant
        self.inner.weight.masked_fill_(dead[:, None], 0.0)
        self.inner.bias.masked_fill_(dead, 0.0)


class RidgeNet(nn.Sequential):
    r"""A composition of :class:`RidgeBlock`\ s: the deep net of Theorem 1.

    .. math:: x^{(\ell)} = V^{(\ell)} \rho(W^{(\ell)} x^{(\ell - 1)} - b^{(\ell)}) + C^{(\ell)} x^{(\ell - 1)} + c_0^{(\ell)},
        \qquad \ell = 1, \dots, L

    Args:
        in_features: d₀.
        out_features: d_L.
        depth: L ≥ 1, the number of blocks.
        width: K, the neurons of each block.
        functional_width: d₁ … d_{L−1}, the width between blocks.
        activation: ρ, a callable that makes an activation module.
        skip: Whether blocks have C.
        device: As for ``nn.Linear``.
        dtype: As for ``nn.Linear``.

    Shape:
        Input (\*, d₀), output (\*, d_L).

    Raises:
        ValueError: for a size out of range, and an activation that is a module already.

    Source: Parhi, Wolf and Nowak 2021, Theorem 1; its experiments have L = 2, K = 1296 and d₁ = 16.

    Example:
        >>> import torch, sparsenn
        >>> net = sparsenn.nn.RidgeNet(4, 1)
        >>> [tuple(block.outer.weight.shape) for block in net]
        [(16, 1296), (1, 1296)]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        depth: int = 2,
        width: int = 1296,
        functional_width: int = 16,
        activation: type[nn.Module] = nn.ReLU,
        skip: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if (blocks := whole(depth)) is None or blocks < 1:
            raise ValueError(f"RidgeNet: depth is {depth!r}; it takes an integer >= 1")
        if isinstance(activation, nn.Module):
            raise ValueError(f"RidgeNet: activation is {activation!r}; it takes what makes one for each block: torch.nn.ReLU")
        sizes = [in_features, *[functional_width] * (blocks - 1), out_features]
        super().__init__(
            *(
                RidgeBlock(before, width, after, activation().to(device, dtype), skip, device=device, dtype=dtype)
                for before, after in itertools.pairwise(sizes)
            )
        )

    def balance_(self) -> RidgeNet:
        """`RidgeBlock.balance_` for every block.

        Raises:
            ValueError: as there, and where W or V of a block is used elsewhere too; no block is changed then.
        """
        check_scales("RidgeNet.balance_", self)
        for block in ridge_blocks(self):
            block.balance_()
        return self


def ridge_blocks(module: nn.Module) -> Iterator[RidgeBlock]:
    """Every block in a module, itself included, each once."""
    return (m for m in module.modules() if isinstance(m, RidgeBlock))


def found_blocks(caller: str, net: nn.Module) -> list[RidgeBlock]:
    """The blocks of a net, which must have some."""
    check_module(caller, net)
    blocks = list(ridge_blocks(net))
    if not blocks:
        raise ValueError(f"{caller}: {type(net).__name__} has no sparsenn.nn.RidgeBlock")
    return blocks


def check_plain(caller: str, block: RidgeBlock) -> None:
    """Refuse a block whose W or V is composed of other parameters: what is written into it would be lost."""
    for name, layer in (("inner", block.inner), ("outer", block.outer)):
        if not {"weight", "bias"} <= layer._parameters.keys():
            raise ValueError(f"{caller}: {name} is a {type(layer).__name__} that composes its weight; collapse the model first")


def check_scales(caller: str, net: nn.Module) -> None:
    """Refuse a net whose blocks can't be rescaled one by one without a change to its function."""
    rescaled = [(index, layer) for index, block in enumerate(ridge_blocks(net)) for layer in (block.inner, block.outer)]
    known = {id(layer) for _, layer in rescaled}
    users = Counter(
        id(p)
        for module in (*(layer for _, layer in rescaled), *(m for m in net.modules() if id(m) not in known))
        for _, p in module.named_parameters(recurse=False, remove_duplicate=False)
    )
    for block in ridge_blocks(net):
        _check_rescalable(caller, block)
    for index, layer in rescaled:
        if any(users[id(p)] > 1 for p in layer.parameters()):
            raise ValueError(
                f"{caller}: block {index} shares parameters with another layer, whose function would change with their scale"
            )


def _check_rescalable(caller: str, block: RidgeBlock) -> None:
    check_plain(caller, block)
    if not block.homogeneous:
        kind = type(block.activation).__name__
        raise ValueError(f"{caller}: {kind} is not positively homogeneous; it takes ReLU, LeakyReLU, PReLU, Identity")
