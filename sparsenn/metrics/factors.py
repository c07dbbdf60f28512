"""How far factors are from a balanced factorization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsenn.init import stream
from sparsenn.ops.reference import misalignment_shares


@torch.no_grad()
def misalignment(factors: Sequence[Tensor]) -> Tensor:
    r"""What the factors' L2 penalty exceeds its minimum by, over all factors with the same product.

    .. math:: M(\omega) = \frac1D \sum_{d=1}^D \|\omega_d\|_2^2 - \Big\|\prod_d \omega_d\Big\|_{2/D}^{2/D} \ge 0

    It is 0 exactly where the D factors of every weight have the same magnitude, and grows by :math:`c^2` when all factors grow
    by c. Each weight's share is its arithmetic minus its geometric mean of :math:`\omega_d^2`, formed in float64 relative to
    the largest one, so that shares of balanced weights are exactly 0 and none is negative.

    Args:
        factors: D ≥ 1 tensors of one shape; any strides, 0-d and empty too. With one factor, M = 0.

    Returns:
        A 0-d float64 tensor on the factors' device; the same bits for any number of threads. Divide by the number of weights to
        compare layers.

    Raises:
        ValueError: for no factors, or factors of different shapes or devices.

    Source: Kolb et al. 2025, Section 3 (after Lemma 1); the normalization by the number of weights is that of Appendix F.4.

    Example:
        >>> import torch, sparsenn
        >>> round(sparsenn.metrics.misalignment([torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])]).item(), 6)
        2.0
    """
    factors = list(factors)
    if not factors:
        raise ValueError("misalignment: factors must hold at least one tensor; got none")
    like = factors[0]
    for d, factor in enumerate(factors):
        if factor.shape != like.shape or factor.device != like.device:
            raise ValueError(
                f"misalignment: factors[{d}] has shape {tuple(factor.shape)} on {factor.device}; "
                f"all take that of the first, {tuple(like.shape)} on {like.device}"
            )
    total = torch.zeros((), dtype=torch.float64, device=like.device)
    # A sum of less than 2^15 elements is not split over threads, so its bits do not depend on them.
    for piece in stream.pieces(like.shape, 1 << 14):
        total += misalignment_shares(torch.stack([factor[piece] for factor in factors]).double().abs_()).sum()
    return total
