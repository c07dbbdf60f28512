"""What takes a model says so of what is none."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn import metrics, penalties, prune

CALLS = {
    "factorize": functools.partial(sparsenn.factorize, depth=2),
    "spectralize": sparsenn.spectralize,
    "collapse": sparsenn.collapse,
    "compact": lambda model: prune.compact(model, torch.ones(1, 3)),
    "nodes": functools.partial(prune.nodes, threshold=0.1),
    "magnitude": functools.partial(prune.magnitude, compression=2),
    "snip": lambda model: prune.snip(
        model, compression=2, batch=(torch.ones(1, 3), torch.ones(1, 1)), loss_fn=nn.functional.mse_loss
    ),
    "apply_masks": lambda model: prune.apply_masks(model, {"weight": torch.ones(1, 3)}),
    "spectral": penalties.spectral,
    "rbv2": penalties.rbv2,
    "weight_decay": penalties.weight_decay,
    "factor_decay": penalties.factor_decay,
    "ridge_report": metrics.ridge_report,
    "ridge_proximal": lambda model: sparsenn.optim.ridge_proximal(model, torch.optim.Adam, 0.1),
    "kkt_residual": lambda model: metrics.kkt_residual(model, lambda: torch.ones(()), 0.1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_state_dict_is_no_model(name):
    with pytest.raises(TypeError, match=f"^{name}: model is OrderedDict; it takes a torch.nn.Module"):
        CALLS[name](nn.Linear(3, 1).state_dict())
