"""What a training run looks like from inside, layer by layer, at the end of an epoch."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.linalg import vector_norm
from torch.optim import Optimizer

from sparsenn.optim.factorized import Factorized
from sparsenn.optim.factorized_sgd import FactorizedSGD
from sparsenn.optim.measures import FactorMeasures
from sparsenn.prune.masks import Entry, entries


@torch.no_grad()
def figures(model: nn.Module, optimizer: Optimizer, threshold: float) -> dict[str, Any]:
    r"""How sparse a net is, its norm, penalty and misalignment, and the same of each of its weight tensors.

    An optimizer of factors is asked for `measures`, which are there where its last step has measured.

    Args:
        model: The net; what its masks hide counts as 0. One that an optimizer of factors trains has none.
        optimizer: The one that trains all its parameters.
        threshold: Up to which magnitude a weight counts as zero.

    Returns:
        ``weights`` (above the threshold), ``compression_ratio`` (all to these, None if there are none), ``misalignment`` (the
        mean over all weights of :math:`\frac1D \sum_d \omega_d^2 - |w|^{2/D}`, None without factors), ``norm``
        (:math:`\|w\|_2`), ``penalty`` (of the training objective: :math:`(\lambda / D) \sum_d \|\omega_d\|^2`,
        :math:`\lambda \|w\|_1`, or 0), and ``layers``, with one entry for each name of :func:`layer_names`: ``kept``,
        ``norm``, ``penalty``, and ``misalignment``.
    """
    found = entries(model)
    lams = {p: float(group.get("lam", 0.0)) for group in optimizer.param_groups for p in group["params"]}
    measured = optimizer.measures(threshold) if isinstance(optimizer, Factorized) else None
    rows = [
        _of_weights(entry, threshold, lams[entry.stored])
        if measured is None
        else _of_factors(measured[entry.stored], entry.numel, lams[entry.stored])
        for entry in found
    ]
    numel, kept = sum(entry.numel for entry in found), sum(row["kept"] for row in rows)
    layers = [row for entry, row in zip(found, rows, strict=True) if entry.stored.dim() > 1]
    misalignment = sum(own.misalignment for own in measured.values()) / numel if measured is not None else None
    return {
        "weights": kept,
        "compression_ratio": numel / kept if kept else None,
        "misalignment": misalignment,
        "norm": math.hypot(*(row["norm"] for row in rows)),
        "penalty": sum(row["penalty"] for row in rows),
        "layers": {
            **{name: [row[name] for row in layers] for name in ("kept", "norm", "penalty")},
            "misalignment": [row["misalignment"] for row in layers] if measured is not None else None,
        },
    }


def _of_factors(measures: FactorMeasures, numel: int, lam: float) -> dict[str, Any]:
    return {
        "kept": measures.kept,
        "norm": measures.norm,
        "penalty": lam * measures.factor_decay,
        "misalignment": measures.misalignment / max(numel, 1),
    }


def _of_weights(entry: Entry, threshold: float, lam: float) -> dict[str, Any]:
    return {
        "kept": int((entry.weight.abs() > threshold).sum()),
        "norm": float(vector_norm(entry.weight, dtype=torch.float64)),
        "penalty": lam * float(vector_norm(entry.stored, 1, dtype=torch.float64)) if lam else 0.0,
    }


def switches_of(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, float]]:
    """What :meth:`FactorizedSGD.switches` says of the steps so far, by the names of a net's parameters; empty for others."""
    if not isinstance(optimizer, FactorizedSGD):
        return {}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[params[own.parameter]]: {name: value for name, value in asdict(own).items() if name not in ("parameter", "shape")}
        for own in optimizer.switches()
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
