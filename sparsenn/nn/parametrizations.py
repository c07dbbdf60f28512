"""A weight as the elementwise product of D factors, as a parametrization of torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn import init
from sparsenn._numbers import whole
from sparsenn.ops import hadamard_product, spectral_weight

# name: dimensions that the weight may have, and which of them numbers the groups
GROUPS = {"rows": ((2,), 0), "columns": ((2,), 1), "filters": ((3, 4, 5), 0), "channels": ((3, 4, 5), 1)}
_GROUP_INITS = ("preserve", "root")


class HadamardProduct(nn.Module):
    r"""The parametrization of a weight by the elementwise product of D factors of its shape.

    .. math:: w = \omega_1 \odot \dots \odot \omega_D

    The penalty (λ/D) Σ_d ‖ω_d‖² has the same minima as λ‖w‖_{2/D}^{2/D}: smooth training in the factors, a sparse w.
    :func:`sparsenn.factorize` registers this on a whole model.

    The factors are the parameters ``parametrizations.<name>.original0`` to ``original{D-1}`` of the parametrized module. The
    product is computed anew at each access of the weight; inside ``torch.nn.utils.parametrize.cached()`` it is computed once,
    which helps where a module reads a weight several times in one forward pass (LSTM, attention, an RNN cell in a loop).
    Writing into the product (``module.weight.mul_(2)``) therefore changes nothing; assigning (``module.weight = tensor``)
    splits the tensor into new factors by ``factor_init``: ``"preserve"`` and ``"root"`` keep its values, the others its scale.

    Args:
        depth: D, the number of factors, an int ≥ 1. At 1 the weight is its only factor.
        factor_init: How a weight becomes factors, one of :data:`sparsenn.init.FACTOR_INITS`. ``"preserve"`` and ``"root"`` keep
            its values (``"preserve"`` but for a floor of 1e-4 on |w| at D ≥ 2, so that zeros can learn), the others draw the
            factors, and the weight is their product.
        generator: The source of the draws; torch's default generator where it is None.

    Shape:
        - Input: D tensors of one shape, dtype and device. Output: the same shape. Empty and 0-d tensors are fine.

    Raises:
        ValueError: for a depth that is not an int ≥ 1, or an unknown ``factor_init``; at registration and assignment, for a
            weight that the init refuses (see :func:`sparsenn.init.fill_`), such as one that holds NaN.

    Source: Kolb et al. 2025, Definition 2.

    Example:
        >>> import torch, sparsenn
        >>> from torch.nn.utils import parametrize
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = parametrize.register_parametrization(layer, "weight", sparsenn.nn.HadamardProduct(2, "root"))
        >>> layer.weight = torch.tensor([[4.0, -9.0]])
        >>> [factor.abs().tolist() for factor in layer.parameters()]
        [[[2.0, 3.0]], [[2.0, 3.0]]]
        >>> layer.weight.tolist()
        [[4.0, -9.0]]
    """

    def __init__(self, depth: int, factor_init: str = "preserve", generator: torch.Generator | None = None) -> None:
        super().__init__()
        depth = _checked_depth(depth)
        _check(factor_init)
        self.depth = depth
        self.factor_init = factor_init
        self.generator = generator

    def forward(self, *factors: Tensor) -> Tensor:
        """The product of the factors."""
        return hadamard_product(factors)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """D factors made from a weight by ``factor_init``, in its memory format."""
        factors = tuple(torch.empty_like(weight) for _ in range(self.depth))
        init.fill_(factors, weight, self.factor_init, generator=self.generator)
        return factors

    def extra_repr(self) -> str:
        """Depth and factor_init, as they are written in a call."""
        return f"depth={self.depth}, factor_init={self.factor_init!r}"


class GroupProduct(HadamardProduct):
    r"""The parametrization of a weight by a factor of its shape and D − 1 numbers for each row, column, filter or channel.

    .. math:: w_G = u_G \, \gamma_{2,G} \cdots \gamma_{D,G}

    The penalty (λ/D) (‖u‖² + Σ_k ‖γ_k‖²), the same L2 on all factors as for :class:`HadamardProduct`, has the same minima as
    :math:`\lambda \sum_G \|w_G\|_2^{2/D}`: at D = 2 the group lasso, :class:`sparsenn.penalties.GroupL1` with
    ``weighted=False``, above it a penalty that is not convex and spares the groups that stay. Whole groups come near 0,
    :func:`sparsenn.collapse` makes them 0, and :func:`sparsenn.prune.compact` takes them out.

    The factors are the parameters ``original0`` (u) to ``original{D-1}`` of the parametrization, to be trained by any
    optimizer with a weight decay of 2λ/D on them all; D − 1 numbers a group is all the memory that they cost. The γ are
    multiplied by ``hadamard_product``, and u by their product in one pass of the kernel that composes spectral weights; so is
    the backward pass, whose sums over groups take no pass of their own. For columns the two are plain PyTorch.

    Args:
        depth: D, the number of factors, an int ≥ 1. At 1 the weight is its only factor.
        groups: "rows" (a linear layer's outputs) or "columns" (its inputs) of a matrix; "filters" (dimension 0: a convolution's
            output channels) or "channels" (dimension 1: its input channels; a transposed convolution has them the other way
            round) of a weight with 3 to 5 dimensions.
        factor_init: ``"preserve"`` or ``"root"``: how a weight becomes factors, and both keep its values.
            ``"root"`` balances all groups, so that one of zeros stays 0; ``"preserve"`` all but the small ones, which then can
            learn (:func:`sparsenn.init.split_groups_`).

    Shape:
        - Input: u, and D − 1 vectors of one entry for each group, of one dtype and device. Output: u's shape. Empty tensors are
          fine. Half types are rounded twice at D ≥ 3.

    Raises:
        ValueError: for a depth that is not an int ≥ 1, unknown groups, or another ``factor_init``; at registration and
            assignment, for a weight that has no such groups or holds NaN or infinity.

    Source: Kolb et al. 2025 name structured sparsity as an open question; at D = 2 this is the smooth form of the group lasso
    that Hoff 2017 and Poon and Peyré 2023 use. Derivation: docs/math/deep_weight_factorization.md.

    Example:
        >>> import torch, sparsenn
        >>> from torch.nn.utils import parametrize
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> _ = parametrize.register_parametrization(layer, "weight", sparsenn.nn.GroupProduct(2, "rows"))
        >>> layer.weight = torch.tensor([[3.2, 2.4], [0.0, 9.0]])
        >>> [factor.shape for factor in layer.parameters()], layer.parametrizations.weight.original1
        ([torch.Size([2, 2]), torch.Size([2])], Parameter containing:
        tensor([2., 3.], requires_grad=True))
    """

    def __init__(self, depth: int, groups: str = "rows", factor_init: str = "preserve") -> None:
        super().__init__(depth, factor_init)
        if not isinstance(groups, str) or groups not in GROUPS:
            raise ValueError(f"groups is {groups!r}; it takes one of {', '.join(map(repr, GROUPS))}")
        if factor_init not in _GROUP_INITS:
            raise ValueError(f"factor_init is {factor_init!r}; factors of groups take 'preserve' or 'root'")
        self.groups = groups

    @property
    def dim(self) -> int:
        """The dimension of the weight that numbers the groups."""
        return GROUPS[self.groups][1]

    def forward(self, *factors: Tensor) -> Tensor:
        """The weight."""
        u, *scales = factors
        if not scales:
            return hadamard_product([u])
        gain = hadamard_product(scales)
        if self.groups == "columns":  # contiguous rows times a row: torch's own loops are faster than the kernel
            return u * gain
        return spectral_weight(u, None, -gain) if self.dim == 0 else spectral_weight(u, gain, None)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """D factors made from a weight by ``factor_init``, u in its memory format."""
        if weight.dim() not in GROUPS[self.groups][0]:
            takes = " or ".join(map(str, GROUPS[self.groups][0]))
            raise ValueError(f"weight has shape {tuple(weight.shape)}; groups={self.groups!r} takes {takes} dimensions")
        scales = (weight.new_empty(weight.shape[self.dim]) for _ in range(self.depth - 1))
        factors = (torch.empty_like(weight), *scales)
        init.split_groups_(factors, weight, self.dim, min_gain=0.0 if self.factor_init == "root" else init.MIN_GAIN)
        return factors

    def extra_repr(self) -> str:
        """Depth, groups and factor_init, as they are written in a call."""
        return f"depth={self.depth}, groups={self.groups!r}, factor_init={self.factor_init!r}"


def _checked_depth(depth: int) -> int:
    number = whole(depth)
    if number is None or number < 1:
        raise ValueError(f"depth is {depth!r}; it takes an int >= 1")
    return number


def _check(factor_init: str) -> None:
    if factor_init not in init.FACTOR_INITS:
        known = ", ".join(repr(name) for name in init.FACTOR_INITS)
        raise ValueError(f"factor_init is {factor_init!r}; it takes one of {known}")


def factors_of(parametrization: parametrize.ParametrizationList) -> tuple[Tensor, ...]:
    """The tensors that a parametrization is computed from; for a :class:`HadamardProduct` the D factors, in order."""
    if parametrization.is_tensor:
        return (parametrization.original,)
    return tuple(getattr(parametrization, f"original{i}") for i in range(parametrization.ntensors))


def factors_by_row(parametrization: parametrize.ParametrizationList) -> tuple[Tensor, ...]:
    """Those of the factors whose first dimension is the weight's: not the ones that its columns or channels share."""
    factors, product = factors_of(parametrization), parametrization[0]
    return factors[:1] if isinstance(product, GroupProduct) and product.dim != 0 else factors


def parametrizations_of(module: nn.Module) -> Iterator[tuple[str, parametrize.ParametrizationList]]:
    """The parametrized tensors of a module itself, not of its children, in the order of their registration."""
    if parametrize.is_parametrized(module):
        yield from module.parametrizations.items()  # type: ignore[operator, union-attr]


def hadamard_parametrizations_of(module: nn.Module) -> Iterator[tuple[str, parametrize.ParametrizationList]]:
    """As :func:`parametrizations_of`, only those that begin with a :class:`HadamardProduct`."""
    for name, parametrization in parametrizations_of(module):
        if isinstance(parametrization[0], HadamardProduct):
            yield name, parametrization


@torch.no_grad()
def split_(parametrization: parametrize.ParametrizationList, weight: Tensor) -> None:
    """Fill the factors from a weight in place: they stay the same parameters in the same memory."""
    values = parametrization[0].right_inverse(weight)  # type: ignore[operator]
    for factor, value in zip(factors_of(parametrization), values, strict=True):
        factor.copy_(value)


def own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    torch hangs the properties of parametrized tensors on a class made for the module, and a deepcopy shares that class: adding
    a property for the one module, or removing it, would break the other.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))


def adapt_class(module: nn.Module) -> None:
    """Mend, in the class that torch made for this module, what its own class takes for granted of a stored parameter."""
    cls: Any = type(module)
    base = cls.__bases__[0]
    if isinstance(module, nn.RNNBase) and not hasattr(base, "__deepcopy__"):
        cls.__deepcopy__ = _deepcopy_rnn
    if isinstance(module, nn.ParameterList) and base.__getitem__ is nn.ParameterList.__getitem__:
        cls.__getitem__ = _parameter_list_item


def _deepcopy_rnn(self: nn.RNNBase, memo: dict[int, Any]) -> nn.RNNBase:
    # A forward leaves products in _flat_weights, inside an autograd graph, and those have no deepcopy; the next makes its own.
    replica = self.__new__(type(self))
    memo[id(self)] = replica
    state = {**self.__dict__, "_flat_weights": [None] * len(self._flat_weights)}
    replica.__dict__ = copy.deepcopy(state, memo)
    return replica


def _parameter_list_item(self: nn.ParameterList, index: Any) -> Any:
    # A slice of torch's list wraps the products into new parameters, and no gradient would reach the factors.
    if isinstance(index, slice):
        return [self[i] for i in range(len(self))[index]]
    return nn.ParameterList.__getitem__(self, index)
