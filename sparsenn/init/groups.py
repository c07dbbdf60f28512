"""How the factors of a weight start where the weights of a group share all but one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsenn.ops.reference import DTYPES

MIN_GAIN = 0.1


@torch.no_grad()
def split_groups_(factors: Sequence[Tensor], weight: Tensor, dim: int = 0, *, min_gain: float = MIN_GAIN) -> None:
    r"""Split a weight into one factor of its shape and D − 1 numbers for each of its groups, the slices along a dimension.

    .. math:: \gamma_2 = \dots = \gamma_D = \max\big(\|w_G\|_2^{1/D}, g^{1/(D-1)}\big), \qquad
        u_G = \frac{w_G}{\gamma_2 \cdots \gamma_D}

    The product is the weight, zeros too, to one rounding of u. Groups whose norm is at least :math:`g^{D/(D-1)}` start
    balanced, :math:`\|u_G\| = \gamma_k`, where the penalty on the factors is least. A balanced group that is small would see
    next to nothing of its gradient, :math:`\|w_G\|^{1 - 1/D}` of it, and one of zeros nothing; below that norm u sees the
    share g, so that groups of zeros can learn. With g = 0 all groups are balanced, and those of zeros are lost.

    Unlike a single weight a balanced group can change all of its signs: u turns, and need not pass 0.

    Args:
        factors: D ≥ 1 tensors to be overwritten: the first of the weight's shape, the others of shape ``(weight.shape[dim],)``.
            With one, it becomes the weight.
        weight: The tensor to split, of one dimension or more; any strides, empty ones too.
        dim: The dimension that numbers the groups, counted from 0.
        min_gain: g in [0, 1].

    Raises:
        ValueError: for no factors; other shapes, dtypes or devices than said; a ``dim`` that the weight lacks; a ``min_gain``
            outside of [0, 1]; weights that hold NaN or infinity.

    Source: ours; at g = 0 the root initialization of Kolb et al. 2025, Definition 4, for groups.

    Example:
        >>> import torch, sparsenn
        >>> factors = [torch.empty(2, 2), torch.empty(2)]
        >>> sparsenn.init.split_groups_(factors, torch.tensor([[3.2, 2.4], [0.0, 0.0]]))
        >>> factors
        [tensor([[1.6000, 1.2000],
                [0.0000, 0.0000]]), tensor([2.0000, 0.1000])]
    """
    factors = _checked(factors, weight, dim, min_gain)
    depth = len(factors)
    if weight.is_meta:
        return
    if not bool(weight.isfinite().all()):
        raise ValueError("split_groups_: weight holds values that are not finite, so its groups have no norm")
    if depth == 1:
        factors[0].copy_(weight)
        return
    w = weight.double()
    size = _group_norms(w, dim).pow_(1 / depth).clamp_(min=min_gain ** (1 / (depth - 1)))
    gain = torch.ones_like(size)
    for factor in factors[1:]:
        gain *= factor.copy_(size).double()
    gain = gain.view([-1 if d == dim else 1 for d in range(w.dim())]) if w.numel() else w.new_ones(())
    factors[0].copy_(torch.where(gain == 0, 0.0, w / gain))


def _group_norms(w: Tensor, dim: int) -> Tensor:
    """The Euclidean norm of every slice, relative to the largest weight, so that no square overflows or vanishes."""
    others = [d for d in range(w.dim()) if d != dim]
    if not w.numel():
        return w.new_zeros(w.shape[dim])
    if not others:
        return w.abs()
    largest = w.abs().amax(others, keepdim=True)
    return torch.linalg.vector_norm(w / torch.where(largest == 0, 1.0, largest), dim=others) * largest.flatten()


def _checked(factors: Sequence[Tensor], weight: Tensor, dim: int, min_gain: float) -> list[Tensor]:
    factors = list(factors)
    if not factors:
        raise ValueError("split_groups_: factors must hold at least one tensor; got none")
    if weight.dim() == 0:
        raise ValueError("split_groups_: a weight without dimensions has no groups")
    if not isinstance(dim, int) or not 0 <= dim < weight.dim():
        raise ValueError(
            f"split_groups_: dim is {dim!r}; a weight of shape {tuple(weight.shape)} takes 0 to {weight.dim() - 1}"
        )
    if weight.dtype not in DTYPES:
        raise ValueError(f"split_groups_: weight is {weight.dtype}; it takes {', '.join(map(str, DTYPES))}")
    if not 0 <= min_gain <= 1:
        raise ValueError(f"split_groups_: min_gain must be in [0, 1]; got {min_gain}")
    wanted = [weight.shape, *[torch.Size([weight.shape[dim]])] * (len(factors) - 1)]
    for d, (factor, shape) in enumerate(zip(factors, wanted, strict=True)):
        if factor.shape != shape or factor.device != weight.device:
            raise ValueError(
                f"split_groups_: factors[{d}] has shape {tuple(factor.shape)} on {factor.device}; "
                f"it takes {tuple(shape)} on {weight.device}"
            )
        if factor.dtype not in DTYPES:
            raise ValueError(f"split_groups_: factors[{d}] is {factor.dtype}; it takes {', '.join(map(str, DTYPES))}")
    return factors
