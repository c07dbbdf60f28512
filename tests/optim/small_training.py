"""A small net and its training, written once for the tests of the optimizers."""

from __future__ import annotations

import torch
from torch import nn

from sparsenn.optim import FactorizedAdam, FactorizedSGD, ProxSGD

MAKERS = {
    "FactorizedSGD": lambda p, **options: FactorizedSGD(p, **{"lr": 0.1, "lam": 0.01, "momentum": 0.9, "depth": 3, **options}),
    "FactorizedAdam": lambda p, **options: FactorizedAdam(p, **{"lr": 0.1, "lam": 0.01, "depth": 3, **options}),
    "ProxSGD": lambda p, **options: ProxSGD(p, **{"lr": 0.1, "lam": 0.01, "momentum": 0.9, **options}),
}
RULES = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight_decay": {"momentum": 0.8, "weight_decay": 0.05},
    "maximize": {"momentum": 0.5, "maximize": True},
}
ADAM_RULES = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "decoupled": {"decoupled": True},
    "short memory": {"betas": (0.4, 0.7), "eps": 1e-3},
    "weight_decay": {"weight_decay": 0.05, "decoupled": True, "amsgrad": True},
    "maximize": {"maximize": True, "betas": (0.0, 0.0), "eps": 1e-2},
}
SGD_RULES = {**RULES, "plain": {"momentum": 0.0}}
OPTIONS = {"FactorizedSGD": SGD_RULES, "FactorizedAdam": ADAM_RULES, "ProxSGD": SGD_RULES}  # over those of MAKERS


def net(dtype: torch.dtype = torch.float64, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    return x.to(dtype), x[:, :3].sin().to(dtype)


def train(model: nn.Module, optimizer, steps, dtype=torch.float64, extra=lambda: 0.0) -> None:
    for step in steps:
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        ((model(x) - y).square().mean() + extra()).backward()
        optimizer.step()
