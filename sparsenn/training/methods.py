"""What tells the methods apart once PyTorch is there: the optimizer, and which of the final weights count as zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from sparsenn.optim import FactorizedSGD, ProxSGD
from sparsenn.training.config import TrainConfig

# A weight of at most this magnitude becomes exactly 0 at the end; proximal steps leave nothing to do. Factors come near zero by
# float32's epsilon (Kolb et al. 2025, Appendix G); the subgradient hovers, and 1e-4 is what its authors count as zero.
COLLAPSE_AT = {"dwf": torch.finfo(torch.float32).eps, "l1-subgradient": 1e-4}


def make_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """The optimizer of ``config.method`` over all weights and biases."""
    common: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum}
    if config.method == "dwf":
        generator = torch.Generator().manual_seed(config.seed)
        return FactorizedSGD(
            model.parameters(),
            depth=config.depth,
            lam=config.lam,
            factor_init=config.factor_init,
            generator=generator,
            **common,
        )
    if config.method == "prox":
        return ProxSGD(model.parameters(), lam=config.lam, **common)
    optimizer = SGD([{"params": [*model.parameters()], "lam": config.lam}], **common)
    if config.method == "l1-subgradient":
        optimizer.register_step_pre_hook(_add_l1_subgradient)
    return optimizer


@torch.no_grad()
def _add_l1_subgradient(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Adds λ sign(w) to every gradient before a step, as λ‖w‖₁ in the loss would, and after any clipping of the loss's own."""
    for group in optimizer.param_groups:
        if weights := [p for p in group["params"] if p.grad is not None]:
            torch._foreach_add_([p.grad for p in weights], torch._foreach_sign(weights), alpha=group["lam"])
