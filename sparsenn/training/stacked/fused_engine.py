"""Small networks of known layers: many steps of all runs in one call of a compiled operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from sparsenn import _extension
from sparsenn.nn.patch_conv import PatchConv1d
from sparsenn.ops import PatchLayer, RunSettings, stacked_steps_, stacked_tables
from sparsenn.ops.stacked_steps import MAX_DEPTH
from sparsenn.training.stacked.rows import Rows, Task
from sparsenn.training.stacked.run import Run

_ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.GELU: "gelu"}
_IDENTITY = "identity"


class NotCoveredError(ValueError):
    """The operator does not compute these networks; the message is the reason."""


class FusedEngine:
    """All steps through ``sparsenn.ops.stacked_steps_``: a run's bits depend on nothing but the run.

    Args:
        modules: one for each run of the stack.
        runs: their settings.
        task: data and loss.

    Raises:
        NotCoveredError: for layers, activations or data that the operator does not know.
    """

    name = "fused"

    def __init__(self, modules: Sequence[nn.Module], runs: Sequence[Run], task: Task) -> None:
        self.task = task
        found = [layers_of(module, task) for module in modules]
        self._layers = found[0][0]
        for index, (layers, _, _) in enumerate(found):
            if layers != self._layers:
                raise NotCoveredError(f"the layers of module {index} are others than those of module 0")
        deepest = max((run.depth for run in runs if run.optimizer == "factorized"), default=1)
        if deepest > MAX_DEPTH:
            raise NotCoveredError(f"depth {deepest}, which is beyond {MAX_DEPTH}")
        self._settings = [_settings(run, *kinds) for run, (_, *kinds) in zip(runs, found, strict=True)]

    def begin(self, rows: Rows) -> None:
        """Write the tables of settings anew."""
        self._tables = stacked_tables([self._settings[member] for member in rows.members])

    def advance(self, rows: Rows, epoch: int, first: int, count: int) -> None:
        """One call."""
        stacked_steps_(
            rows.weights,
            rows.state,
            rows.losses,
            self.task.x,
            self.task.y,
            *self._tables,
            self._layers,
            batch_size=self.task.batch_size,
            epoch=epoch,
            first=first,
            steps=count,
        )


def has_kernel(device: torch.device) -> bool:
    """Whether a compiled library serves the operator there."""
    return _extension.loaded(device.type)


def _settings(run: Run, activation: str, last: str) -> RunSettings:
    return RunSettings(
        seed=run.seed,
        data=run.data,
        activation=activation,
        last=last,
        optimizer=run.optimizer,
        penalty=run.penalty,
        depth=run.depth,
        lr=run.lr,
        lam=run.lam,
        momentum=run.momentum,
        beta1=run.betas[0],
        beta2=run.betas[1],
        eps=run.eps,
        clipping=run.clipping,
        weight_decay=run.weight_decay,
    )


def layers_of(module: nn.Module, task: Task) -> tuple[list[PatchLayer], str, str]:
    """The layers of a module as the operator takes them, the activation between them, and the one after the last.

    Raises:
        NotCoveredError: for a module that is no chain of linear layers and patch convolutions with one activation between.
    """
    if task.x.dim() != 3 or task.y.dim() != (2 if task.loss == "cross_entropy" else 3):
        raise NotCoveredError("samples and targets that are not vectors")
    layers: list[PatchLayer] = []
    after: list[str] = []
    shape: tuple[int, ...] = (task.x.shape[2],)
    for own in _chain(module):
        if isinstance(own, nn.Linear | PatchConv1d):
            layers.append(_layer(own, shape))
            after.append(_IDENTITY)
            shape = (layers[-1].outputs,) if isinstance(own, nn.Linear) else (own.out_channels, shape[1] // own.kernel_size)
        elif type(own) in _ACTIVATIONS and after and after[-1] == _IDENTITY and getattr(own, "approximate", "none") == "none":
            after[-1] = _ACTIVATIONS[type(own)]
        elif isinstance(own, nn.Unflatten | nn.Flatten):
            shape = _reshaped(own, shape)
        elif not isinstance(own, nn.Identity):
            raise NotCoveredError(f"a {type(own).__name__} in this place")
    if not layers or sum(layer.parameters for layer in layers) != sum(p.numel() for p in module.parameters()):
        raise NotCoveredError("parameters that layers share")
    hidden = set(after[:-1])
    if len(hidden) > 1 or len(shape) > 1:
        raise NotCoveredError("several activations in a network" if len(hidden) > 1 else "an output that is not a vector")
    if task.loss == "mse" and shape[0] != task.y.shape[2]:
        raise NotCoveredError(f"an output of length {shape[0]} for targets of length {task.y.shape[2]}")
    return layers, hidden.pop() if hidden else after[-1], after[-1]


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    if any(getattr(module, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks")):
        raise NotCoveredError("forward hooks")
    if type(module) is nn.Sequential:
        for own in module:
            yield from _chain(own)
    elif type(module) in (nn.Linear, PatchConv1d, nn.Unflatten, nn.Flatten, nn.Identity, *_ACTIVATIONS):
        yield module
    else:
        raise NotCoveredError(f"a {type(module).__name__}")


def _layer(own: nn.Linear | PatchConv1d, shape: tuple[int, ...]) -> PatchLayer:
    if isinstance(own, nn.Linear):
        if shape != (own.in_features,):
            raise NotCoveredError(f"a Linear of {own.in_features} inputs on a sample of shape {shape}")
        return PatchLayer(own.in_features, own.out_features, bias=own.bias is not None)
    if len(shape) != 2 or shape[0] != own.in_channels or shape[1] < own.kernel_size:
        raise NotCoveredError(f"a PatchConv1d of {own.in_channels} channels on a sample of shape {shape}")
    return PatchLayer(own.in_channels, own.out_channels, shape[1], own.kernel_size, own.filters, own.bias is not None)


def _reshaped(own: nn.Unflatten | nn.Flatten, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(own, nn.Flatten) and (own.start_dim, own.end_dim) == (1, -1):
        return (int(torch.Size(shape).numel()),)
    if isinstance(own, nn.Unflatten) and own.dim == 1 and shape == (int(torch.Size(own.unflattened_size).numel()),):
        return tuple(own.unflattened_size)
    raise NotCoveredError(f"{own} on a sample of shape {shape}")
