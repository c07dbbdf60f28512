"""Any architecture: the runs' gradients through ``torch.func``, their optimizers as tensor code over all runs of a kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsenn.ops import permutation
from sparsenn.training.checks import first_line
from sparsenn.training.stacked import steps
from sparsenn.training.stacked.rows import Rows, Task, flat_parameters
from sparsenn.training.stacked.run import Run

Gradients = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


@dataclass
class _Group:
    """Rows whose modules, optimizers and depths are alike."""

    positions: Tensor | None  # None: all rows
    gradients: Gradients
    settings: steps.Settings
    data: Tensor  # (G,) which data set
    seeds: list[int]  # every one once
    seed_of: Tensor  # (G,) index into seeds


class TorchEngine:
    """Gradients by ``vmap`` over the runs; the sums of a run are formed in the order of its steps.

    A run's bits may depend on how many runs are beside it, since the products of a batch of matrices do.

    Args:
        modules: one for each run of the stack.
        runs: their settings.
        task: data and loss.

    Raises:
        ValueError: for modules that vmap can't follow, or outputs that don't fit the targets.
    """

    name = "torch"

    def __init__(self, modules: Sequence[nn.Module], runs: Sequence[Run], task: Task) -> None:
        self.task, self.runs = task, runs
        self._kind = [signature(module) for module in modules]
        self._gradients: dict[Any, Gradients] = {}
        for kind, module in zip(self._kind, modules, strict=True):
            if kind not in self._gradients:
                self._gradients[kind] = _gradients(module, LOSSES[task.loss])
                self._try_steps(self._gradients[kind], module)
        self._groups: list[_Group] = []
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def _try_steps(self, gradients: Gradients, module: nn.Module) -> None:
        """A batch of each size, so that what can't be trained fails before the first step."""
        task, weights = self.task, flat_parameters(module)[None]
        last = task.samples - (task.batches - 1) * task.batch_size
        for size in {min(task.batch_size, task.samples), last}:
            x = task.x[:1, :size]
            y = torch.zeros_like(task.y[:1, :size])  # a label that every network has
            try:
                gradients(weights, x, y)
            except Exception as error:  # a module may raise anything
                raise ValueError(
                    f"Stack: a step of {type(module).__name__} fails under torch.func.vmap: {first_line(error)}"
                ) from error

    def begin(self, rows: Rows) -> None:
        """Group the rows anew."""
        found: dict[Any, list[int]] = {}
        for position, member in enumerate(rows.members):
            run = self.runs[member]
            depth = run.depth if run.optimizer == "factorized" else 0
            found.setdefault((self._kind[member], run.optimizer, depth), []).append(position)
        self._groups = [self._group(kind[0], positions, rows) for kind, positions in found.items()]
        self._orders.clear()

    def _group(self, kind: Any, positions: list[int], rows: Rows) -> _Group:
        runs, device = [self.runs[rows.members[i]] for i in positions], rows.weights.device
        seeds = sorted({run.seed for run in runs})
        return _Group(
            torch.tensor(positions, device=device) if len(positions) < len(rows.members) else None,
            self._gradients[kind],
            steps.Settings(runs, rows.weights),
            torch.tensor([run.data for run in runs], device=device),
            seeds,
            torch.tensor([seeds.index(run.seed) for run in runs], device=device),
        )

    @torch.no_grad()
    def advance(self, rows: Rows, epoch: int, first: int, count: int) -> None:
        """Move group after group; a group's rows are gathered once."""
        for number, group in enumerate(self._groups):
            positions = group.positions
            own = rows if positions is None else rows.kept(positions.tolist())
            order = self._order(number, group, epoch)
            for step in range(first, first + count):
                self._step(group, own, order, epoch * self.task.batches + step, step)
            if positions is not None:
                rows.weights[positions], rows.state[positions], rows.losses[positions] = own.weights, own.state, own.losses

    def _order(self, number: int, group: _Group, epoch: int) -> Tensor:
        """(seeds, N): the epoch's orders, kept for the next call in the same epoch."""
        kept = self._orders.get(number)
        if kept is None or kept[0] != epoch:
            orders = [permutation(self.task.samples, seed, epoch) for seed in group.seeds]
            kept = self._orders[number] = (epoch, torch.stack(orders).to(group.data.device))
        return kept[1]

    def _step(self, group: _Group, own: Rows, order: Tensor, steps_before: int, step: int) -> None:
        size, task = self.task.batch_size, self.task
        chosen = order[:, step * size : (step + 1) * size][group.seed_of]
        data = group.data[:, None]
        gradient, loss = group.gradients(own.weights, task.x[data, chosen], task.y[data, chosen])
        own.losses[:, 0] += loss
        own.losses[:, 1] += steps.penalty(group.settings, own.weights, own.state)
        steps.step_(group.settings, own.weights, own.state, gradient, steps_before + 1)


def _gradients(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Gradients:
    """(weights (R, P), x (R, B, ...), y (R, B, ...)) -> gradients (R, P) and losses (R,)."""
    base = copy.deepcopy(module)
    shapes = {name: p.shape for name, p in base.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def of_one(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = zip(shapes.items(), flat.split(sizes), strict=True)
        output = torch.func.functional_call(base, {name: part.view(shape) for (name, shape), part in parts}, (x,))
        if not isinstance(output, Tensor):
            raise ValueError(f"the output is of type {type(output).__name__} and no tensor")
        if loss is F.mse_loss and output.shape != y.shape:
            raise ValueError(f"the output has shape {tuple(output.shape)}, the targets {tuple(y.shape)}")
        return loss(output, y)

    return torch.func.vmap(torch.func.grad_and_value(of_one))


def signature(module: nn.Module) -> tuple[Any, ...]:
    """What makes two modules compute alike but for their weights: names, types, shapes and all plain attributes."""
    layers = tuple(
        (name, type(own), tuple(sorted((key, repr(value)) for key, value in vars(own).items() if not key.startswith("_"))))
        for name, own in module.named_modules()
    )
    return layers, tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
