"""One step of many runs of one optimizer, each with its own settings: ``torch.optim`` and ours, a column a setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsenn.ops.reference import soft_thresholded
from sparsenn.training.stacked.run import Run


class Settings:
    """The settings of runs of one optimizer and depth, as columns (R, 1) in the dtype of ``like``.

    Computed in float64 and rounded once.
    """

    def __init__(self, runs: Sequence[Run], like: Tensor) -> None:
        first = runs[0]
        self.optimizer, self.depth = first.optimizer, first.depth

        def column(value: Callable[[Run], float]) -> Tensor:
            return torch.tensor([[value(run)] for run in runs], dtype=torch.float64, device=like.device).to(like.dtype)

        self.lr, self.momentum = column(lambda run: run.lr), column(lambda run: run.momentum)
        self.reach = column(lambda run: run.lr / (1 - run.momentum) * run.lam)  # the threshold of a proximal step
        self.decay = column(lambda run: 2 * run.lam / run.depth)  # of a factor
        self.l1 = column(lambda run: run.lam if run.penalty == "l1" else 0.0)
        self.l2 = column(lambda run: run.lam if run.penalty == "l2" else 0.0)
        self.betas = column(lambda run: run.betas[0]), column(lambda run: run.betas[1])
        self.rest = column(lambda run: 1 - run.betas[0]), column(lambda run: 1 - run.betas[1])
        self.weight_decay = column(lambda run: run.weight_decay)
        self.eps = column(lambda run: run.eps)
        self.clipping = column(lambda run: run.clipping)
        self.lam = torch.tensor([run.lam for run in runs], dtype=torch.float64, device=like.device)
        self.absolute = torch.tensor([run.penalty == "l1" for run in runs], device=like.device)
        self.penalized = any(run.lam for run in runs)
        self.decays = any(run.weight_decay for run in runs)
        self.clips = any(run.clipping for run in runs)
        self._beta_powers = torch.tensor([run.betas for run in runs], dtype=torch.float64, device=like.device)
        self._rate = torch.tensor([run.lr for run in runs], dtype=torch.float64, device=like.device)

    def adam_scales(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The step size lr / (1 - β₁^t), and √(1 - β₂^t), as columns."""
        correction = 1 - self._beta_powers**count
        rate = self._rate / correction[:, 0]
        return rate[:, None].to(like.dtype), correction[:, 1].sqrt()[:, None].to(like.dtype)


def penalty(settings: Settings, weights: Tensor, state: Tensor) -> Tensor | float:
    """The runs' penalties (R,) in float64, as :class:`~sparsenn.training.stacked.Run` states them."""
    if not settings.penalized:
        return 0.0
    lam = settings.lam
    if settings.optimizer == "factorized":
        return lam / settings.depth * state[:, : settings.depth].square().sum((1, 2))
    absolute = weights.abs().sum(1)
    if settings.optimizer == "prox":
        return lam * absolute
    return lam * torch.where(settings.absolute, absolute, weights.square().sum(1))


def step_(settings: Settings, weights: Tensor, state: Tensor, gradient: Tensor, count: int) -> None:
    """Move ``weights`` (R, P) and ``state`` (R, K, P) by one step, the ``count``-th of every run, counted from 1."""
    if settings.penalized and settings.optimizer in ("sgd", "adam"):
        gradient = gradient + settings.l1 * weights.sign() + 2 * settings.l2 * weights
    if settings.decays:
        gradient = gradient + settings.weight_decay * weights
    move = {"sgd": _sgd, "prox": _prox, "factorized": _factorized, "adam": _adam}[settings.optimizer]
    move(settings, weights, state, gradient, count)
    if settings.clips:
        weights.masked_fill_(weights.abs() < settings.clipping, 0)


def _sgd(settings: Settings, weights: Tensor, state: Tensor, gradient: Tensor, count: int) -> None:
    moved = state[:, 0].mul_(settings.momentum).add_(gradient)
    weights.addcmul_(moved, settings.lr, value=-1)


def _prox(settings: Settings, weights: Tensor, state: Tensor, gradient: Tensor, count: int) -> None:
    _sgd(settings, weights, state, gradient, count)
    if settings.penalized:
        # without a λ, the threshold of 0 keeps every weight but for the sign of a zero
        weights.copy_(soft_thresholded(weights, settings.reach))


def _factorized(settings: Settings, weights: Tensor, state: Tensor, gradient: Tensor, count: int) -> None:
    depth = settings.depth
    factors, momenta = state[:, :depth], state[:, depth : 2 * depth]
    update = gradient[:, None] * _others(factors) + settings.decay[:, None] * factors
    momenta.mul_(settings.momentum[:, None]).add_(update)
    factors.addcmul_(momenta, settings.lr[:, None], value=-1)
    weights.copy_(factors.prod(1))


def _others(factors: Tensor) -> Tensor:
    """The product of all factors (R, D, P) but one, for each: prefix times suffix, exact at zeros."""
    depth = factors.shape[1]
    others = torch.ones_like(factors)
    prefix = suffix = others[:, 0].clone()
    for d in range(depth - 1):
        prefix = prefix * factors[:, d]
        suffix = suffix * factors[:, depth - 1 - d]
        others[:, d + 1].mul_(prefix)
        others[:, depth - 2 - d].mul_(suffix)
    return others


def _adam(settings: Settings, weights: Tensor, state: Tensor, gradient: Tensor, count: int) -> None:
    first, second = state[:, 0], state[:, 1]
    first.mul_(settings.betas[0]).addcmul_(gradient, settings.rest[0])
    second.mul_(settings.betas[1]).addcmul_(gradient.square(), settings.rest[1])
    rate, root = settings.adam_scales(count, weights)
    weights.addcdiv_(rate * first, second.sqrt() / root + settings.eps, value=-1)
