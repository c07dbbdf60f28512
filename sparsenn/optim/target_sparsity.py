"""A controller that finds the penalty's strength for a wanted sparsity while the network trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsenn._numbers import plain, whole
from sparsenn.optim import shards
from sparsenn.optim.strength import Strength

_EPSILON = torch.finfo(torch.float32).eps
_SMOOTHING = 0.8
_SHORTEST = 8  # the time that is left is at least this part of the updates
_CALMER, _BOLDER = 0.7, 1.2  # the gain after a change of sign, and else
_SLOWEST = 16  # the gain is at least this part of the one that is given: noise changes the sign too, and would still λ for ever
_SAMPLE = 1 << 20  # so many weights tell the last one to die
_REACH = 1e6  # λ stays within this factor of where it started: a target out of reach is not chased to infinity

_STATE = ("done", "way", "fall", "last", "pace", "ratio", "bounds")  # plain numbers, or two

Threshold = float | Callable[[Mapping[str, Any]], float]


class TargetSparsity:
    r"""Adjusts λ during training so that a given share of the penalised weights ends at zero.

    Zeros answer to λ late: a weight must first fall from its start to the threshold. So the weight is watched that shall be
    the last to die, the one that the share s of all n does not exceed in magnitude, :math:`|w|_{(s)}`, and the number m of
    weights above the threshold τ. λ is changed so that z, the way that is left, falls in equal steps and is 0 at the K-th of
    the ``updates``; after a delay the steps are those that still lead there:

    .. math:: z_k = \min\left(\ln \frac{|w|_{(s)}}{\tau},\; r \ln \frac{m}{(1 - s)\, n}\right), \qquad
        a_k = \frac{z_k}{\max(K - k, K/8)}, \qquad b_k = 0.8\, b_{k-1} + 0.2\, (z_{k-1} - z_k)

    .. math:: \ln \lambda \leftarrow \ln \lambda + c_k\, \frac{a_k - b_k}{|a_k| + |b_k| + 1/K}

    with the fall a that is wanted and the fall b that is seen (at first the first one alone). r ≥ 1 makes both terms of z alike
    at the start; the second stands alone where m is at most (1 - s) n. Where groups have thresholds of their own, weights are
    ordered by \|w\|/τ; of more than a million every so many-th is taken for that. The gain is 0.7 times what it was where λ
    turns round and 1.2 times where it goes on, between c/16 and c. λ stays within 1e6 of its start, and where it decays
    factors, up to D / (2 lr), which would take a factor to zero in one step. Weights that require no gradient are not counted;
    where some are not finite, λ stays as it is.

    Call `step` after the optimizer's, every few iterations: often enough for some hundred updates in all, of which K are
    about 60 %. What comes after holds the share, while the weights that are left grow to the size that the loss asks for.

    What λ starts from matters little, as long as it is not so large that everything dies at once. In a run too short for a
    weight to fall to the threshold the target is missed.

    Args:
        optimizer: `ProxSGD`, `FactorizedSGD`, `FactorizedAdam`, `Proximal`, or another one that reads λ from ``group["lam"]``.
            Groups with ``lam`` above 0 are penalised, counted and adjusted, in proportion to each other.
        target: The share s of penalised weights to be at most ``threshold`` in magnitude, in (0, 1).
        updates: K ≥ 1, the number of calls of `step` until the share is reached.
        threshold: τ > 0, or a function of a parameter group that returns it, asked whenever it is needed. The default, the
            spacing of float32 at 1, counts what `sparsenn.collapse` makes zero. Under a subgradient weights hover about zero as
            far as a step reaches, so that a fixed τ is met only when lr has fallen; ``lambda group: max(1e-4, 3 * group["lr"] *
            group["lam"] / (1 - group["momentum"]))`` counts those that hover.
        gain: c > 0. Where weights are held by gradients that hardly change, at a constant lr, 0.03 overshoots less.

    Attributes:
        optimizer: As given.
        target: As given.

    Raises:
        ValueError: for an argument out of its range, an optimizer without penalised groups, and sharded parameters.

    Source: ours. What it reaches on the digits is in the guide to penalties, "Choosing λ".

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
        threshold: Threshold = _EPSILON,
        gain: float = 0.15,
    ) -> None:
        share, count = plain(target), whole(updates)
        if share is None or not 0 < share < 1:
            raise ValueError(f"TargetSparsity: target is {target!r}; it takes a number between 0 and 1")
        if count is None or count < 1:
            raise ValueError(f"TargetSparsity: updates is {updates!r}; it takes an integer >= 1")
        self.optimizer = optimizer
        self.target = float(share)
        self._updates, self._gain = count, _positive("gain", gain)
        self._threshold = threshold if callable(threshold) else _positive("threshold", threshold)
        self._strength = Strength("TargetSparsity", optimizer)
        if any(shards.is_sharded(p) for _, p in self._weights()):
            raise ValueError("TargetSparsity: a parameter is sharded; it takes whole ones")
        if not self._numel():
            raise ValueError("TargetSparsity: the penalised groups have no weights that require a gradient")
        self._done = 0
        self._bounds = (self.lam / _REACH, self.lam * _REACH)
        way, excess = self._measure()
        if not math.isfinite(way):
            raise ValueError("TargetSparsity: some of the weights are not finite")
        self._ratio = max(way / excess, 1.0) if excess > 0 else 1.0
        self._way = min(way, self._ratio * excess)
        self._fall: float | None = None
        self._last, self._pace = 0.0, self._gain

    @property
    def lam(self) -> float:
        """The largest λ of the optimizer's groups, as it is now."""
        return self._strength.value

    def sparsity(self) -> float:
        """The share of penalised weights that are at most the threshold in magnitude; now."""
        return 1 - self._above() / max(self._numel(), 1)

    def step(self) -> None:
        """Measure, and set the λ of the penalised groups. It waits for each device once or twice."""
        self._done += 1
        way, excess = self._measure()
        way = min(way, self._ratio * excess)
        if not math.isfinite(way):
            return
        fall = self._way - way
        self._fall = fall if self._fall is None else _SMOOTHING * self._fall + (1 - _SMOOTHING) * fall
        self._way = way
        wanted = way / max(self._updates - self._done, self._updates / _SHORTEST)
        change = (wanted - self._fall) / (abs(wanted) + abs(self._fall) + 1 / self._updates)
        pace = self._pace * (_CALMER if change * self._last < 0 else _BOLDER)
        self._pace = min(max(pace, self._gain / _SLOWEST), self._gain)
        self._last = change
        lam = self.lam * min(math.exp(self._pace * change), *map(_growth_left, self._strength.groups()))
        self._strength.value = min(max(lam, self._bounds[0]), self._bounds[1])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the optimizer's state, which has λ: plain numbers."""
        return {name: getattr(self, f"_{name}") for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of a controller with the same arguments.

        One that was made before the optimizer's state was loaded goes on with the same bits: how the λ of groups are in
        proportion is read when it is made.
        """
        values = {f"_{name}": state_dict[name] for name in _STATE}
        vars(self).update(values)

    def __repr__(self) -> str:
        return (
            f"TargetSparsity(target={self.target}, reached={self.sparsity():.4f}, lam={self.lam:.3g}, "
            f"update {self._done} of {self._updates})"
        )

    def _weights(self) -> Iterator[tuple[float, Tensor]]:
        """Every penalised weight with its threshold."""
        for group in self._strength.groups():
            tau = self._threshold if isinstance(self._threshold, float) else _positive("threshold", self._threshold(group))
            yield from ((tau, p) for p in group["params"] if p.requires_grad)

    def _numel(self) -> int:
        return sum(p.numel() for _, p in self._weights())

    @torch.no_grad()
    def _above(self) -> int:
        """How many weights are not at the threshold or below; what is no number is not."""
        counts: dict[torch.device, Tensor] = {}
        for tau, p in self._weights():
            found = p.numel() - (p.abs() <= tau).sum()
            counts[p.device] = counts[p.device] + found if p.device in counts else found
        return sum(int(count) for count in counts.values())

    @torch.no_grad()
    def _measure(self) -> tuple[float, float]:
        """How far the last weight to die is above the threshold, and the weights above it from those wanted, in nepers."""
        numel, above = self._numel(), self._above()
        dead = math.ceil(self.target * numel * (1 - 1e-12))  # 0.07 * 100 is above 7
        excess = math.log(max(above, 1) / max(numel - dead, 1))
        if above <= numel - dead:
            return 0.0, excess
        stride = -(-numel // _SAMPLE) | 1  # odd: it walks through all columns of most matrices
        found: dict[torch.device, list[Tensor]] = {}
        for tau, p in self._weights():
            found.setdefault(p.device, []).append(p.reshape(-1)[::stride].abs().double() / tau)
        ratios = torch.cat([torch.cat(own).cpu() for own in found.values()])
        rank = max(math.ceil(len(ratios) * (dead / numel) * (1 - 1e-12)), 1)
        last = float(ratios.topk(rank, largest=False, sorted=False).values.max())  # kthvalue is slow where weights fall
        return 0.0 if last == 0 else max(math.log(last), 0.0), excess


def _growth_left(group: Mapping[str, Any]) -> float:
    """By how much λ may grow until a step of its own would take a factor to zero; inf where there are none."""
    step = 2 * float(group["lr"]) * float(torch.as_tensor(group["lam"]).max())
    return group["depth"] / step if "depth" in group and step > 0 else math.inf


def _positive(name: str, value: Any) -> float:
    number = plain(value)
    if number is None or not (math.isfinite(number) and number > 0):
        raise ValueError(f"TargetSparsity: {name} is {value!r}; it takes a finite number > 0")
    return float(number)
