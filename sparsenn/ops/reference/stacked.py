"""Many small networks, each trained as it would be alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsenn.ops.permutation import permutation
from sparsenn.ops.reference.products import leave_one_out, unrounded_product
from sparsenn.ops.reference.steps import soft_thresholded

# A code is a place in one of these.
ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid", "gelu")
OPTIMIZERS = ("sgd", "prox", "factorized", "adam")
PENALTIES = ("none", "l1", "l2")


def _activated(z: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The values of an activation, and its derivative there."""
    if activation == "relu":
        return z.relu(), (z > 0).to(z)
    if activation == "tanh":
        a = z.tanh()
        return a, 1 - a * a
    if activation == "sigmoid":
        a = z.sigmoid()
        return a, a * (1 - a)
    if activation == "gelu":  # z Phi(z) for the normal distribution's Phi: torch.nn.GELU()
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
    weights: Tensor, layers: Sequence[Sequence[int]], x: Tensor, y: Tensor, activation: str, last: str
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
    optimizer, penalty, depth = OPTIMIZERS[codes[4]], PENALTIES[codes[5]], codes[6]
    lr, lam, momentum, beta1, beta2, eps, clipping, decay = rates
    value = w.new_zeros(())
    if penalty == "l1":
        value, gradient = lam * w.abs().sum(), gradient + lam * w.sign()
    elif penalty == "l2":
        value, gradient = lam * w.square().sum(), gradient + 2 * lam * w
    if decay:
        gradient = gradient + decay * w
    if optimizer == "factorized":
        factors, momenta = state[:depth], state[depth : 2 * depth]
        value = (lam / depth) * factors.square().sum()
        for factor, buffer, other in zip(factors, momenta, leave_one_out(factors.clone().unbind()), strict=True):
            buffer.mul_(momentum).add_(gradient * other + (2 * lam / depth) * factor)
            factor.sub_(buffer, alpha=lr)
        w.copy_(unrounded_product(factors.unbind()))
    elif optimizer == "adam":
        state[0].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state[1].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = state[1].sqrt() / math.sqrt(1 - beta2**t)
        w.addcdiv_(state[0], root + eps, value=-lr / (1 - beta1**t))
    else:
        if optimizer == "prox":
            value = lam * w.abs().sum()
        state[0].mul_(momentum).add_(gradient)
        w.sub_(state[0], alpha=lr)
        if optimizer == "prox":
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
        seed, data, *kinds = codes[run, :4].tolist()
        activation, last = (ACTIVATIONS[kind] for kind in kinds)
        order = permutation(size, seed, epoch, device=x.device)
        for step in range(first, first + steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            loss, gradient = _loss_and_gradient(weights[run], structure, x[data, batch], y[data, batch], activation, last)
            t = epoch * batches + step + 1
            penalty = _optimizer_step(weights[run], state[run], gradient, codes[run].tolist(), rates[run].tolist(), t)
            losses[run] += torch.stack([loss, penalty]).double()
