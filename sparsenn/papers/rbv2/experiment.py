"""The task of the paper's experiments, its nets, and what is measured of a trained one.

The text leaves open what each choice here says: the output has one number (the data have one; d = 16 is then the width between
the blocks), a batch is all 81 points, the loss is the mean of the squares, and the control's later layers see the input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from sparsenn import metrics
from sparsenn.metrics.spectrum import exact_zeros
from sparsenn.models import SkipMLP
from sparsenn.nn import RidgeNet
from sparsenn.nn.ridge import ridge_blocks

NETS = ("ridge", "control")
PENALTIES = ("rbv2", "weight decay", "none", "proximal")
POINTS = 81  # of the grid


@dataclass(frozen=True)
class Choices:
    """What the text leaves open, and the sizes that it gives.

    Attributes:
        outputs: D; the text can be read as 1 or as 16.
        batch_size: of at most 81 points; smaller ones are drawn anew in every epoch.
        reduction: of the squared errors, "mean" or "sum".
        skip: whether the control's later layers see the input.
        width: K.
        lr: of Adam, a finite float above 0.
    """

    outputs: int = 1
    batch_size: int = POINTS
    reduction: str = "mean"
    skip: bool = True
    width: int = 1296
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"rbv2: reduction is {self.reduction!r}; it takes 'mean' or 'sum'")
        for name in ("outputs", "batch_size", "width"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"rbv2: {name} is {getattr(self, name)!r}; it takes an integer >= 1")
        if self.batch_size > POINTS:
            raise ValueError(f"rbv2: batch_size is {self.batch_size}; it takes at most {POINTS}, which is all points")
        if not isinstance(self.skip, bool):
            raise ValueError(f"rbv2: skip is {self.skip!r}; it takes true or false")
        if not isinstance(self.lr, float) or not 0 < self.lr < math.inf:
            raise ValueError(f"rbv2: lr is {self.lr!r}; it takes a finite float above 0")

    @classmethod
    def of(cls, given: Choices | Iterable[str] | None) -> Choices:
        """Choices themselves, or from words such as ``"outputs=16"``; None for the defaults.

        Raises:
            ValueError: for an unknown name, or a value out of range.

        Example:
            >>> from sparsenn.papers.rbv2.experiment import Choices
            >>> Choices.of(["outputs=16", "skip=false"]).skip
            False
        """
        if isinstance(given, Choices):
            return given
        defaults = {field.name: field.default for field in fields(cls)}
        values: dict[str, Any] = {}
        for word in given or ():
            name, _, text = word.partition("=")
            if name not in defaults:
                raise ValueError(
                    f"rbv2: unknown choice {word!r}; known are {', '.join(f'{n}={v}' for n, v in defaults.items())}"
                )
            values[name] = _value(text, type(defaults[name]))
        return cls(**values)


def _value(text: str, kind: type) -> Any:
    """A value of this kind, or the text itself, which the checks then name."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def grid_data(outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """The 81 points of {0, 1/2, 1}⁴ and targets drawn uniformly from [−1, 1], one for each output.

    Example:
        >>> from sparsenn.papers.rbv2.experiment import grid_data
        >>> [tuple(t.shape) for t in grid_data(1, seed=0)]
        [(81, 4), (81, 1)]
    """
    x = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=4)))
    return x, torch.rand(len(x), outputs, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make_net(net: str, seed: int, choices: Choices) -> nn.Module:
    """A net of the paper with every parameter drawn uniformly from [−1, 1]."""
    if net == "ridge":
        module: nn.Module = RidgeNet(4, choices.outputs, width=choices.width)
    else:
        module = SkipMLP(4, choices.outputs, width=choices.width, skip=choices.skip)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(-1, 1, generator=generator)
    return module


@torch.no_grad()
def between(model: nn.Module) -> Tensor:
    """The matrix between the two hidden layers: W V of a ridge net, the second layer of the control."""
    if isinstance(model, SkipMLP):
        return model.get_parameter("layers.1.weight").detach()
    first, second = ridge_blocks(model)
    return second.inner.weight @ first.outer.weight


@torch.no_grad()
def singular_values(model: nn.Module) -> Tensor:
    """Those of `between`, descending, float64; of a ridge net without the product being formed."""
    if isinstance(model, SkipMLP):
        return torch.linalg.svdvals(between(model).double())
    first, second = ridge_blocks(model)
    return metrics.product_singular_values(second.inner.weight, first.outer.weight)


@torch.no_grad()
def summary(model: nn.Module) -> dict[str, Any]:
    """Of a trained net "exact_zeros", "alive" by hidden layer, the largest 32 "singular_values" of `between`, and "rank"."""
    values = singular_values(model)
    if isinstance(model, SkipMLP):
        hidden = [layer.weight for layer in model.layers[:-1] if isinstance(layer, nn.Linear)]
        alive = [int((weight.abs() > metrics.NEGLIGIBLE).any(1).sum()) for weight in hidden]
    else:
        alive = [layer.alive for layer in metrics.ridge_report(model).layers]
    return {
        "exact_zeros": exact_zeros(model),
        "alive": alive,
        "singular_values": [float(f"{v:.4g}") for v in values[:32].tolist()],
        "rank": metrics.effective_rank(values),
    }
