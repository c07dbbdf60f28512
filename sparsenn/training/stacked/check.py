"""What a stack takes, checked before anything is built."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsenn.training.checks import COUNT, DEVICE, Check, first_line, one_of, shown
from sparsenn.training.errors import ConfigError
from sparsenn.training.presets import ENGINES
from sparsenn.training.session import check_device
from sparsenn.training.stacked.rows import Task
from sparsenn.training.stacked.run import Run

LOSSES = ("mse", "cross_entropy")
DTYPES = (torch.float32, torch.float64)

_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


def check_options(**given: Any) -> None:
    """What is one for all runs, by the names of the stack's arguments."""
    for name, value in given.items():
        if not _OPTIONS[name].fits(value):
            raise ValueError(f"Stack: {name} is {shown(value)}; it takes {_OPTIONS[name].takes}")
    try:
        check_device(str(given["device"]))
    except ConfigError as error:
        raise ValueError(f"Stack: {error}") from error


def check_lists(**given: Any) -> None:
    """Modules, runs and data are lists, of what they take."""
    for name, values in given.items():
        takes = f"it takes a list of {_LISTS[name].takes}"
        if not isinstance(values, Sequence):
            raise ValueError(f"Stack: {name} is {_described(values)}; {takes}")
        for index, value in enumerate(values):
            if not _LISTS[name].fits(value):
                raise ValueError(f"Stack: {name}[{index}] is {_described(value)}; {takes}")


def check_sizes(modules: Sequence[nn.Module], runs: Sequence[Run], data: Sequence[Any], max_epochs: Any) -> list[int]:
    """The lists fit each other; returns the largest number of epochs of each run."""
    count = len(runs)
    if not count or len(modules) != count:
        raise ValueError(
            f"Stack: it got {len(modules)} modules and {count} runs; it takes one of each for every run, 1 or more"
        )
    for index, run in enumerate(runs):
        if run.data >= len(data):
            raise ValueError(f"Stack: run {index} has data {run.data}; there are {len(data)} data sets, counted from 0")
    limits = max_epochs if isinstance(max_epochs, Sequence) else [max_epochs] * count
    if len(limits) != count or not all(map(COUNT.fits, limits)):
        raise ValueError(f"Stack: max_epochs is {shown(max_epochs)}; it takes {COUNT.takes}, or a list of {count} of them")
    return list(limits)


def check_modules(modules: Sequence[nn.Module]) -> None:
    """Trainable parameters alone, and the same shapes in the same order everywhere."""
    shapes: list[list[tuple[int, ...]]] = []
    for index, module in enumerate(modules):
        parameters = dict(module.named_parameters())
        kept = [name for name, _ in module.named_buffers()]
        frozen = [name for name, p in parameters.items() if not p.requires_grad]
        if kept or frozen:
            what = f"buffers ({', '.join(kept)})" if kept else f"parameters that do not require grad ({', '.join(frozen)})"
            raise ValueError(f"Stack: module {index} has {what}; a stack takes modules whose tensors are all trained")
        empty = [name for name, p in parameters.items() if _has_no_numbers(p)]
        if empty:
            raise ValueError(
                f"Stack: module {index} has parameters without real numbers ({', '.join(empty)}); a stack needs them"
            )
        chance = [name for name, part in module.named_modules() if isinstance(part, _RANDOM)]
        if chance:
            raise ValueError(f"Stack: module {index} has random layers ({', '.join(chance)}); a stack takes none")
        if not parameters:
            raise ValueError(f"Stack: module {index} has no parameters; there is nothing to train")
        shapes.append([tuple(p.shape) for p in parameters.values()])
        if shapes[index] != shapes[0]:
            raise ValueError(
                f"Stack: module {index} has parameters of shapes {shapes[index]}, module 0 of {shapes[0]}; the modules of a "
                "stack differ in weights and activations only"
            )


def copies(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """A copy of each, since a stack reads its modules only."""
    found = []
    for index, module in enumerate(modules):
        try:
            found.append(copy.deepcopy(module))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"Stack: module {index} can't be copied by copy.deepcopy: {first_line(error)}") from error
    return found


def check_data(data: Sequence[tuple[Tensor, Tensor]], loss: str) -> None:
    """Floating-point inputs, targets of the loss's kind, the same shapes in every data set."""
    for index, (x, y) in enumerate(data):
        if not _is_dense(x) or not x.is_floating_point() or x.dim() < 1 or not len(x):
            raise ValueError(
                f"Stack: x of data set {index} is {_described(x)}; it takes a tensor of floating-point samples (N, ...), N > 0"
            )
        fits = _is_dense(y) and y.dim() > 0 and len(y) == len(x)
        if not fits or not (y.is_floating_point() if loss == "mse" else y.dtype == torch.int64):
            takes = f"floating-point targets ({len(x)}, ...)" if loss == "mse" else f"int64 classes ({len(x)},)"
            raise ValueError(f"Stack: y of data set {index} is {_described(y)}; with loss {loss} it takes a tensor of {takes}")
        if (x.shape, y.shape) != (data[0][0].shape, data[0][1].shape):
            raise ValueError(
                f"Stack: data set {index} has x {tuple(x.shape)} and y {tuple(y.shape)}, data set 0 "
                f"{tuple(data[0][0].shape)} and {tuple(data[0][1].shape)}; the data sets of a stack have one shape"
            )


@torch.no_grad()
def check_classes(modules: Sequence[nn.Module], runs: Sequence[Run], task: Task) -> None:
    """Every run's labels are 0 or more and below the number of its network's outputs."""
    low, high = (found.tolist() for found in task.y.flatten(1).aminmax(dim=1))
    for index, (module, run) in enumerate(zip(modules, runs, strict=True)):
        classes = module(task.x[run.data, : task.batch_size]).shape[1]
        wrong = [label for label in (low[run.data], high[run.data]) if not 0 <= label < classes]
        if wrong:
            where = f"run {index} has the label {wrong[0]} in data set {run.data}"
            raise ValueError(f"Stack: {where}; its network takes labels from 0 to {classes - 1}")


def _described(value: Any) -> str:
    """A value that is of the wrong kind, in a message."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    fault = " that has no values" if value.is_meta else "" if value.layout == torch.strided else " that is sparse"
    return f"a tensor of {value.dtype} in shape {tuple(value.shape)}{fault}"


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _has_no_numbers(p: nn.Parameter) -> bool:
    return nn.parameter.is_lazy(p) or p.is_meta or not p.is_floating_point()


_LISTS = {
    "modules": Check(lambda value: isinstance(value, nn.Module), "networks, a torch.nn.Module for each run"),
    "runs": Check(lambda value: isinstance(value, Run), "Run objects"),
    "data": Check(lambda value: isinstance(value, tuple | list) and len(value) == 2, "pairs (x, y) of tensors"),
}
_OPTIONS = {
    "batch_size": COUNT,
    "loss": one_of(LOSSES),
    "patience": Check(lambda value: value is None or COUNT.fits(value), f"{COUNT.takes}, or None"),
    "dtype": Check(lambda value: isinstance(value, torch.dtype) and value in DTYPES, f"{' or '.join(map(str, DTYPES))}"),
    "device": Check(lambda value: isinstance(value, str | torch.device) and DEVICE.fits(str(value)), DEVICE.takes),
    "engine": one_of(ENGINES),
}
