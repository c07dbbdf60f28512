"""Optimizers' steps on many weights, and soft thresholding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsenn.ops.reference.measures import measure
from sparsenn.ops.reference.products import accumulator, leave_one_out, unrounded_product


def factorized_sgd_(
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    momenta: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    measures: Tensor | None = None,
    threshold: float = 0.0,
) -> None:
    """One step of SGD on the factors, and their new product (Kolb et al. 2025, Algorithm 2, and Equation 15 with momentum)."""
    if not weights:
        return
    depth = len(factors) // len(weights)
    rate, strength = float(lr), 2 * float(lam) / depth
    for i, (weight, weight_grad) in enumerate(zip(weights, grads, strict=True)):
        own = factors[i * depth : (i + 1) * depth]
        buffers: Sequence[Tensor | None] = momenta[i * depth : (i + 1) * depth] or [None] * depth
        grad = _product_gradient(weight_grad, own, weight_decay, maximize)
        for factor, buffer, other in zip(own, buffers, leave_one_out(own), strict=True):
            _sgd_step(factor, grad * other, buffer, rate, strength, momentum, dampening, nesterov)
        weight.copy_(unrounded_product(own))
        if measures is not None:
            measure(measures[i], weight, own, threshold)


def _product_gradient(weight_grad: Tensor, factors: Sequence[Tensor], weight_decay: float, maximize: bool) -> Tensor:
    """The gradient of a product as its factors see it."""
    grad = weight_grad.to(factors[0].dtype)
    if maximize:
        grad = -grad
    return grad.add(unrounded_product(factors), alpha=weight_decay) if weight_decay else grad


def _sgd_step(
    x: Tensor,
    update: Tensor,
    buffer: Tensor | None,
    lr: float,
    decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    """A step of torch.optim.SGD for one tensor."""
    if decay:
        update = update.add(x, alpha=decay)
    if buffer is not None:
        buffer.mul_(momentum).add_(update, alpha=1 - dampening)
        update = update.add(buffer, alpha=momentum) if nesterov else buffer
    x.add_(update, alpha=-lr)


def balanced_sgd_(
    weights: Sequence[Tensor],
    roots: Sequence[Tensor],
    momenta: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    depth: int,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    measures: Tensor | None = None,
    threshold: float = 0.0,
) -> None:
    """The same for D factors r, |r|, ..., |r| of one magnitude, which they keep (Kolb et al. 2025, Lemma 4): w = r |r|^(D-1).

    With all factors (and momenta) negated the product is the same at even D, so there a root that crosses 0 is turned back.
    """
    for i, (weight, root, weight_grad) in enumerate(zip(weights, roots, grads, strict=True)):
        buffer = momenta[i] if momenta else None
        others, before = _balanced_others(root, depth), root.signbit()
        grad = _product_gradient(weight_grad, (root, others), weight_decay, maximize)
        _sgd_step(root, grad * others, buffer, float(lr), 2 * float(lam) / depth, momentum, dampening, nesterov)
        if depth % 2 == 0:
            crossed = root.signbit() != before
            for x in (root,) if buffer is None else (root, buffer):
                x.copy_(torch.where(crossed, -x, x))
        weight.copy_(root * _balanced_others(root, depth))
        if measures is not None:
            measure(measures[i], weight, [root], threshold)  # all squares are this one


def _balanced_others(root: Tensor, depth: int) -> Tensor:
    """|r|^(D-1), with the roundings of the product of that many factors."""
    return unrounded_product([torch.ones_like(root), *[root.abs()] * (depth - 1)])


def _square_root(x: Tensor) -> Tensor:
    """Rounded to the nearest float32; torch's own root, by MKL, is now and then off by a unit in the last place."""
    return x.double().sqrt().to(x.dtype)


def factorized_adam_(
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    largest: Sequence[Tensor],
    steps: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    lam: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    measures: Tensor | None = None,
    threshold: float = 0.0,
) -> None:
    """One step of Adam (Kingma and Ba 2015, Algorithm 1) on the factors, and their new product; decoupled: of AdamW."""
    if not weights:
        return
    depth = len(factors) // len(weights)
    rate, strength = float(lr), 2 * float(lam) / depth
    for i, (weight, weight_grad, step) in enumerate(zip(weights, grads, steps, strict=True)):
        count = float(step.add_(1))
        pace, root = rate / (1 - beta1**count), (1 - beta2**count) ** 0.5
        own = factors[i * depth : (i + 1) * depth]
        grad = _product_gradient(weight_grad, own, weight_decay, maximize)
        for k, (factor, other) in enumerate(zip(own, leave_one_out(own), strict=True), i * depth):
            update = grad * other
            if strength and not decoupled:
                update = update.add(factor, alpha=strength)
            means[k].lerp_(update, 1 - beta1)
            squares[k].mul_(beta2).addcmul_(update, update, value=1 - beta2)
            second = squares[k]
            if largest:
                second = torch.maximum(largest[k], second, out=largest[k])
            if strength and decoupled:
                factor.mul_(1 - rate * strength)
            factor.addcdiv_(means[k], (_square_root(second) / root).add_(eps), value=-pace)
        weight.copy_(unrounded_product(own))
        if measures is not None:
            measure(measures[i], weight, own, threshold)


def soft_thresholded(x: Tensor, threshold: Tensor | float) -> Tensor:
    """sign(x) max(|x| - threshold, 0), written so that no zero is negative, and NaN and infinity stay what they are."""
    return torch.where(x.abs() <= threshold, 0, x - x.sign() * threshold)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) + 0  # what rounding made a negative zero becomes a positive one


def prox_sgd_(
    weights: Sequence[Tensor],
    momenta: Sequence[Tensor],
    grads: Sequence[Tensor],
    lams: Sequence[Tensor],
    zeros: Tensor,
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """A step of SGD, then the proximal map of lam * |w| for the step size that momentum makes of lr.

    A constant gradient g moves a weight by lr (1 - dampening) / (1 - momentum) g a step in the long run. The threshold is
    scaled alike: then, and only then, the fixed point solves 0 in g + lam * d|w|.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"sparsenn::prox_sgd_: momentum is {momentum}; it takes 0 <= momentum < 1")
    rate = float(lr)
    reach = rate * ((1 - dampening) / (1 - momentum)) if momenta else rate
    for i, (weight, weight_grad) in enumerate(zip(weights, grads, strict=True)):
        value, update = accumulator(weight), accumulator(weight_grad)
        if maximize:
            update = -update
        _sgd_step(value, update, momenta[i] if momenta else None, rate, weight_decay, momentum, dampening, nesterov)
        lam = lams[i if len(lams) > 1 else 0].to(value)
        if lam.dim() or lam:  # without a penalty the step is that of SGD to the last bit, negative zeros included
            value = _rounded(soft_thresholded(value, lam * reach), weight.dtype)
        weight.copy_(value)
        if zeros.numel():
            zeros[i] = (weight == 0).sum()


def thresholded(x: Tensor, threshold: Tensor) -> Tensor:
    """The definition: `soft_thresholded` in any dtype (Donoho 1995; Parikh and Boyd 2014, section 6.5.2)."""
    wide = accumulator(x)
    return _rounded(soft_thresholded(wide, threshold.to(wide)), x.dtype)


def thresholded_gradient(grad: Tensor, x: Tensor, threshold: Tensor) -> Tensor:
    """Its derivative by x, times grad: 1 where |x| > threshold, and where one of them is NaN, else 0."""
    wide = accumulator(x)
    return torch.where(wide.abs() <= threshold.to(wide), 0, grad)


def soft_threshold(input: Tensor, threshold: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
    """`thresholded` as an operator: a new tensor in the input's layout."""
    return torch.empty_like(input).copy_(thresholded(input, threshold))


def soft_threshold_backward(grad: Tensor, input: Tensor, threshold: Tensor) -> Tensor:  # noqa: A002
    """`thresholded_gradient` as an operator: a new tensor in the input's layout."""
    return torch.empty_like(input).copy_(thresholded_gradient(grad, input, threshold))
