"""How far a trained network is from a stationary point of loss + penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsenn.nn.selection import Selector, check_module
from sparsenn.optim import Proximal, ProxSGD
from sparsenn.optim.factorized import Factorized
from sparsenn.optim.gradients import gradients
from sparsenn.optim.groups import NamedParameter, assign, named_parameters
from sparsenn.optim.ridge import OnSpheres, radial_part
from sparsenn.penalties import L0_5, L1, L2_3, ElasticNet, Penalty


@dataclass(frozen=True)
class LayerResidual:
    """The stationarity residual of one tensor, or of a whole model.

    Attributes:
        name: The tensor's name in the model.
        shape: Its shape; None for a whole model.
        penalty: Its penalty as text; None where it has none, and for a whole model.
        count: Number of residuals: one for each weight, or for each group of a group penalty.
        max: The largest residual.
        rms: Their root mean square.
        relative: The largest residual over the largest gradient entry of the whole model; 0 where both are 0.
    """

    name: str
    shape: tuple[int, ...] | None
    penalty: str | None
    count: int
    max: float
    rms: float
    relative: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON, which has neither infinity nor NaN: they become None."""
        return {
            "name": self.name,
            "shape": None if self.shape is None else list(self.shape),
            "penalty": self.penalty,
            "count": self.count,
            "max": _finite(self.max),
            "rms": _finite(self.rms),
            "relative": _finite(self.relative),
        }


@dataclass(frozen=True)
class StationarityReport:
    """The stationarity residuals of a model; made by :func:`kkt_residual`. ``str`` gives a table, ``to_dict`` plain data.

    Attributes:
        layers: One row per parameter, in the order of the model; empty with ``per_layer=False``.
        total: The row of the whole model.
        gradient_scale: The largest entry of the loss's gradient in magnitude, to which ``relative`` refers.
    """

    layers: tuple[LayerResidual, ...]
    total: LayerResidual
    gradient_scale: float

    def to_dict(self) -> dict[str, Any]:
        """``{"gradient_scale", "layers": [...], "total"}``, ready for JSON; infinity and NaN become None."""
        return {
            "gradient_scale": _finite(self.gradient_scale),
            "layers": [row.to_dict() for row in self.layers],
            "total": self.total.to_dict(),
        }

    def __str__(self) -> str:
        head = ("layer", "shape", "penalty", "max", "rms", "relative")
        rows = [head, *map(_cells, (*self.layers, self.total))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], *([rule] if self.layers else []), lines[-1]])


def kkt_residual(
    model: nn.Module,
    closure: Callable[[], Tensor],
    penalty: Penalty | float | Mapping[Selector, Penalty] | Optimizer,
    *,
    per_layer: bool = True,
) -> StationarityReport:
    r"""How far a model is from a stationary point of loss + penalty: the residual of the KKT conditions.

    .. math:: r = \operatorname{dist}\Big(-\frac{\partial \ell}{\partial w},\; \partial P(w)\Big)

    weight by weight, or group by group, as each penalty's `subdiff_distance` defines it; for an unpenalised weight it is
    :math:`|\partial \ell / \partial w|`. All are 0 at a stationary point. The size is that of a gradient, so compare it with λ,
    or look at ``relative``. Factorized optimizers come only near zero and leave a residual at weights just above it: collapse
    the model first.

    Args:
        model: The model. Its weights, gradients and buffers are as before afterwards.
        closure: Computes the loss on the full data set and returns it, without calling backward. With dropout or batch
            normalization, in the mode in which the training loss is meant.
        penalty: What the model was trained with: a penalty for all parameters; a number λ, for `L1`; a mapping of selectors to
            penalties as `sparsenn.optim.param_groups` takes it, without exclusions; or the optimizer itself (`ProxSGD`,
            `Proximal`, or `FactorizedSGD` or `FactorizedAdam` of depth up to 4), with its groups, strengths, and a weight
            decay that is a part of the gradient (the decoupled decay of AdamW is left out). Under the "path" form of
            `sparsenn.optim.ridge_proximal` the rows of W have unit length, and what of a gradient lies along them is no
            residual.
        per_layer: Whether to keep a row for every parameter.

    Raises:
        ValueError: for another penalty, a penalty that doesn't fit, an optimizer that has none of the model's parameters, and a
            closure that returns no differentiable number.

    Example:
        >>> import torch, sparsenn
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[0.9, 0.0]]))
        >>> x, y = torch.eye(2).double(), torch.tensor([[1.0], [0.05]]).double()
        >>> report = sparsenn.metrics.kkt_residual(model, lambda: (model(x) - y).square().sum() / 2, 0.1)
        >>> round(report.total.max, 6)
        0.0
    """
    check_module("kkt_residual", model)
    rows = _penalised(model, penalty)
    grads = gradients("kkt_residual", model, closure, [row.parameter.tensor for row in rows])
    scale = max((float(g.abs().amax()) for g in grads if g.numel()), default=0.0)
    layers, squares, count, worst = [], 0.0, 0, 0.0
    for row, grad in zip(rows, grads, strict=True):
        residual = row.residual(grad).double()
        own = float(residual.square().sum())
        top = float(residual.amax()) if residual.numel() else 0.0
        shown = None if row.penalty is None else repr(row.penalty)
        layers.append(_layer(row.parameter.name, tuple(grad.shape), shown, residual.numel(), top, own, scale))
        squares, count = squares + own, count + residual.numel()
        worst = top if math.isnan(top) else max(worst, top)
    total = _layer("total", None, None, count, worst, squares, scale)
    return StationarityReport(tuple(layers) if per_layer else (), total, scale)


@dataclass(frozen=True)
class _Row:
    parameter: NamedParameter
    penalty: Penalty | None
    decay: float = 0.0
    sign: float = 1.0
    on_spheres: bool = False  # the length of its rows is held, so that a pull along them moves nothing

    @torch.no_grad()
    def residual(self, grad: Tensor) -> Tensor:
        w = self.parameter.tensor.detach()
        g = self.sign * grad + self.decay * w if self.decay or self.sign != 1 else grad
        if self.on_spheres:
            g = g - radial_part(w, g)
        return g.abs() if self.penalty is None else self.penalty.subdiff_distance(w, g)


def _penalised(model: nn.Module, penalty: Penalty | float | Mapping[Selector, Penalty] | Optimizer) -> list[_Row]:
    """Every parameter of the model in order, with its penalty."""
    parameters = named_parameters(model)
    if isinstance(penalty, Optimizer):
        by_tensor = _of_optimizer(penalty)
        if not any(id(p.tensor) in by_tensor for p in parameters):
            raise ValueError("kkt_residual: the optimizer has none of the model's parameters; it takes the one that trained it")
        return [_Row(p, *by_tensor.get(id(p.tensor), (None,))) for p in parameters]
    if isinstance(penalty, int | float) and not isinstance(penalty, bool):
        penalty = L1(penalty)
    if not isinstance(penalty, Penalty | Mapping):
        raise ValueError(
            f"kkt_residual: penalty is {penalty!r}; it takes a penalty, a number, a mapping or an optimizer of ours"
        )
    chosen, _ = assign(parameters, penalty, "kkt_residual: penalty")
    mine = {id(p.tensor): own for own, found in chosen for p in found}
    return [_Row(p, mine.get(id(p.tensor))) for p in parameters]


def _of_optimizer(optimizer: Optimizer) -> dict[int, tuple[Penalty | None, float, float, bool]]:
    if isinstance(optimizer, Proximal):
        penalties = list(optimizer.penalties)
    elif isinstance(optimizer, ProxSGD):
        penalties = [L1(group["lam"]) for group in optimizer.param_groups]
    elif isinstance(optimizer, Factorized):
        if any(group.get("decoupled") for group in optimizer.param_groups):
            raise ValueError("kkt_residual: the optimizer's lam is decoupled, which no penalty has as its stationary points")
        penalties = [_induced(group["depth"], group["lam"]) for group in optimizer.param_groups]
    else:
        raise ValueError(
            f"kkt_residual: penalty is a {type(optimizer).__name__}, which has none; it takes ProxSGD, Proximal,"
            " FactorizedSGD or FactorizedAdam"
        )
    held = {id(p) for p in optimizer.held} if isinstance(optimizer, OnSpheres) else set()
    return {
        id(p): (penalty, _decay(optimizer, group), _sign(group), id(p) in held)
        for group, penalty in zip(optimizer.param_groups, penalties, strict=True)
        for p in group["params"]
    }


def _induced(depth: int, lam: float | Tensor) -> Penalty:
    """λ ‖w‖_{2/D}^{2/D}, which a factorization of depth D minimises."""
    if depth == 1:
        return ElasticNet(2 * lam, l1_ratio=0.0)
    known: dict[int, type[L1 | L2_3 | L0_5]] = {2: L1, 3: L2_3, 4: L0_5}
    if depth not in known:
        raise ValueError(f"kkt_residual: the optimizer has depth {depth}; it takes a depth of 1 to 4")
    return known[depth](lam)


def _decay(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """The weight decay that is a part of the gradient."""
    base = optimizer.base_optimizer if isinstance(optimizer, Proximal) else optimizer
    decoupled = isinstance(base, torch.optim.AdamW) or group.get("decoupled_weight_decay")
    return 0.0 if decoupled else float(group.get("weight_decay", 0.0))


def _sign(group: dict[str, Any]) -> float:
    return -1.0 if group.get("maximize") else 1.0


def _layer(
    name: str, shape: tuple[int, ...] | None, penalty: str | None, count: int, top: float, squares: float, scale: float
) -> LayerResidual:
    relative = top / scale if scale else (0.0 if top == 0 else math.inf)
    return LayerResidual(name, shape, penalty, count, top, math.sqrt(squares / count) if count else 0.0, relative)


def _cells(row: LayerResidual) -> tuple[str, ...]:
    shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "scalar"
    penalty = "" if row.shape is None else row.penalty or "none"
    return (row.name, shape, penalty, f"{row.max:.3g}", f"{row.rms:.3g}", f"{row.relative:.3g}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
