"""A stored network as a PyTorch module again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsenn.nn.spectral import SpectralGate
from sparsenn.runtime.architecture import MODULE_KINDS, Op
from sparsenn.runtime.errors import ArtefactError


class Network(nn.Module):
    """The operations of a sparse artefact; made by :func:`sparsenn.load`.

    Its modules and tensors have the names of the model that was saved. It is an ordinary module: it can be trained, compacted,
    traced and saved again.

    Example:
        >>> import os, tempfile, torch, sparsenn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = sparsenn.save(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()), os.path.join(folder, "net"))
        ...     sparsenn.load(path)
        Network(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
        )
    """

    def __init__(self, ops: Iterable[Op], shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self._ops = list(ops)
        made: dict[str, str] = {}
        for op in self._ops:
            if op.module and made.setdefault(op.module, op.kind) != op.kind:
                raise ArtefactError(f"the module {op.module!r} is of two kinds, {made[op.module]} and {op.kind}")
            if op.module and not _get(self, op.module):
                _set(self, op.module, _module(op, shapes))

    def forward(self, x: Tensor) -> Tensor:
        """The last result."""
        return self.results(x)[-1]

    def results(self, x: Tensor) -> list[Tensor]:
        """The input, then the result of each operation."""
        results = [x]
        for op in self._ops:
            inputs = [results[i] for i in op.of]
            if op.module:
                results.append(self.get_submodule(op.module)(*inputs))
            else:
                results.append(_FUNCTIONS[op.kind](*inputs, **_arguments(op)))
        return results


def _get(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name)
    except AttributeError:
        return None


def _set(root: nn.Module, name: str, module: nn.Module) -> None:
    *parents, last = name.split(".")
    for segment in (*parents, last):
        if hasattr(nn.Module, segment) or segment in _RESERVED:
            raise ArtefactError(f"the module {name!r} has the name of an attribute that every module has")
    place = root
    for segment in parents:
        if segment not in place._modules:
            place.add_module(segment, nn.Module())
        place = place._modules[segment]  # type: ignore[assignment]
    if last in place._modules:
        raise ArtefactError(f"the module {name!r} holds other modules")
    if type(place) is not nn.Module and place is not root:
        raise ArtefactError(f"the module {name!r} lies inside of another layer")
    place.add_module(last, module)


_RESERVED = ("training", "_ops", *vars(nn.Module()))


def _arguments(op: Op) -> dict[str, Any]:
    """The options as the functions of PyTorch name them."""
    names = {
        "kernel": "kernel_size",
        "ceil": "ceil_mode",
        "include_pad": "count_include_pad",
        "size": "output_size",
    }
    arguments = {names.get(name, name): tuple(v) if isinstance(v, list) else v for name, v in op.options.items()}
    if op.kind == "gelu":
        arguments = {"approximate": "tanh" if arguments["tanh"] else "none"}
    return arguments


def _module(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    arguments = _arguments(op)
    if op.kind not in MODULE_KINDS:
        return _CLASSES[op.kind](**arguments)
    weight, has_bias = shapes.get(f"{op.module}.weight"), f"{op.module}.bias" in shapes
    options: dict[str, Any] = {"device": "meta"}
    if op.kind.startswith("batchnorm"):
        mean = shapes.get(f"{op.module}.running_mean")
        if mean is None or len(mean) != 1:
            raise ArtefactError(f"the layer {op.title} lacks its running_mean")
        return _CLASSES[op.kind](mean[0], **arguments, affine=weight is not None, **options)
    if op.kind == "gate":
        spectrum = shapes.get(f"{op.module}.lambda_out")
        if spectrum is None or len(spectrum) != 1:
            raise ArtefactError(f"the layer {op.title} lacks its lambda_out of one dimension")
        return SpectralGate(spectrum[0], **arguments, **options)
    wanted = 2 if op.kind == "linear" else 3 if op.kind == "conv1d" else 4
    if weight is None or len(weight) != wanted:
        raise ArtefactError(f"the layer {op.title} lacks its weight of {wanted} dimensions")
    if op.kind == "linear":
        return nn.Linear(weight[1], weight[0], bias=has_bias, **options)
    groups = arguments["groups"]
    if weight[0] % groups or 0 in weight:
        raise ArtefactError(f"the layer {op.title} has {weight[0]} channels in {groups} groups, and a kernel {weight[2:]}")
    return _CLASSES[op.kind](weight[1] * groups, weight[0], weight[2:], **arguments, bias=has_bias, **options)


_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "batchnorm1d": nn.BatchNorm1d,
    "batchnorm2d": nn.BatchNorm2d,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "softmax": nn.Softmax,
    "maxpool1d": nn.MaxPool1d,
    "maxpool2d": nn.MaxPool2d,
    "avgpool1d": nn.AvgPool1d,
    "avgpool2d": nn.AvgPool2d,
    "adaptiveavgpool1d": nn.AdaptiveAvgPool1d,
    "adaptiveavgpool2d": nn.AdaptiveAvgPool2d,
    "adaptivemaxpool1d": nn.AdaptiveMaxPool1d,
    "adaptivemaxpool2d": nn.AdaptiveMaxPool2d,
    "flatten": nn.Flatten,
    "identity": nn.Identity,
    "dropout": nn.Dropout,
}
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "softmax": torch.softmax,
    "maxpool1d": F.max_pool1d,
    "maxpool2d": F.max_pool2d,
    "avgpool1d": F.avg_pool1d,
    "avgpool2d": F.avg_pool2d,
    "adaptiveavgpool1d": F.adaptive_avg_pool1d,
    "adaptiveavgpool2d": F.adaptive_avg_pool2d,
    "adaptivemaxpool1d": F.adaptive_max_pool1d,
    "adaptivemaxpool2d": F.adaptive_max_pool2d,
    "flatten": lambda x: x.flatten(1),
    "add": torch.add,
    "identity": lambda x: x,
    "dropout": lambda x, p: x,
}
