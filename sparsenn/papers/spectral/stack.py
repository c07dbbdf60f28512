"""Nets of one structure that train together: one step of torch for all of them, each with its own data order."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from sparsenn.training.batches import epoch_order
from sparsenn.training.checkpoint import load_checkpoint, save_checkpoint
from sparsenn.training.errors import TrainingDiverged
from sparsenn.training.logging import Progress, Quiet

_SECONDS_BETWEEN_CHECKPOINTS = 60.0


class _Objective(nn.Module):
    """A net, its loss and its penalty as one module, so that substituted parameters reach the penalty too."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], penalty: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.net, self.loss, self.penalty = net, loss, penalty

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.net(inputs), targets) + self.penalty(self.net)


def train_together(
    nets: Sequence[nn.Module],
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    penalty: Callable[[Any], Tensor],
    lr: float,
    batch_size: int,
    epochs: int,
    seeds: Sequence[int],
    checkpoint: Path | None = None,
    label: str = "",
    progress: Progress | None = None,
) -> None:
    """Train nets of one structure by Adam, in place, each as it would train alone.

    The parameters are stacked, the losses computed by ``vmap`` and added: the gradient of the sum with respect to one net's
    parameters is that of its own loss, and Adam treats each entry by itself.

    Args:
        nets: the nets; frozen parameters stay as they are.
        inputs: (N, ...), for all nets.
        targets: (N, ...), for all nets.
        loss: takes a batch of outputs and one of targets, gives a 0-d tensor.
        penalty: takes a net, gives a 0-d tensor.
        lr: Adam's learning rate.
        batch_size: samples a step; the last step of an epoch may have fewer.
        epochs: passes over the samples.
        seeds: for each net, what decides its order of the samples.
        checkpoint: a file that is written about once a minute and read if it is there and bears the same label; removed in the
            end. Nets, samples and settings have to be those of the run that wrote it.
        label: what the checkpoint is one of.
        progress: who watches.

    Raises:
        TrainingDiverged: if a loss is not finite at the end of an epoch.
        RunFolderError: if the checkpoint is damaged.
    """
    objectives = [_Objective(net, loss, penalty).train() for net in nets]
    parameters, buffers = stack_module_state(objectives)
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    others = {name: t for name, t in (parameters | buffers).items() if name not in trained}
    skeleton = copy.deepcopy(objectives[0]).to("meta")
    optimizer = torch.optim.Adam(trained.values(), lr, fused=True)
    losses_of = vmap(lambda own, rest, x, y: functional_call(skeleton, {**own, **rest}, (x, y)))
    done = 0
    if checkpoint is not None and checkpoint.exists() and (state := load_checkpoint(checkpoint))["label"] == label:
        done = state["epoch"]
        with torch.no_grad():
            for name, value in state["tensors"].items():
                (trained | others)[name].copy_(value)
        optimizer.load_state_dict(state["optimizer"])
    watcher = progress or Quiet()
    watcher.begin(label, epochs, done)
    saved = time.monotonic()
    for epoch in range(done, epochs):
        orders = torch.stack([epoch_order(len(inputs), seed, epoch) for seed in seeds]).to(inputs.device)
        for chosen in orders.split(batch_size, dim=1):
            optimizer.zero_grad()
            losses = losses_of(trained, others, _rows(inputs, chosen), _rows(targets, chosen))
            losses.sum().backward()
            optimizer.step()
        if not losses.isfinite().all():
            worst = seeds[int((~losses.isfinite()).nonzero()[0])]
            raise TrainingDiverged(
                f"{label}: the loss of seed {worst} is not a finite number in epoch {epoch + 1}", epoch + 1, None
            )
        watcher.advance(epoch + 1, None)
        if checkpoint is not None and time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            tensors = {name: t.detach() for name, t in (trained | others).items()}
            state = {"label": label, "epoch": epoch + 1, "tensors": tensors, "optimizer": optimizer.state_dict()}
            save_checkpoint(checkpoint, state)
            saved = time.monotonic()
    with torch.no_grad():
        for i, objective in enumerate(objectives):
            own = objective.state_dict()
            for name, value in (trained | others).items():
                own[name].copy_(value[i])
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _rows(samples: Tensor, chosen: Tensor) -> Tensor:
    """``samples[chosen]``; selecting rows in one list is the faster way."""
    return samples.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
