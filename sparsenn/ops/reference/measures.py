"""What a step on factors leaves of weights and factors."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsenn.ops.reference.products import accumulator

MEASURES = 4  # how many numbers a step says of each weight


def measure(row: Tensor, weight: Tensor, factors: Sequence[Tensor], threshold: float) -> None:
    """Fill the row of one weight: kept weights, the sums of w^2 and of (1/D) sum_d w_d^2, and the misalignment."""
    magnitudes = torch.stack([factor.double().abs() for factor in factors])
    row[0] = (accumulator(weight).abs() > threshold).sum()
    row[1] = weight.double().square().sum()
    row[2] = torch.stack([own.square().sum() for own in magnitudes]).sum() / len(factors)
    row[3] = misalignment_shares(magnitudes).sum()


def misalignment_shares(magnitudes: Tensor) -> Tensor:
    """The arithmetic minus the geometric mean of the squares along the first dimension (Kolb et al. 2025, Section 3).

    In float64 and relative to the largest, so that equal ones have exactly 0 and no share is negative.
    """
    largest = magnitudes.amax(0)
    squares = (magnitudes / torch.where(largest == 0, 1.0, largest)).square_()
    depth = len(squares)
    # Sums over factors one after the other: the order within a reduction by torch depends on place and threads.
    geometric_mean = functools.reduce(torch.add, squares.log()).div_(depth).exp_()
    arithmetic_mean = functools.reduce(torch.add, squares) / depth
    return (arithmetic_mean - geometric_mean).clamp_(min=0).mul_(largest).mul_(largest)
