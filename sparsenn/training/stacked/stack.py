"""R runs of one architecture as one model with a leading run dimension."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsenn.training.checks import is_int, shown
from sparsenn.training.stacked.check import (
    check_classes,
    check_data,
    check_lists,
    check_modules,
    check_options,
    check_sizes,
    copies,
)
from sparsenn.training.stacked.engine import choose_engine
from sparsenn.training.stacked.rows import Rows, Task, first_state, flat_parameters, slots
from sparsenn.training.stacked.run import STATUS, Outcome, Run
from sparsenn.training.stacked.state import check_state
from sparsenn.training.stacked.torch_engine import signature

_ACTIVE, _FINISHED, _DIVERGED = range(len(STATUS))


class Stack:
    r"""Trains R networks of one architecture at once, each with its own weights, settings, order of samples and data.

    Run r takes, in epoch e = 0, 1, …, its samples in the order ``sparsenn.ops.permutation(N, run.seed, e)``, in batches of
    ``batch_size``; the last batch is as small as what is left. A step minimises

    .. math:: \frac{1}{B} \sum_{b} \ell(f(x_b; w), y_b) + \text{penalty}(w)

    by the run's optimizer, as the same run alone would by ``torch.optim.SGD``, ``torch.optim.Adam``, ``ProxSGD`` or
    ``FactorizedSGD``. After an epoch its loss is the mean over the batches of loss plus penalty. A run leaves the stack, and
    the others go on faster, when ``patience`` epochs in a row have brought no loss below its best, when ``max_epochs`` are
    over, or when a loss or a weight is no longer a finite number: it is then ``diverged``, and disturbs no other.

    Args:
        modules: R networks, alike but for weights and activations, on any device. They are read only.
        runs: R settings.
        data: data sets (x, y) with x (N, ...) and y (N, ...) of the network's output's shape, or int64 classes (N,) for
            ``cross_entropy``; all of the same shapes.
        batch_size: samples a step.
        loss: ``mse`` or ``cross_entropy``, both means over the batch.
        patience: epochs without improvement before a run leaves; None for no such end.
        max_epochs: epochs after which a run leaves: one number, or one for each run.
        dtype: float32 or float64, of weights and data.
        device: where to train.
        engine: ``fused`` takes the compiled operator, ``torch`` any architecture through ``torch.func``, and ``auto`` the
            first where it covers the networks and is built.

    Attributes:
        runs: the settings.
        reason: which way the stack goes and why, a sentence.
        epochs: epochs that the active runs have behind them.
        step: steps of the next epoch that they have behind them too.

    Raises:
        ValueError: for modules that are no stack (the message says which and why) or can't take a step, arguments of other
            types, data that does not fit, a setting out of range, a device that is not there, or ``engine="fused"`` where the
            operator does not cover the networks.

    Note:
        A module with buffers (batch normalization), frozen parameters or random layers (dropout) is refused.

    Example:
        >>> import torch
        >>> from sparsenn.training.stacked import Run, Stack
        >>> x = torch.randn(64, 12)
        >>> nets = [torch.nn.Linear(12, 1, bias=False) for _ in range(3)]
        >>> runs = [Run(seed=s, lr=0.05, optimizer="prox", lam=0.02) for s in range(3)]
        >>> stack = Stack(nets, runs, [(x, x[:, :1])], max_epochs=[5, 5, 10])
        >>> while stack.active:
        ...     stack.epoch()
        >>> [outcome.epochs for outcome in stack.outcomes]
        [5, 5, 10]
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        runs: Sequence[Run],
        data: Sequence[tuple[Tensor, Tensor]],
        *,
        batch_size: int = 16,
        loss: str = "mse",
        patience: int | None = None,
        max_epochs: int | Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        engine: str = "auto",
    ) -> None:
        check_options(batch_size=batch_size, loss=loss, patience=patience, dtype=dtype, device=device, engine=engine)
        check_lists(modules=modules, runs=runs, data=data)
        limits = check_sizes(modules, runs, data, max_epochs)
        check_modules(modules)
        check_data(data, loss)
        self.runs = tuple(runs)
        self._modules = [module.to(device, dtype) for module in copies(modules)]
        x = torch.stack([x.detach().to(device, dtype) for x, _ in data])
        y = torch.stack([y.detach().to(device, dtype if loss == "mse" else torch.int64) for _, y in data])
        self._task = Task(x, y, batch_size, loss)
        self._engine, self.reason = choose_engine(engine, self._modules, self.runs, self._task)
        if loss == "cross_entropy":
            check_classes(self._modules, self.runs, self._task)
        count = len(self.runs)
        self._limits, self._patience = np.array(limits), patience
        self._status = np.full(count, _ACTIVE)
        self._own_epochs = np.zeros(count, dtype=np.int64)
        self._stale = np.zeros(count, dtype=np.int64)
        self._data_loss, self._total_loss = np.full(count, math.nan), np.full(count, math.nan)
        self._best = np.full(count, math.inf)
        self.epochs, self.step = 0, 0
        self._rows = self._first_rows()
        self._weights = self._rows.weights.clone()  # of runs that left, as they were then
        self._engine.begin(self._rows)

    def _first_rows(self) -> Rows:
        like = self._task.x
        depth = max(map(slots, self.runs))
        state = like.new_zeros((len(self.runs), depth, sum(p.numel() for p in self._modules[0].parameters())))
        for run, module, own in zip(self.runs, self._modules, state, strict=True):
            first_state(run, module, own)
        weights = torch.stack([flat_parameters(module) for module in self._modules])
        losses = torch.zeros(len(self.runs), 2, dtype=torch.float64, device=like.device)
        return Rows(list(range(len(self.runs))), weights, state, losses)

    @property
    def engine(self) -> str:
        """``fused`` or ``torch``."""
        return self._engine.name

    @property
    def loss(self) -> str:
        """``mse`` or ``cross_entropy``."""
        return self._task.loss

    @property
    def batches(self) -> int:
        """Steps of an epoch."""
        return self._task.batches

    @property
    def active(self) -> list[int]:
        """The numbers of the runs that go on."""
        return list(self._rows.members)

    def epoch(self) -> None:
        """Train all active runs to the end of their epoch; then those that are done leave."""
        self.advance(self.batches - self.step)

    def advance(self, steps: int) -> int:
        """Train all active runs for ``steps`` steps, or to the end of their epoch if that comes first.

        The bits do not depend on where an epoch is interrupted.

        Returns:
            How many steps that were; 0 if no run is active.

        Raises:
            ValueError: if ``steps`` is no whole number, 0 or more.
        """
        if not is_int(steps) or steps < 0:
            raise ValueError(f"Stack.advance: steps is {shown(steps)}; it takes a whole number, 0 or more")
        if not self._rows.members:
            return 0
        steps = min(steps, self.batches - self.step)
        self._engine.advance(self._rows, self.epochs, self.step, steps)
        self.step += steps
        if self.step == self.batches:
            self._end_epoch()
        return steps

    def _end_epoch(self) -> None:
        rows = self._rows
        means = rows.losses.cpu().numpy() / self.batches
        rows.losses.zero_()
        self.epochs, self.step = self.epochs + 1, 0
        members, loss = np.array(rows.members), means.sum(1)
        self._own_epochs[members] = self.epochs
        self._data_loss[members], self._total_loss[members] = means[:, 0], loss
        better = loss < self._best[members]
        self._stale[members] = np.where(better, 0, self._stale[members] + 1)
        self._best[members] = np.where(better, loss, self._best[members])
        done = self._limits[members] <= self.epochs
        if self._patience is not None:
            done |= self._stale[members] >= self._patience
        diverged = ~np.isfinite(loss)
        leaving = done | diverged
        if leaving.any():
            diverged[done] |= ~torch.isfinite(rows.weights[torch.from_numpy(done)]).all(1).cpu().numpy()
            self._status[members[done]], self._status[members[diverged]] = _FINISHED, _DIVERGED
            self._leave(leaving)

    def _leave(self, leaving: np.ndarray) -> None:
        rows = self._rows
        gone = np.flatnonzero(leaving)
        self._weights[np.array(rows.members)[gone]] = rows.weights[gone]
        self._rows = rows.kept(np.flatnonzero(~leaving).tolist())
        self._engine.begin(self._rows)

    def _all_weights(self) -> Tensor:
        weights = self._weights.clone()
        weights[self._rows.members] = self._rows.weights
        return weights

    def outcome(self, index: int) -> Outcome:
        """Where the run of this number stands; negative numbers count from the last.

        Raises:
            IndexError: if the stack has no such run.
        """
        members, index = self._rows.members, self._number(index)
        flat = self._rows.weights[members.index(index)] if index in members else self._weights[index]
        named = dict(self._modules[index].named_parameters())
        parts = flat.clone().split([p.numel() for p in named.values()])
        return Outcome(
            run=self.runs[index],
            status=STATUS[self._status[index]],
            epochs=int(self._own_epochs[index]),
            data_loss=float(self._data_loss[index]),
            loss=float(self._total_loss[index]),
            best_loss=float(self._best[index]),
            weights={name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)},
        )

    @property
    def outcomes(self) -> list[Outcome]:
        """Where every run stands."""
        return [self.outcome(index) for index in range(len(self.runs))]

    def module(self, index: int) -> nn.Module:
        """A copy of the module of this number with the weights that its run has now.

        Raises:
            IndexError: if the stack has no such run.
        """
        module, weights = copy.deepcopy(self._modules[index]), self.outcome(index).weights
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(weights[name])
        return module

    def expected_shares(self, others: Sequence[float] = ()) -> np.ndarray:
        """The share of its ``max_epochs`` that each run is expected to take, with those that runs of ``others`` took.

        A run that left took its own. For an active one it is the mean of the shares of all runs that took more than it has
        taken so far, and 1 where there is none: those that ended before say nothing about the runs that outlived them.
        """
        gone = self._status != _ACTIVE
        shares = self._own_epochs / self._limits
        known = np.concatenate([np.asarray(others, dtype=float), shares[gone]])
        for index in np.flatnonzero(~gone):
            beyond = known[known > self.epochs / self._limits[index]]
            shares[index] = beyond.mean() if beyond.size else 1.0
        return shares

    def _number(self, index: int) -> int:
        count = len(self.runs)
        if not isinstance(index, Integral) or not -count <= index < count:
            raise IndexError(f"Stack: run {shown(index)} of {count}")
        return index % count

    def remaining_steps(self, shares: np.ndarray | float = 1.0) -> float:
        """The run-steps that are left if runs take these shares of their ``max_epochs``: by default the most."""
        members = self._rows.members
        epochs = (np.broadcast_to(shares, self._limits.shape) * self._limits)[members] - self.epochs
        return float(np.maximum(epochs * self.batches - self.step, 0).sum())

    def state_dict(self) -> dict[str, Any]:
        """All that a stack of the same arguments needs to go on with the same bits: tensors, numbers, strings."""
        rows = self._rows
        return {
            "about": self._about(),
            "epochs": self.epochs,
            "step": self.step,
            "members": list(rows.members),
            "weights": self._all_weights(),
            "state": rows.state.clone(),
            "losses": rows.losses.clone(),
            **{name: torch.from_numpy(getattr(self, f"_{name}").copy()) for name in _BOOKS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to the moment of :meth:`state_dict`.

        Raises:
            ValueError: for the state of another stack, or of another engine, which would not go on with the same bits, and for
                what is no state or a damaged one; the stack stays as it is then.
        """
        check_state(state, self.state_dict(), self.batches)
        device, members = self._task.x.device, list(state["members"])
        self.epochs, self.step = state["epochs"], state["step"]
        for name in _BOOKS:
            setattr(self, f"_{name}", state[name].numpy().copy())
        self._weights = state["weights"].to(device, copy=True)
        tensors = (state[key].to(device, copy=True) for key in ("state", "losses"))
        self._rows = Rows(members, self._weights[members], *tensors)
        self._engine.begin(self._rows)

    @functools.cached_property
    def _digests(self) -> dict[str, list[str]]:
        """Of what no step changes: a state is made every half minute."""
        return {
            "networks": [_digest(_lasting(signature(module)).encode()) for module in self._modules],
            "data": [_digest(tensor.cpu().numpy().tobytes()) for tensor in (self._task.x, self._task.y)],
        }

    def _about(self) -> dict[str, Any]:
        return {
            "runs": json.loads(json.dumps([asdict(run) for run in self.runs])),  # NumPy's numbers are no plain values
            "weights": self._weights.shape[1],
            **self._digests,
            "batch_size": self._task.batch_size,
            "loss": self._task.loss,
            "patience": self._patience,
            "max_epochs": self._limits.tolist(),
            "dtype": str(self._task.x.dtype),
            "engine": self.engine,
        }


_BOOKS = ("status", "own_epochs", "stale", "data_loss", "total_loss", "best")


def _lasting(value: Any) -> str:
    """Its ``repr`` without addresses, which are others in the next process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def train(
    modules: Sequence[nn.Module], runs: Sequence[Run], data: Sequence[tuple[Tensor, Tensor]], **options: Any
) -> list[Outcome]:
    """Train all runs to their end; :class:`Stack` says what is minimised and when a run ends.

    Args:
        modules: as for :class:`Stack`.
        runs: as for :class:`Stack`.
        data: as for :class:`Stack`.
        **options: the other arguments of :class:`Stack`.

    Returns:
        One outcome for each run.

    Raises:
        ValueError: as :class:`Stack` does.

    Example:
        >>> import torch
        >>> from sparsenn.training.stacked import Run, train
        >>> x = torch.randn(64, 4)
        >>> nets = [torch.nn.Linear(4, 1) for _ in range(2)]
        >>> outcomes = train(nets, [Run(lr=0.05), Run(lr=1e9)], [(x, x[:, :1])], patience=20, max_epochs=50)
        >>> [outcome.status for outcome in outcomes]
        ['finished', 'diverged']
    """
    stack = Stack(modules, runs, data, **options)
    while stack.active:
        stack.epoch()
    return stack.outcomes
