"""What a stack takes, checked before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsenn.training.checks import is_int
from sparsenn.training.stacked.run import Run

LOSSES = ("mse", "cross_entropy")
DTYPES = (torch.float32, torch.float64)

_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)


def check_sizes(
    modules: Sequence[nn.Module],
    runs: Sequence[Run],
    data: Sequence[Any],
    batch_size: Any,
    patience: Any,
    max_epochs: Any,
    dtype: Any,
) -> list[int]:
    """Every number that a stack is given; returns the largest number of epochs of each run."""
    count = len(runs)
    if not count or len(modules) != count:
        raise ValueError(
            f"Stack: it got {len(modules)} modules and {count} runs; it takes one of each for every run, 1 or more"
        )
    for name, value, takes in (
        ("batch_size", batch_size, is_int),
        ("patience", patience, lambda v: v is None or is_int(v)),
    ):
        if not takes(value) or (value is not None and value < 1):
            raise ValueError(f"Stack: {name} is {value!r}; it takes a whole number, 1 or more")
    limits = [max_epochs] * count if is_int(max_epochs) else max_epochs
    if not isinstance(limits, Sequence) or len(limits) != count or not all(is_int(own) and own >= 1 for own in limits):
        raise ValueError(f"Stack: max_epochs is {max_epochs!r}; it takes a whole number, 1 or more, or {count} of them")
    if dtype not in DTYPES:
        raise ValueError(f"Stack: dtype is {dtype}; it takes {' or '.join(map(str, DTYPES))}")
    for index, run in enumerate(runs):
        if run.data >= len(data):
            raise ValueError(f"Stack: run {index} has data {run.data}; there are {len(data)} data sets, counted from 0")
    return list(limits)


def check_modules(modules: Sequence[nn.Module]) -> None:
    """Trainable parameters alone, and the same shapes in the same order everywhere."""
    shapes = [[tuple(p.shape) for p in module.parameters()] for module in modules]
    for index, (module, own) in enumerate(zip(modules, shapes, strict=True)):
        kept = [name for name, _ in module.named_buffers()]
        frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
        if kept or frozen:
            what = f"buffers ({', '.join(kept)})" if kept else f"parameters that do not require grad ({', '.join(frozen)})"
            raise ValueError(f"Stack: module {index} has {what}; a stack takes modules whose tensors are all trained")
        chance = [name for name, part in module.named_modules() if isinstance(part, _RANDOM)]
        if chance:
            raise ValueError(f"Stack: module {index} has random layers ({', '.join(chance)}); a stack takes none")
        if not own:
            raise ValueError(f"Stack: module {index} has no parameters; there is nothing to train")
        if own != shapes[0]:
            raise ValueError(
                f"Stack: module {index} has parameters of shapes {own}, module 0 of {shapes[0]}; the modules of a stack "
                "differ in weights and activations only"
            )


def check_data(data: Sequence[tuple[Tensor, Tensor]], loss: str, runs: Sequence[Run]) -> None:
    """Floating-point inputs, targets of the loss's kind, the same shapes in every data set."""
    if loss not in LOSSES:
        raise ValueError(f"Stack: loss is {loss!r}; it takes one of {', '.join(LOSSES)}")
    for index, (x, y) in enumerate(data):
        if not x.is_floating_point() or x.dim() < 1 or not len(x):
            raise ValueError(
                f"Stack: x of data set {index} is {_described(x)}; it takes floating-point samples (N, ...), N > 0"
            )
        if len(y) != len(x) or (loss == "mse") != y.is_floating_point():
            takes = f"floating-point targets ({len(x)}, ...)" if loss == "mse" else f"int64 classes ({len(x)},)"
            raise ValueError(f"Stack: y of data set {index} is {_described(y)}; with loss {loss} it takes {takes}")
        if (x.shape, y.shape) != (data[0][0].shape, data[0][1].shape):
            raise ValueError(
                f"Stack: data set {index} has x {tuple(x.shape)} and y {tuple(y.shape)}, data set 0 "
                f"{tuple(data[0][0].shape)} and {tuple(data[0][1].shape)}; the data sets of a stack have one shape"
            )


@torch.no_grad()
def check_classes(modules: Sequence[nn.Module], runs: Sequence[Run], x: Tensor, y: Tensor) -> None:
    """Every run's labels are 0 or more and below the number of its network's outputs; ``x`` and ``y`` are all data sets."""
    low, high = (found.tolist() for found in y.flatten(1).aminmax(dim=1))
    for index, (module, run) in enumerate(zip(modules, runs, strict=True)):
        try:
            classes = module(x[run.data, :1]).shape[1]
        except (RuntimeError, ValueError, IndexError):
            return  # of networks that can't take the samples the engine says why
        wrong = [label for label in (low[run.data], high[run.data]) if not 0 <= label < classes]
        if wrong:
            where = f"run {index} has the label {wrong[0]} in data set {run.data}"
            raise ValueError(f"Stack: {where}; its network takes labels from 0 to {classes - 1}")


def _described(x: Tensor) -> str:
    return f"a tensor of {x.dtype} in shape {tuple(x.shape)}"
