"""A controller that finds the penalty's strength for a wanted sparsity while the network trains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsenn._numbers import plain, whole
from sparsenn.optim import shards
from sparsenn.optim.strength import Strength

_SMOOTHING = 0.8
_REACH = 1e6  # λ stays within this factor of where it started: a target out of reach is not chased to infinity


class TargetSparsity:
    r"""Adjusts λ during training so that a given share of the penalised weights ends at zero.

    Zeros answer to λ late: a weight must first fall from its start to the threshold. So what is held at the target is the
    share of weights below a *moving* threshold. It falls in equal ratios from the magnitude that just this share of the
    weights has at the start to the final ``threshold``, over ``updates`` calls of `step`, and then stays:

    .. math:: \tau_k = \tau_0^{1 - k/K}\, \tau^{k/K}, \qquad d_k = \ln \frac{|\{i : |w_i| > \tau_k\}|}{n}, \qquad
        \bar d_k = 0.8\, \bar d_{k-1} + 0.2\, d_k

    .. math:: \ln \lambda \leftarrow \ln \lambda + c \big(d_k - \ln(1 - s) + h\, (\bar d_k - \bar d_{k-1})\big)

    with the target s, the gain c and a look ahead of h updates; λ changes by at most a factor of 3/2 and stays within 1e6
    of its start, a share of 0 counts as 1/n, and weights that require no gradient are not counted. Call `step` after the
    optimizer's, every few iterations: often enough for some hundred updates in all, with the last 10 to 30 % of them at the
    final threshold. Weights of `FactorizedSGD` below it come back slowly or never, so it rather ends above the target than
    below; a short run meets its target better with a threshold of 1e-4 than of 1e-7.

    What λ starts from matters little, as long as it is not so large that everything dies at once.

    Args:
        optimizer: `ProxSGD`, `FactorizedSGD`, `FactorizedAdam`, `Proximal`, or another one that reads λ from ``group["lam"]``.
            Groups with ``lam`` above 0 are penalised, counted and adjusted, in proportion to each other.
        target: The share s of penalised weights to be at most ``threshold`` in magnitude, in (0, 1).
        updates: K ≥ 1, the number of calls of `step` until the threshold is the final one.
        threshold: τ > 0. The default, the spacing of float32 at 1, counts what `sparsenn.collapse` makes zero.
        gain: c > 0.
        horizon: h ≥ 0.

    Attributes:
        optimizer: As given.
        target: As given.

    Raises:
        ValueError: for an argument out of its range, an optimizer without penalised groups, and sharded parameters.

    Source: ours. Measured on the digits with LeNet-300-100 in 20 and 40 epochs from a λ of 1e-4 and 1e-3, one seed, at a target
    of 95 %: 94.4 to 96.2 % (`ProxSGD`, Adam with L1, `FactorizedSGD` at depths 2 and 3).

    Example:
        >>> import torch, sparsenn
        >>> w = torch.nn.Parameter(torch.linspace(-1, 1, 1000))
        >>> gradient = torch.linspace(-1, 1, 1000)
        >>> optimizer = sparsenn.optim.ProxSGD([w], lr=0.1, lam=1e-3)
        >>> control = sparsenn.optim.TargetSparsity(optimizer, 0.8, updates=200)
        >>> for _ in range(300):
        ...     w.grad = w.detach() - gradient
        ...     optimizer.step()
        ...     control.step()
        >>> 0.79 < control.sparsity() < 0.81
        True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        target: float,
        *,
        updates: int,
        threshold: float = torch.finfo(torch.float32).eps,
        gain: float = 0.07,
        horizon: float = 20.0,
    ) -> None:
        share, count = plain(target), whole(updates)
        if share is None or not 0 < share < 1:
            raise ValueError(f"TargetSparsity: target is {target!r}; it takes a number between 0 and 1")
        if count is None or count < 1:
            raise ValueError(f"TargetSparsity: updates is {updates!r}; it takes an integer >= 1")
        for name, value, low in (("threshold", threshold, "> 0"), ("gain", gain, "> 0"), ("horizon", horizon, ">= 0")):
            number = plain(value)
            if number is None or not (math.isfinite(number) and (number > 0 or (low == ">= 0" and number == 0))):
                raise ValueError(f"TargetSparsity: {name} is {value!r}; it takes a finite number {low}")
        self.optimizer = optimizer
        self.target = float(share)
        self._updates, self._threshold, self._gain, self._horizon = count, float(threshold), float(gain), float(horizon)
        self._strength = Strength("TargetSparsity", optimizer)
        if any(shards.is_sharded(p) for p in self._weights()):
            raise ValueError("TargetSparsity: a parameter is sharded; it takes whole ones")
        self._numel = sum(p.numel() for p in self._weights())
        if not self._numel:
            raise ValueError("TargetSparsity: the penalised groups have no weights that require a gradient")
        self._done = 0
        self._bounds = (self.lam / _REACH, self.lam * _REACH)
        self._start = max(self._magnitude_at_target(), self._threshold)
        self._mean: float | None = None

    @property
    def lam(self) -> float:
        """The largest λ of the optimizer's groups, as it is now."""
        return self._strength.value

    @property
    def threshold(self) -> float:
        """The moving threshold, as the last call of `step` has used it."""
        done = min(self._done / self._updates, 1.0)
        return self._start ** (1 - done) * self._threshold**done

    @torch.no_grad()
    def sparsity(self, threshold: float | None = None) -> float:
        """The share of penalised weights that are at most ``threshold`` (default: the final one) in magnitude; now."""
        limit = self._threshold if threshold is None else threshold
        counts: dict[torch.device, Tensor] = {}
        for p in self._weights():
            found = (p.abs() <= limit).sum()
            counts[p.device] = counts[p.device] + found if p.device in counts else found
        return sum(int(count) for count in counts.values()) / self._numel

    def step(self) -> None:
        """Measure, and set the λ of the penalised groups. It waits for the device once."""
        self._done += 1
        density = math.log(max(1 - self.sparsity(self.threshold), 1 / self._numel))
        before = density if self._mean is None else self._mean
        # where zeros answer at once, a trend that is not smoothed would make λ swing
        self._mean = _SMOOTHING * before + (1 - _SMOOTHING) * density
        trend = self._mean - before
        error = density - math.log1p(-self.target) + self._horizon * trend
        lam = self.lam * min(max(math.exp(self._gain * error), 2 / 3), 3 / 2)
        self._strength.value = min(max(lam, self._bounds[0]), self._bounds[1])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the optimizer's state, which has λ: plain numbers."""
        return {"done": self._done, "start": self._start, "mean": self._mean, "bounds": list(self._bounds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of a controller with the same arguments."""
        self._done, self._start = int(state_dict["done"]), float(state_dict["start"])
        self._mean = state_dict["mean"]
        low, high = map(float, state_dict["bounds"])
        self._bounds = (low, high)

    def __repr__(self) -> str:
        return (
            f"TargetSparsity(target={self.target}, reached={self.sparsity():.4f} at |w| <= {self._threshold:.3g}, "
            f"lam={self.lam:.3g}, update {self._done} of {self._updates})"
        )

    def _weights(self) -> list[Tensor]:
        return [p for group in self._strength.groups() for p in group["params"] if p.requires_grad]

    @torch.no_grad()
    def _magnitude_at_target(self) -> float:
        magnitudes = torch.cat([p.detach().abs().flatten().float().cpu() for p in self._weights()])
        return float(magnitudes.kthvalue(max(math.ceil(self.target * self._numel), 1)).values)
