"""Products of factors and their gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALF)  # of every operator


def accumulator(x: Tensor) -> Tensor:
    """A half tensor as float32, any other as it is."""
    return x.float() if x.dtype in HALF else x


def unrounded_product(factors: Sequence[Tensor]) -> Tensor:
    """The product in the dtype of the factors as they are."""
    return functools.reduce(torch.mul, factors)


def leave_one_out(factors: Sequence[Tensor]) -> list[Tensor]:
    """prod_{k != d} factors[k] for every d, as prefix times suffix: exact where factors are 0, unlike product / factor."""
    depth = len(factors)
    one = torch.ones_like(factors[0])
    prefix, suffix = [one], [one]
    for d in range(depth - 1):
        prefix.append(prefix[-1] * factors[d])
        suffix.append(suffix[-1] * factors[depth - 1 - d])
    return [p * s for p, s in zip(prefix, reversed(suffix), strict=True)]


def product(factors: Sequence[Tensor]) -> Tensor:
    """The definition: w = w_1 * ... * w_D (Kolb et al. 2025, Definition 2)."""
    return unrounded_product([accumulator(factor) for factor in factors]).to(factors[0].dtype)


def gradients(grad: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """The chain rule of the product: grads[d] = grad * prod_{k != d} factors[k]."""
    others = leave_one_out([accumulator(factor) for factor in factors])
    return [(accumulator(grad) * other).to(grad.dtype) for other in others]


def hadamard(factors: Sequence[Tensor]) -> Tensor:
    """`product` as an operator: a new tensor in the first factor's layout."""
    return torch.empty_like(factors[0]).copy_(product(factors))


def hadamard_out(factors: Sequence[Tensor], out: Tensor) -> None:
    """`product`, into a given tensor."""
    out.copy_(product(factors))


def hadamard_backward(grad: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """`gradients` as an operator: new tensors in the factors' layouts."""
    values = gradients(grad, factors)
    return [torch.empty_like(factor).copy_(value) for factor, value in zip(factors, values, strict=True)]


def hadamard_backward_out(grad: Tensor, factors: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """`gradients`, into given tensors."""
    for out, value in zip(grads, gradients(grad, factors), strict=True):
        out.copy_(value)
