"""Spectral layers, and the norm that ridge networks are penalised by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsenn.ops.reference.products import accumulator


def composed_weight(phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None) -> Tensor:
    """The definition: w_oi = (lambda_in_i - lambda_out_o) phi_oi (Giambagli et al. 2023, Equation 4), unrounded.

    phi is (out, in) or, for a convolution, (out, in, *kernel). An absent eigenvalue is 0.
    """
    ones = (1,) * (phi.dim() - 2)
    if lambda_out is None:
        assert lambda_in is not None
        return accumulator(lambda_in).view(1, -1, *ones) * accumulator(phi)
    scale = -accumulator(lambda_out).view(-1, 1, *ones)
    if lambda_in is not None:
        scale = accumulator(lambda_in).view(1, -1, *ones) + scale
    return scale * accumulator(phi)


def composed_linear(x: Tensor, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None, bias: Tensor | None) -> Tensor:
    """The definition: z = x w^T + bias with the composed weight (Equation 5), rounded once."""
    z = torch.matmul(accumulator(x), composed_weight(phi, lambda_in, lambda_out).mT)
    return (z if bias is None else z + accumulator(bias)).to(x.dtype)


def composed_weight_gradients(
    grad: Tensor, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The chain rule of `composed_weight`: gradients of phi, lambda_in, lambda_out; None for an absent eigenvalue."""
    grad = accumulator(grad)
    pull = grad * accumulator(phi)
    kernel = tuple(range(2, phi.dim()))
    d_in = pull.sum((0, *kernel)).to(phi.dtype) if lambda_in is not None else None
    d_out = -pull.sum((1, *kernel)).to(phi.dtype) if lambda_out is not None else None
    return composed_weight(grad, lambda_in, lambda_out).to(phi.dtype), d_in, d_out


def composed_linear_gradients(
    grad: Tensor, x: Tensor, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """The chain rule of `composed_linear`: gradients of phi, lambda_in, lambda_out, x and bias."""
    wide, count = accumulator(grad), math.prod(grad.shape[:-1])
    rows = wide.reshape(count, phi.shape[0])
    through_weight = rows.mT @ accumulator(x).reshape(count, phi.shape[1])
    d_phi, d_in, d_out = composed_weight_gradients(through_weight, phi.to(through_weight), lambda_in, lambda_out)
    d_x = torch.matmul(wide, composed_weight(phi, lambda_in, lambda_out))
    cast = (None if d is None else d.to(phi.dtype) for d in (d_phi, d_in, d_out, d_x, rows.sum(0)))
    return tuple(cast)  # type: ignore[return-value]


def _only(wanted: int, gradients: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if g is None or not wanted >> k & 1 else g.contiguous().clone() for k, g in enumerate(gradients)]


def spectral_weight(phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None) -> Tensor:
    """`composed_weight` as an operator: a new tensor in phi's layout."""
    return torch.empty_like(phi).copy_(composed_weight(phi, lambda_in, lambda_out))


def spectral_weight_backward(
    grad: Tensor, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`composed_weight_gradients` as an operator: that of phi in phi's layout."""
    d_phi, d_in, d_out = _only(wanted, composed_weight_gradients(grad, phi, lambda_in, lambda_out), phi)
    return torch.empty_like(phi).copy_(d_phi) if wanted & 1 else d_phi, d_in, d_out


def spectral_weight_backward_(
    grad: Tensor,
    phi: Tensor,
    lambda_in: Tensor | None,
    lambda_out: Tensor | None,
    d_lambda_in: Tensor | None,
    d_lambda_out: Tensor | None,
) -> None:
    """`composed_weight_gradients` in place: that of phi replaces that of the weight."""
    d_phi, d_in, d_out = composed_weight_gradients(grad, phi, lambda_in, lambda_out)
    grad.copy_(d_phi)
    for place, value in ((d_lambda_in, d_in), (d_lambda_out, d_out)):
        if place is not None and value is not None:
            place.copy_(value)


def spectral_linear(x: Tensor, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None, bias: Tensor | None) -> Tensor:
    """`composed_linear` as an operator."""
    return composed_linear(x, phi, lambda_in, lambda_out, bias).contiguous()


def spectral_linear_backward(
    grad: Tensor, x: Tensor, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None, wanted: int
) -> tuple[Tensor, ...]:
    """`composed_linear_gradients` as an operator: contiguous tensors."""
    return tuple(_only(wanted, composed_linear_gradients(grad, x, phi, lambda_in, lambda_out), phi))


def summed_norm(outers: Sequence[Tensor], inners: Sequence[Tensor], skips: Sequence[Tensor]) -> Tensor:
    """What matrices out of neurons, into neurons and around them weigh; differentiable."""
    columns = [accumulator(v).abs().sum(0).square().sum() for v in outers]
    squares = [accumulator(w).square().sum() for w in inners]
    return torch.stack([*columns, *squares, *(accumulator(c).abs().sum() for c in skips)]).sum()


def summed_norm_gradients(
    grad: Tensor, outers: Sequence[Tensor], inners: Sequence[Tensor], skips: Sequence[Tensor]
) -> list[Tensor]:
    """The chain rule of `summed_norm`, differentiable in turn."""
    columns = [(grad * 2 * accumulator(v).abs().sum(0)) * accumulator(v).sign() for v in outers]
    squares = [grad * 2 * accumulator(w) for w in inners]
    found = [*columns, *squares, *(grad * accumulator(c).sign() for c in skips)]
    return [d.to(x.dtype) for d, x in zip(found, (*outers, *inners, *skips), strict=True)]


def ridge_norm(outers: Sequence[Tensor], inners: Sequence[Tensor], skips: Sequence[Tensor]) -> Tensor:
    """`summed_norm` as an operator."""
    return summed_norm(outers, inners, skips)


def ridge_norm_backward(
    grad: Tensor, outers: Sequence[Tensor], inners: Sequence[Tensor], skips: Sequence[Tensor]
) -> list[Tensor]:
    """`summed_norm_gradients` as an operator: contiguous tensors."""
    return [d.contiguous() for d in summed_norm_gradients(grad, outers, inners, skips)]
