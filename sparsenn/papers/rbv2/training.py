"""Nets of the paper's task in training: those of several seeds together, from a checkpoint where one was left."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsenn import metrics, penalties
from sparsenn.metrics.spectrum import mean_share_above
from sparsenn.models import SkipMLP
from sparsenn.nn import RidgeNet
from sparsenn.optim import ridge_proximal
from sparsenn.papers.rbv2.experiment import Choices, grid_data, make_net, singular_values
from sparsenn.papers.rbv2.stack import RidgeStack
from sparsenn.training.batches import epoch_order
from sparsenn.training.checkpoint import load_checkpoint, save_checkpoint
from sparsenn.training.errors import TrainingDiverged
from sparsenn.training.logging import Progress, Quiet

_RECORDS = 100  # evenly spaced in a run, beside those of its first epochs
_EARLY = tuple(round(10 ** (i / 5)) for i in range(26))  # up to 1e5, log-spaced
_SECONDS_BETWEEN_CHECKPOINTS = 30.0

# epoch, share of weights above 1e-3, mean squared error, rank between the hidden layers (None for the control, whose matrix
# would take seconds a time)
Point = tuple[int, float, float, "int | None"]


class _Way(Protocol):
    """How the gradients of nets are found."""

    nets: nn.ModuleList

    def gradients(self, inputs: Tensor, targets: Tensor, lam: Tensor | None, *, mean: bool) -> None:
        """Overwrite the gradients of all nets."""


class _Autograd:
    """The way of the control, for which the norm is not defined."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        self.nets = nn.ModuleList(nets)

    def gradients(self, inputs: Tensor, targets: Tensor, lam: Tensor | None, *, mean: bool) -> None:
        self.nets.zero_grad()
        for net, x, y in zip(self.nets, inputs, targets, strict=True):
            squares = (net(x) - y).square()
            loss = squares.mean() if mean else squares.sum()
            (loss if lam is None else loss + lam * penalties.rbv2(net)).backward()


def train(
    net: str,
    penalty: str,
    lam: float,
    seeds: Sequence[int],
    epochs: int,
    choices: Choices,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> list[tuple[nn.Module, list[Point]]]:
    """Train the nets of some seeds, each as it would train alone but for rounding, and give each with its curve.

    A proximal net is given, and looked at for its curve, without the weights into neurons that the steps have silenced.

    Args:
        net: one of ``experiment.NETS``.
        penalty: one of ``experiment.PENALTIES``. Weight decay acts through Adam, which adds its gradient 2 λ w.
        lam: λ.
        seeds: of targets, start and batches.
        epochs: passes over the samples.
        choices: what the text leaves open.
        checkpoint: a file that is written twice a minute, and read if it is there. It has to be these runs' own; remove it once
            their results are kept.
        progress: who watches.

    Raises:
        ValueError: for the norm or proximal steps on the control.
        TrainingDiverged: if an error is not finite where the curve is recorded.
        RunFolderError: if the checkpoint is damaged.
    """
    if net != "ridge" and penalty in ("rbv2", "proximal"):
        raise ValueError(f"rbv2: the penalty of the control is {penalty!r}; it takes 'weight decay' or 'none'")
    data = [grid_data(choices.outputs, seed) for seed in seeds]
    x, y = torch.stack([x for x, _ in data]), torch.stack([y for _, y in data])
    start = [make_net(net, seed, choices) for seed in seeds]
    way: _Way = RidgeStack([n for n in start if isinstance(n, RidgeNet)]) if net == "ridge" else _Autograd(start)
    optimizer = _optimizer(way, penalty, lam, choices)
    strength = torch.tensor(lam) if penalty == "rbv2" else None
    when = {e for e in _EARLY if e < epochs} | {round(epochs * i / _RECORDS) for i in range(_RECORDS + 1)}
    done, curves = 0, [[_point(0, n, penalty, *xy)] for n, xy in zip(way.nets, data, strict=True)]
    if checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint)
        done, curves = state["epoch"], state["curves"]
        way.nets.load_state_dict(state["nets"])
        optimizer.load_state_dict(state["optimizer"])
    watcher, saved = progress or Quiet(), time.monotonic()
    watcher.begin(f"{net}, {penalty}, λ = {lam:g}", epochs, done)
    for epoch in range(done, epochs):
        for inputs, targets in _batches(x, y, choices.batch_size, seeds, epoch):
            way.gradients(inputs, targets, strength, mean=choices.reduction == "mean")
            optimizer.step()
        if epoch + 1 in when:
            for curve, seed, n, xy in zip(curves, seeds, way.nets, data, strict=True):
                if not math.isfinite(_error(n, *xy)):
                    message = f"rbv2: the error of {net}, {penalty}, seed {seed} is not a finite number after epoch {epoch + 1}"
                    raise TrainingDiverged(message, epoch + 1, None)
                curve.append(_point(epoch + 1, n, penalty, *xy))
            watcher.advance(epoch + 1, None)
        if checkpoint is not None and time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            state = {"epoch": epoch + 1, "curves": curves, "nets": way.nets.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(checkpoint, state)
            saved = time.monotonic()
    return [(_cleared(n, penalty), curve) for n, curve in zip(way.nets, curves, strict=True)]


def _optimizer(way: _Way, penalty: str, lam: float, choices: Choices) -> torch.optim.Optimizer:
    if penalty == "proximal":
        return ridge_proximal(way.nets, lambda groups: torch.optim.Adam(groups, lr=choices.lr, fused=True), lam)
    parameters = [way.weights] if isinstance(way, RidgeStack) else way.nets.parameters()
    decay = 2 * lam if penalty == "weight decay" else 0.0
    return torch.optim.Adam(parameters, lr=choices.lr, weight_decay=decay, fused=True)


def _batches(x: Tensor, y: Tensor, size: int, seeds: Sequence[int], epoch: int) -> list[tuple[Tensor, Tensor]]:
    if size >= x.shape[1]:
        return [(x, y)]
    orders = torch.stack([epoch_order(x.shape[1], seed, epoch) for seed in seeds])
    x, y = (t.gather(1, orders[..., None].expand_as(t)) for t in (x, y))
    return list(zip(x.split(size, 1), y.split(size, 1), strict=True))


def _cleared(net: nn.Module, penalty: str) -> nn.Module:
    """The same function without the weights into neurons that proximal steps have silenced."""
    return copy.deepcopy(net).balance_() if penalty == "proximal" and isinstance(net, RidgeNet) else net


@torch.no_grad()
def _error(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return (net(x) - y).square().mean().item()


@torch.no_grad()
def _point(epoch: int, net: nn.Module, penalty: str, x: Tensor, y: Tensor) -> Any:
    net = _cleared(net, penalty)
    rank = None if isinstance(net, SkipMLP) else metrics.effective_rank(singular_values(net))
    return epoch, mean_share_above(net), _error(net, x, y), rank
