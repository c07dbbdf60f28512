"""Penalties that are a sum over weights: what they share, and the convex ones."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from sparsenn._numbers import plain
from sparsenn.ops import soft_threshold
from sparsenn.penalties.base import Penalty, like


class Separable(Penalty):
    """A penalty that is the sum of one function of each weight's magnitude. λ may be a tensor that broadcasts to the weights.

    A subclass writes down that function, its slope for magnitudes ≥ 0 (at 0 the slope to the right, which may be infinite) and
    its proximal map.
    """

    def _value(self, x: Tensor) -> Tensor:
        return self._penalty(x.abs(), like(x, self.lam)).sum()

    def _distance(self, x: Tensor, g: Tensor) -> Tensor:
        slope = self._slope(x.abs(), like(x, self.lam))
        return torch.where(x == 0, (g.abs() - slope).clamp(min=0), (g + x.sign() * slope).abs())

    def _lambda_max(self, g: Tensor, step: Tensor) -> Tensor:
        return g.abs().amax()

    @abstractmethod
    def _penalty(self, m: Tensor, lam: Tensor) -> Tensor: ...

    @abstractmethod
    def _slope(self, m: Tensor, lam: Tensor) -> Tensor: ...


class L1(Separable):
    r"""The lasso's penalty; its proximal map is soft thresholding.

    .. math::
        P(w) = \lambda \sum_i |w_i|, \qquad
        \operatorname{prox}_{sP}(w)_i = \operatorname{sign}(w_i) \max(|w_i| - s\lambda, 0)

    Distance to the subdifferential: :math:`|g + \lambda \operatorname{sign} w|` where w ≠ 0, :math:`\max(|g| - \lambda, 0)`
    where w = 0. `lambda_max` is :math:`\max |g|`: w = 0 is stationary from there on.

    Args:
        lam: λ ≥ 0, a number or a tensor that broadcasts to the weights (the weighted lasso).

    Raises:
        ValueError: for a λ that is negative, not finite or does not broadcast to the weights.

    Source: Tibshirani 1996; Donoho 1995; Parikh and Boyd 2014, Section 6.5.2.

    Example:
        >>> import torch, sparsenn
        >>> penalty = sparsenn.penalties.L1(0.5)
        >>> penalty.prox(torch.tensor([3.0, -0.2, -1.0]), step=1.0)
        tensor([ 2.5000,  0.0000, -0.5000])
        >>> penalty.value(torch.tensor([3.0, -0.2, -1.0]))
        tensor(2.1000)
    """

    def _penalty(self, m: Tensor, lam: Tensor) -> Tensor:
        return lam * m

    def _slope(self, m: Tensor, lam: Tensor) -> Tensor:
        return lam.expand_as(m)

    def _prox(self, x: Tensor, step: Tensor) -> Tensor:
        return soft_threshold(x, like(x, self.lam) * step)


class ElasticNet(Separable):
    r"""L1 and squared L2 together, in the convention of scikit-learn, with the share ρ of L1.

    .. math::
        P(w) = \lambda \sum_i \rho |w_i| + \tfrac{1 - \rho}{2} w_i^2, \qquad
        \operatorname{prox}_{sP}(w)_i = \frac{\operatorname{sign}(w_i) \max(|w_i| - s\lambda\rho, 0)}{1 + s\lambda(1 - \rho)}

    Distance to the subdifferential: as for `L1` at λρ, with λ(1 − ρ)w added to the gradient. `lambda_max` is
    :math:`\max |g| / \rho`; without L1 (ρ = 0) it is infinite, unless the gradient is 0.

    Args:
        lam: λ ≥ 0, a number or a tensor that broadcasts to the weights.
        l1_ratio: ρ in [0, 1].

    Raises:
        ValueError: for a λ as in `L1`, and a ratio outside [0, 1].

    Source: Zou and Hastie 2005.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.penalties.ElasticNet(1.0, l1_ratio=0.5).prox(torch.tensor([3.5, -0.2]), step=1.0)
        tensor([2., 0.])
    """

    def __init__(self, lam: float | Tensor, l1_ratio: float = 0.5) -> None:
        super().__init__(lam)
        self.l1_ratio = checked_ratio("ElasticNet", l1_ratio)

    def _lambda_max(self, g: Tensor, step: Tensor) -> Tensor:
        top = g.abs().amax()
        return torch.where(top == 0, top, top / self.l1_ratio if self.l1_ratio else torch.inf)

    def _penalty(self, m: Tensor, lam: Tensor) -> Tensor:
        return lam * (self.l1_ratio * m + (1 - self.l1_ratio) / 2 * m.square())

    def _slope(self, m: Tensor, lam: Tensor) -> Tensor:
        return lam * (self.l1_ratio + (1 - self.l1_ratio) * m)

    def _prox(self, x: Tensor, step: Tensor) -> Tensor:
        reach = like(x, self.lam) * step
        return soft_threshold(x, self.l1_ratio * reach).div_((1 - self.l1_ratio) * reach + 1)

    def _options(self) -> dict[str, object]:
        return {"l1_ratio": self.l1_ratio}


def checked_ratio(kind: str, ratio: float) -> float:
    """L1's share of a penalty as a float, or ValueError."""
    number = plain(ratio)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"{kind}: l1_ratio is {ratio!r}; it takes a number from 0 to 1")
    return float(number)
