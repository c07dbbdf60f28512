"""How far torch's optimizers go in the long run for each unit of a constant gradient: by their options and state after a step.

A proximal step with this step size, a number or one for each weight, has the stationary points of loss + penalty as its
fixed points: there the gradient is constant, its running mean is the gradient itself, and momentum sums a geometric series.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_Group = dict[str, Any]
_State = Mapping[str, Any]
Rule = Callable[[_Group, _State], float | Tensor]

_OF_THE_PARAMETER = ("step", "mu_product")
_OF_ELEMENTS = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "grad_avg", "sum")


def read(state: _State) -> tuple[dict[str, float | Tensor], dict[str, Tensor]]:
    """What the rules need of a state: numbers of the parameter, and tensors that have one for each element.

    The count of a capturable optimizer stays a tensor: reading it would wait for the device.
    """
    numbers = {name: state[name] for name in _OF_THE_PARAMETER if name in state}
    for name, value in numbers.items():
        if isinstance(value, Tensor) and value.is_cpu:
            numbers[name] = float(value)
    return numbers, {name: state[name] for name in _OF_ELEMENTS if name in state}


def sgd(group: _Group, state: _State) -> float | Tensor:
    """Lr (1 - dampening) / (1 - momentum); torch dampens only where there is momentum."""
    momentum = group["momentum"]
    return group["lr"] * (1 - group["dampening"]) / (1 - momentum) if momentum else group["lr"]


def adam(group: _Group, state: _State) -> Tensor:
    """Lr over the root of the corrected second moment, plus eps; for Adam and AdamW."""
    second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    root = (1 - group["betas"][1] ** state["step"]) ** 0.5  # of the correction, which is cheaper outside of the moment
    return _over(group["lr"] * root, second.sqrt().add_(group["eps"] * root))


def nadam(group: _Group, state: _State) -> Tensor:
    """Adam's times the shares of the gradient and of its mean, whose sum nears 1 as their schedule settles."""
    beta1, decay, t = group["betas"][0], group["momentum_decay"], _count(state)
    now, later = (beta1 * (1 - 0.5 * 0.96 ** (k * decay)) for k in (t, t + 1))
    product = float(state["mu_product"])
    return adam(group, state).mul_((1 - now) / (1 - product) + later / (1 - product * later))


def radam(group: _Group, state: _State) -> float | Tensor:
    """Adam's with the variance rectified; lr alone in the first steps, where the variance is not tractable."""
    beta2, t = group["betas"][1], _count(state)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    if length <= 5:
        return group["lr"]
    rectifier = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
    return _over(group["lr"] * rectifier * (1 - beta2**t) ** 0.5, state["exp_avg_sq"].sqrt().add_(group["eps"]))


def adamax(group: _Group, state: _State) -> Tensor:
    """Lr over the running maximum of the gradient's magnitude, in which eps is contained."""
    return _over(group["lr"], state["exp_inf"].clone())


def rmsprop(group: _Group, state: _State) -> Tensor:
    """Lr over the root of the second moment (less the squared mean where it is centred), plus eps; times 1 / (1 - momentum)."""
    second = state["square_avg"]
    if group["centered"]:
        second = state["grad_avg"].square().neg_().add_(second).clamp_(min=0)
    return _over(group["lr"] / (1 - group["momentum"]), second.sqrt().add_(group["eps"]))


def adagrad(group: _Group, state: _State) -> Tensor:
    """The decayed lr over the root of the sum of squares, plus eps."""
    return _over(group["lr"] / (1 + (_count(state) - 1) * group["lr_decay"]), state["sum"].sqrt().add_(group["eps"]))


def _over(rate: float | Tensor, own: Tensor) -> Tensor:
    """``rate / own``, in the memory of the latter."""
    return own.reciprocal_().mul_(rate)


def _count(state: _State) -> float:
    return float(state["step"])


RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: sgd,
    torch.optim.Adam: adam,
    torch.optim.AdamW: adam,
    torch.optim.NAdam: nadam,
    torch.optim.RAdam: radam,
    torch.optim.Adamax: adamax,
    torch.optim.RMSprop: rmsprop,
    torch.optim.Adagrad: adagrad,
}
