"""The ordinary loop that a run of a stack has to equal, and small networks for it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsenn.models import fcn, multi_channel_cnn
from sparsenn.ops import permutation
from sparsenn.optim import FactorizedSGD, ProxSGD
from sparsenn.training.stacked import Run

LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}
RUNS = [
    Run(seed=0, lam=1e-4, penalty="l1", lr=0.01),
    Run(seed=1, lam=1e-3, penalty="l2", momentum=0.5, data=1),
    Run(seed=2, optimizer="prox", lam=1e-3, lr=0.01),
    Run(seed=3, optimizer="factorized", lam=1e-3, depth=3, lr=0.02, data=1),
    Run(seed=4, optimizer="adam", betas=(0.8, 0.99), eps=1e-3, lam=1e-4, penalty="l2"),
    Run(seed=5, clipping=0.03, momentum=0.0, lr=0.05),
    Run(seed=0, optimizer="factorized", depth=1, lam=1e-4, lr=0.01),
    Run(seed=6, lam=1e-3, penalty="l1", weight_decay=0.02),
    Run(seed=7, optimizer="prox", lam=1e-3, weight_decay=0.01, lr=0.01),
    Run(seed=8, optimizer="factorized", lam=1e-3, weight_decay=0.02, lr=0.02),
    Run(seed=9, optimizer="adam", weight_decay=0.03),
]
ACTIVATIONS = ("tanh", "sigmoid", "relu", "gelu", "tanh", "relu", "sigmoid", "tanh", "gelu", "sigmoid", "relu")


class Residual(nn.Module):
    """An architecture that the fused operator does not know."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(x + torch.tanh(self.first(x)))


def nets(kind: str = "fcn") -> list[nn.Module]:
    """One for each of RUNS, always the same."""
    build = {"fcn": lambda activation: fcn((16, 8), activation), "cnn": multi_channel_cnn}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return [build(activation) for activation in ACTIVATIONS]


def data_sets(count: int = 150, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Two of one shape; 150 is no multiple of the batch size of 16."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(2, count, 12, generator=generator, dtype=torch.float64)
    y = torch.stack([(x[0, :, :3].sum(1) / 3).tanh(), x[1, :, 0] * x[1, :, 5] / 2])[..., None]
    return [(a.to(dtype), b.to(dtype)) for a, b in zip(x, y, strict=True)]


def optimizer_of(run: Run, module: nn.Module) -> torch.optim.Optimizer:
    own, generator, decay = module.parameters(), torch.Generator().manual_seed(run.seed), {"weight_decay": run.weight_decay}
    if run.optimizer == "adam":
        return torch.optim.Adam(own, run.lr, betas=run.betas, eps=run.eps, **decay)
    if run.optimizer == "prox":
        return ProxSGD(own, run.lr, lam=run.lam, momentum=run.momentum, **decay)
    if run.optimizer == "factorized":
        return FactorizedSGD(own, run.lr, depth=run.depth, lam=run.lam, momentum=run.momentum, generator=generator, **decay)
    return torch.optim.SGD(own, run.lr, momentum=run.momentum, **decay)


def penalty_of(run: Run, module: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor | float:
    own = list(module.parameters())
    if run.optimizer == "factorized":
        return run.lam / run.depth * sum(f.square().sum() for p in own for f in optimizer.factors(p))
    if run.penalty == "l1" or run.optimizer == "prox":
        return run.lam * sum(p.abs().sum() for p in own)
    return run.lam * sum(p.square().sum() for p in own) if run.penalty == "l2" else 0.0


def alone(module: nn.Module, run: Run, x: Tensor, y: Tensor, epochs: int, *, size: int = 16, loss: str = "mse"):
    """The ordinary loop: the trained module, and each epoch's mean losses without and with the penalty."""
    module = copy.deepcopy(module).to(x.dtype)
    optimizer, history = optimizer_of(run, module), []
    for epoch in range(epochs):
        found = []
        for batch in permutation(len(x), run.seed, epoch).split(size):
            of_data = LOSSES[loss](module(x[batch]), y[batch])
            penalty = penalty_of(run, module, optimizer)
            found.append((of_data.item(), of_data.item() + float(torch.as_tensor(penalty).detach())))
            optimizer.zero_grad()
            (of_data + penalty if run.penalty != "none" else of_data).backward()
            optimizer.step()
            if run.clipping:
                with torch.no_grad():
                    for p in module.parameters():
                        p[p.abs() < run.clipping] = 0
        history.append(tuple(sum(column) / len(found) for column in zip(*found, strict=True)))
    return module, history


def flat(weights) -> Tensor:
    """A module's or an outcome's weights as one vector."""
    tensors = weights.parameters() if isinstance(weights, nn.Module) else weights.weights.values()
    return torch.cat([w.detach().flatten() for w in tensors])
