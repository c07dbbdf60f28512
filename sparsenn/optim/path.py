"""Strengths of a penalty without guessing: where all is zero, a grid below it, and training along the grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsenn._numbers import whole
from sparsenn.nn.selection import Selector, Selectors
from sparsenn.optim.gradients import gradients
from sparsenn.optim.groups import param_groups
from sparsenn.optim.strength import Strength
from sparsenn.penalties import L1, Penalty


@dataclass(frozen=True)
class PathPoint:
    """One point of a regularization path: the λ, and what the callback returned for it."""

    lam: float
    result: Any


def lambda_max(
    model: nn.Module,
    closure: Callable[[], Tensor],
    penalties: Penalty | Mapping[Selector, Penalty] | None = None,
    *,
    exclude: Selectors = ("bias", "norm"),
    at: str = "zero",
    step: float = 1.0,
) -> float:
    r"""The λ from which on all penalised weights at zero are stationary; for `L1`, :math:`\max |\partial \ell / \partial w|`.

    For a linear model with ``at="zero"`` it is exact: at this λ and above the solution is 0, just below it is not. Unpenalised
    parameters stay as they are, so fit an intercept first (or centre the data).

    For a network with two or more penalised layers the gradient at zero vanishes by symmetry, zero is stationary for every λ,
    and the question has no such answer; this raises. With ``at="here"`` the gradients are those at the present weights. From
    that λ on, an L1 penalty outweighs the loss's gradient at every weight of this point: the first steps move all of them
    towards 0. It is a scale for a grid, not a bound; sparse solutions of networks are found well below it.

    Args:
        model: The model; it is as before afterwards.
        closure: Computes the loss on the full data set and returns it, without calling backward.
        penalties: As for `param_groups`; their own λ is not looked at. Default: `L1`.
        exclude: The selector or selectors of parameters that are not penalised.
        at: "zero" for the gradient with all penalised weights at 0, "here" for that at the weights as they are.
        step: For L0, L_1/2 and L_2/3, for which zero always is a local minimum: the smallest λ for which a proximal gradient
            step of this size from 0 stays there.

    Returns:
        The largest ``penalty.lambda_max`` over all penalised parameters.

    Raises:
        ValueError: for another ``at``, for penalties as `param_groups`, for a closure that returns no differentiable number,
            and at "zero" if all gradients are 0 there but not at the present weights.

    Source: for the lasso, Friedman, Hastie and Tibshirani 2010, Section 2.5.

    Example:
        >>> import torch, sparsenn
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.eye(2), torch.tensor([[3.0], [-4.0]])
        >>> sparsenn.optim.lambda_max(model, lambda: (model(x) - y).square().sum() / 2)
        4.0
    """
    if at not in ("zero", "here"):
        raise ValueError(f"lambda_max: at is {at!r}; it takes 'zero' or 'here'")
    groups = param_groups(model, penalties=L1(1.0) if penalties is None else penalties, exclude=exclude)
    chosen = [(group["penalty"], p) for group in groups if group["penalty"] is not None for p in group["params"]]
    weights = [p for _, p in chosen]
    if at == "here":
        grads = gradients("lambda_max", model, closure, weights)
    else:
        kept = [p.detach().clone() for p in weights]
        try:
            _fill(weights, [torch.zeros_like(p) for p in kept])
            grads = gradients("lambda_max", model, closure, weights)
        finally:
            _fill(weights, kept)
        if not any(bool(g.any()) for g in grads) and any(
            bool(g.any()) for g in gradients("lambda_max", model, closure, weights)
        ):
            raise ValueError(
                "lambda_max: with all penalised weights at 0 every gradient is 0, as in a network of several penalised layers:"
                " zero is stationary for every lam. Use at='here' for the scale of the gradients at the present weights"
            )
    return max(float(penalty.lambda_max(g, step)) for (penalty, _), g in zip(chosen, grads, strict=True))


def lambda_path(lam_max: float, n: int = 50, eps: float = 1e-3) -> list[float]:
    r"""Strengths from :math:`\lambda_{max}` down to :math:`\epsilon \lambda_{max}`, evenly spaced in their logarithm.

    .. math:: \lambda_k = \lambda_{max}\, \epsilon^{k / (n - 1)}, \qquad k = 0, \dots, n - 1

    Args:
        lam_max: The first and largest, > 0 and finite; see `lambda_max`.
        n: How many, ≥ 1; with 1 only the first.
        eps: The last over the first, in (0, 1].

    Raises:
        ValueError: for an argument out of its range.

    Example:
        >>> import sparsenn
        >>> [round(lam, 6) for lam in sparsenn.optim.lambda_path(2.0, n=3, eps=0.01)]
        [2.0, 0.2, 0.02]
    """
    if not (math.isfinite(lam_max) and lam_max > 0):
        raise ValueError(f"lambda_path: lam_max is {lam_max!r}; it takes a finite number > 0")
    if (points := whole(n)) is None or points < 1:
        raise ValueError(f"lambda_path: n is {n!r}; it takes an integer >= 1")
    if not 0 < eps <= 1:
        raise ValueError(f"lambda_path: eps is {eps!r}; it takes a number in (0, 1]")
    return [lam_max * eps ** (k / (points - 1)) if k else lam_max for k in range(points)]


def regularization_path(
    fit: Callable[[float], Any], lams: Iterable[float], optimizer: Optimizer | None = None
) -> list[PathPoint]:
    """Train at one strength after the other, each from where the last one ended (warm starts).

    The optimizer's penalised groups (those with ``lam`` above 0) are set before each call of ``fit``: the largest to the value
    of the path, the others in proportion. The state of the optimizer, its momentum for one, goes on as well. `ProxSGD` and
    `Proximal` may go down a path, where weights come alive, as well as up. `FactorizedSGD` and `FactorizedAdam` should go up:
    a weight whose factors have died does not come back by itself.

    Args:
        fit: Trains at the given λ and returns what is to be kept, such as a loss and a sparsity.
        lams: The strengths in order, finite and ≥ 0.
        optimizer: `ProxSGD`, `FactorizedSGD`, `FactorizedAdam` or `Proximal`; without one ``fit`` sets the λ itself.

    Returns:
        A `PathPoint` for each λ, in order.

    Raises:
        ValueError: for a λ that is negative or not finite, and an optimizer without penalised groups; before the first fit.

    Source: warm starts along a path: Friedman, Hastie and Tibshirani 2010, Section 2.5.

    Example:
        >>> import torch, sparsenn
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = sparsenn.optim.ProxSGD([w], lr=0.5, lam=1.0)
        >>> def fit(lam):
        ...     for _ in range(60):
        ...         w.grad = w.detach() - torch.tensor([3.0, -4.0])
        ...         optimizer.step()
        ...     return w.tolist()
        >>> for point in sparsenn.optim.regularization_path(fit, [4.0, 3.5, 1.0], optimizer):
        ...     print(point.lam, point.result)
        4.0 [0.0, 0.0]
        3.5 [0.0, -0.5]
        1.0 [2.0, -3.0]
    """
    lams = [float(lam) for lam in lams]
    for lam in lams:
        if not (math.isfinite(lam) and lam >= 0):
            raise ValueError(f"regularization_path: lams has {lam!r}; it takes finite numbers >= 0")
    strength = None if optimizer is None else Strength("regularization_path", optimizer)
    points = []
    for lam in lams:
        if strength is not None:
            strength.value = lam
        points.append(PathPoint(lam, fit(lam)))
    return points


@torch.no_grad()
def _fill(weights: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(weights, values, strict=True):
        p.copy_(value)
