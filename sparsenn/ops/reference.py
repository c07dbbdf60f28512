"""The definitions: every operator in plain PyTorch, readable beside the paper.

Registered for every device; the compiled kernels must equal them. Products of half-precision factors are accumulated in float32
and rounded once, as in the kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsenn.ops.permutation import permutation

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALF)  # of every operator


def accumulator(x: Tensor) -> Tensor:
    """A half tensor as float32, any other as it is."""
    return x.float() if x.dtype in HALF else x


def _product(factors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, factors)


def _leave_one_out(factors: Sequence[Tensor]) -> list[Tensor]:
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
    return _product([accumulator(factor) for factor in factors]).to(factors[0].dtype)


def gradients(grad: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """The chain rule of the product: grads[d] = grad * prod_{k != d} factors[k]."""
    others = _leave_one_out([accumulator(factor) for factor in factors])
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
) -> None:
    """One step of SGD on the factors, and their new product (Kolb et al. 2025, Algorithm 2, and Equation 15 with momentum)."""
    if not weights:
        return
    depth = len(factors) // len(weights)
    rate, strength = float(lr), 2 * float(lam) / depth
    for i, (weight, weight_grad) in enumerate(zip(weights, grads, strict=True)):
        own = factors[i * depth : (i + 1) * depth]
        buffers: Sequence[Tensor | None] = momenta[i * depth : (i + 1) * depth] or [None] * depth
        grad = weight_grad.to(own[0].dtype)
        if maximize:
            grad = -grad
        if weight_decay:
            grad = grad.add(_product(own), alpha=weight_decay)
        for factor, buffer, other in zip(own, buffers, _leave_one_out(own), strict=True):
            _sgd_step(factor, grad * other, buffer, rate, strength, momentum, dampening, nesterov)
        weight.copy_(_product(own))


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
) -> None:
    """The same for D factors r, |r|, ..., |r| of one magnitude, which they keep (Kolb et al. 2025, Lemma 4): w = r |r|^(D-1).

    With all factors (and momenta) negated the product is the same at even D, so there a root that crosses 0 is turned back.
    """
    for i, (weight, root, weight_grad) in enumerate(zip(weights, roots, grads, strict=True)):
        buffer = momenta[i] if momenta else None
        others, before = _balanced_others(root, depth), root.signbit()
        grad = weight_grad.to(root.dtype)
        if maximize:
            grad = -grad
        if weight_decay:
            grad = grad.add(root * others, alpha=weight_decay)
        _sgd_step(root, grad * others, buffer, float(lr), 2 * float(lam) / depth, momentum, dampening, nesterov)
        if depth % 2 == 0:
            crossed = root.signbit() != before
            for x in (root,) if buffer is None else (root, buffer):
                x.copy_(torch.where(crossed, -x, x))
        weight.copy_(root * _balanced_others(root, depth))


def _balanced_others(root: Tensor, depth: int) -> Tensor:
    """|r|^(D-1), with the roundings of the product of that many factors."""
    return _product([torch.ones_like(root), *[root.abs()] * (depth - 1)])


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
        grad = weight_grad.to(own[0].dtype)
        if maximize:
            grad = -grad
        if weight_decay:
            grad = grad.add(_product(own), alpha=weight_decay)
        for k, (factor, other) in enumerate(zip(own, _leave_one_out(own), strict=True), i * depth):
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
        weight.copy_(_product(own))


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
        if weight_decay:
            update = update.add(value, alpha=weight_decay)
        if momenta:
            momenta[i].mul_(momentum).add_(update, alpha=1 - dampening)
            update = update.add(momenta[i], alpha=momentum) if nesterov else momenta[i]
        value = value.add(update, alpha=-rate)
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


def _activated(z: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """The values of an activation, numbered as in stacked_steps.ACTIVATIONS, and its derivative there."""
    if kind == 1:
        return z.relu(), (z > 0).to(z)
    if kind == 2:
        a = z.tanh()
        return a, 1 - a * a
    if kind == 3:
        a = z.sigmoid()
        return a, a * (1 - a)
    if kind == 4:  # z Phi(z) for the normal distribution's Phi: torch.nn.GELU()
        below = 0.5 * torch.erfc(-z * math.sqrt(0.5))
        return z * below, below + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return z, torch.ones_like(z)


def _layer_parameters(weights: Tensor, layers: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor | None]]:
    """Views of one run's weights: (filters, out, in, kernel) and (filters, out) of every layer."""
    found, start = [], 0
    for channels, _, out, kernel, filters, biased in layers:
        shapes = [(filters, out, channels, kernel), (filters, out)][: 1 + biased]
        views = []
        for shape in shapes:
            views.append(weights[start : start + math.prod(shape)].view(shape))
            start += math.prod(shape)
        found.append((views[0], views[1] if biased else None))
    return found


def _loss_and_gradient(
    weights: Tensor, layers: Sequence[Sequence[int]], x: Tensor, y: Tensor, activation: int, last: int
) -> tuple[Tensor, Tensor]:
    """The mean loss of a batch, and its gradient by the weights: the chain rule, layer after layer."""
    parameters, inputs, slopes = _layer_parameters(weights, layers), [], []
    for n, ((channels, length, _, kernel, filters, _), (weight, bias)) in enumerate(zip(layers, parameters, strict=True)):
        positions = length // kernel
        which = torch.arange(positions, device=x.device) % filters
        patches = x.view(-1, channels, length)[..., : positions * kernel].unflatten(-1, (positions, kernel))
        z = torch.einsum("ncpj,pocj->nop", patches, weight[which])
        if bias is not None:
            z = z + bias[which].t()
        a, slope = _activated(z, last if n == len(layers) - 1 else activation)
        inputs.append((patches, which))
        slopes.append(slope)
        x = a.flatten(1)
    if y.dtype == torch.int64:
        loss = torch.nn.functional.cross_entropy(x, y)
        pull = (x.softmax(1) - torch.nn.functional.one_hot(y, x.shape[1])) / len(x)
    else:
        loss = (x - y).square().mean()
        pull = (x - y) * (2 / x.numel())
    gradient = torch.zeros_like(weights)
    of_parameters = _layer_parameters(gradient, layers)
    for n in reversed(range(len(layers))):
        channels, length = layers[n][:2]
        (patches, which), (weight, _) = inputs[n], parameters[n]
        d_weight, d_bias = of_parameters[n]
        pull = pull.view_as(slopes[n]) * slopes[n]
        d_weight.index_add_(0, which, torch.einsum("nop,ncpj->pocj", pull, patches))
        if d_bias is not None:
            d_bias.index_add_(0, which, pull.sum(0).t().contiguous())
        if n:
            of_patches = torch.einsum("nop,pocj->ncpj", pull, weight[which]).flatten(2)
            pull = torch.nn.functional.pad(of_patches, (0, length - of_patches.shape[-1])).flatten(1)
    return loss, gradient


def _optimizer_step(w: Tensor, state: Tensor, gradient: Tensor, codes: Sequence[int], rates: Sequence[float], t: int) -> Tensor:
    """Moves one run's weights and state by its t-th gradient; returns the penalty as it was before."""
    _, _, _, _, optimizer, penalty, depth = codes
    lr, lam, momentum, beta1, beta2, eps, clipping = rates
    value = w.new_zeros(())
    if penalty == 1:
        value, gradient = lam * w.abs().sum(), gradient + lam * w.sign()
    elif penalty == 2:
        value, gradient = lam * w.square().sum(), gradient + 2 * lam * w
    if optimizer == 2:
        factors, momenta = state[:depth], state[depth : 2 * depth]
        value = (lam / depth) * factors.square().sum()
        for factor, buffer, other in zip(factors, momenta, _leave_one_out(factors.clone().unbind()), strict=True):
            buffer.mul_(momentum).add_(gradient * other + (2 * lam / depth) * factor)
            factor.sub_(buffer, alpha=lr)
        w.copy_(_product(factors.unbind()))
    elif optimizer == 3:
        state[0].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state[1].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = state[1].sqrt() / math.sqrt(1 - beta2**t)
        w.addcdiv_(state[0], root + eps, value=-lr / (1 - beta1**t))
    else:
        if optimizer == 1:
            value = lam * w.abs().sum()
        state[0].mul_(momentum).add_(gradient)
        w.sub_(state[0], alpha=lr)
        if optimizer == 1:
            w.copy_(soft_thresholded(w, w.new_tensor(lam * lr / (1 - momentum))))
    if clipping:
        w.masked_fill_(w.abs() < clipping, 0)
    return value


def stacked_steps_(
    weights: Tensor,
    state: Tensor,
    losses: Tensor,
    x: Tensor,
    y: Tensor,
    codes: Tensor,
    rates: Tensor,
    active: Tensor,
    layers: Sequence[int],
    batch_size: int,
    epoch: int,
    first: int,
    steps: int,
) -> None:
    """The loop that every run would have alone: a batch, its gradient, a step; see ops/stacked_steps.py for the settings."""
    size = x.shape[1]
    batches = -(-size // batch_size)
    structure = [layers[k : k + 6] for k in range(0, len(layers), 6)]
    for run in active.tolist():
        seed, data, activation, last = codes[run, :4].tolist()
        order = permutation(size, seed, epoch, device=x.device)
        for step in range(first, first + steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            loss, gradient = _loss_and_gradient(weights[run], structure, x[data, batch], y[data, batch], activation, last)
            t = epoch * batches + step + 1
            penalty = _optimizer_step(weights[run], state[run], gradient, codes[run].tolist(), rates[run].tolist(), t)
            losses[run] += torch.stack([loss, penalty]).double()
