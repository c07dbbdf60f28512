"""What an engine moves: the runs that go on, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsenn.ops.stacked_steps import state_rows
from sparsenn.optim import FactorizedSGD
from sparsenn.training.stacked.run import Run


@dataclass
class Rows:
    """The runs of a stack that go on.

    Attributes:
        members: the numbers of these runs in the stack, ascending.
        weights: (A, P), a run's parameters one behind the other in the module's order.
        state: (A, K, P), what its optimizer remembers: the momentum of ``sgd`` and ``prox``; both moments of ``adam``; the D
            factors of ``factorized``, then their D momenta. K is the largest number that a run of the stack needs.
        losses: (A, 2) float64, sums over the epoch's batches so far: of the mean loss, and of the penalty at the same weights.
    """

    members: list[int]
    weights: Tensor
    state: Tensor
    losses: Tensor

    def kept(self, positions: Sequence[int]) -> Rows:
        """The rows at these positions, in memory of their own."""
        index = torch.tensor(positions, dtype=torch.int64, device=self.weights.device)
        return Rows([self.members[i] for i in positions], self.weights[index], self.state[index], self.losses[index])


@dataclass(frozen=True)
class Task:
    """What all runs of a stack share: x (S, N, ...) and y (S, N, ...), the batch size and the name of the loss."""

    x: Tensor
    y: Tensor
    batch_size: int
    loss: str

    @property
    def samples(self) -> int:
        """N, of every data set."""
        return self.x.shape[1]

    @property
    def batches(self) -> int:
        """Steps of an epoch; the last batch may be smaller."""
        return -(-self.samples // self.batch_size)


class Engine(Protocol):
    """Moves rows. Where several runs of a stack meet the same formula is the engine's own business."""

    name: str

    def begin(self, rows: Rows) -> None:
        """The rows have become others: some left, or all were loaded."""

    def advance(self, rows: Rows, epoch: int, first: int, count: int) -> None:
        """``count`` steps of every row from step ``first`` of an epoch on; both counted from 0."""


def slots(run: Run) -> int:
    """How many tensors of the weights' size the optimizer of a run remembers."""
    return state_rows(run.optimizer, run.depth)


def first_state(run: Run, module: nn.Module, out: Tensor) -> None:
    """Fill ``out`` (K, P) with what the optimizer of a run remembers at the start; ``factorized`` may lift its weights.

    The factors are those that ``FactorizedSGD`` makes with a generator of the run's seed.
    """
    out.zero_()
    if run.optimizer != "factorized":
        return
    generator = torch.Generator().manual_seed(run.seed)
    parameters = list(module.parameters())
    optimizer = FactorizedSGD(parameters, run.lr, depth=run.depth, lam=run.lam, momentum=run.momentum, generator=generator)
    for d, factors in enumerate(zip(*map(optimizer.factors, parameters), strict=True)):
        out[d] = torch.cat([factor.flatten() for factor in factors])


def flat_parameters(module: nn.Module) -> Tensor:
    """All parameters of a module, one behind the other."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])
