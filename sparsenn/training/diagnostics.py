"""What a training run looks like from inside, layer by layer, at the end of an epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.optim import Optimizer

from sparsenn import metrics
from sparsenn.optim.factorized import Factorized
from sparsenn.prune.masks import entries

Shares = dict[Tensor, float]


def misalignments(optimizer: Optimizer) -> Shares:
    """The misalignment of each parameter's factors, Σ over its weights; empty for an optimizer without factors."""
    if not isinstance(optimizer, Factorized):
        return {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {p: float(metrics.misalignment(optimizer.factors(p))) for p in parameters}


def mean_misalignment(shares: Shares) -> float | None:
    """Mean over all weights of (1/D) Σ_d ω_d² − |w|^{2/D}; 0 exactly where every weight's factors are balanced."""
    return sum(shares.values()) / sum(p.numel() for p in shares) if shares else None


@torch.no_grad()
def layer_figures(model: nn.Module, optimizer: Optimizer, threshold: float, shares: Shares) -> dict[str, Any]:
    r"""Norm and penalty of a net, and of each of its weight tensors what is left, its norm, penalty and misalignment.

    Args:
        model: The net; what its masks hide counts as 0.
        optimizer: The one that trains it.
        threshold: Up to which magnitude a weight counts as zero.
        shares: What :func:`misalignments` says of the optimizer.

    Returns:
        ``norm`` (:math:`\|w\|_2` over all parameters), ``penalty`` (of the training objective: :math:`(\lambda / D) \sum_d
        \|\omega_d\|^2`, :math:`\lambda \|w\|_1`, or 0), and ``layers``, with one entry for each name of :func:`layer_names`:
        ``kept`` (weights above the threshold), ``norm``, ``penalty``, and ``misalignment`` (the mean over the layer's weights;
        None without factors).
    """
    found = entries(model)
    norms = {entry.name: float(vector_norm(entry.weight, dtype=torch.float64)) for entry in found}
    layers = [entry for entry in found if entry.stored.dim() > 1]
    penalties = _penalties(optimizer)
    return {
        "norm": math.hypot(*norms.values()),
        "penalty": sum(penalties.values()),
        "layers": {
            "kept": [int((entry.weight.abs() > threshold).sum()) for entry in layers],
            "norm": [norms[entry.name] for entry in layers],
            "penalty": [penalties.get(entry.stored, 0.0) for entry in layers],
            "misalignment": [shares[entry.stored] / entry.numel for entry in layers] if shares else None,
        },
    }


def layer_names(model: nn.Module) -> list[str]:
    """The names of a net's weights; vectors (biases, normalization) and scalars are none.

    Example:
        >>> from sparsenn.models import build
        >>> from sparsenn.training.diagnostics import layer_names
        >>> layer_names(build("lenet-300-100"))
        ['1.weight', '3.weight', '5.weight']
    """
    return [entry.name for entry in entries(model) if entry.stored.dim() > 1]


def _penalties(optimizer: Optimizer) -> Shares:
    """What the optimizer adds to the loss of the data for each penalised parameter, at the λ of its last step."""
    found: Shares = {}
    for group in optimizer.param_groups:
        if lam := float(group.get("lam", 0.0)):
            for p in group["params"]:
                if isinstance(optimizer, Factorized):
                    squares = [float(vector_norm(factor, dtype=torch.float64)) ** 2 for factor in optimizer.factors(p)]
                    found[p] = lam * sum(squares) / len(squares)
                else:
                    found[p] = lam * float(vector_norm(p, 1, dtype=torch.float64))
    return found
