"""Separable penalties that spare large weights: L0, L_1/2, L_2/3, MCP and SCAD."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from sparsenn._numbers import plain
from sparsenn.ops import soft_threshold
from sparsenn.penalties.base import like, signed
from sparsenn.penalties.separable import Separable

_NEWTON_STEPS = {torch.float32: 4, torch.float64: 5}  # to the last bit: each squares an error that begins below 0.1


class _OfMagnitudes(Separable):
    """A penalty whose proximal map is written for magnitudes, and may change its memory."""

    def _prox(self, x: Tensor, step: Tensor) -> Tensor:
        return signed(self._shrink(x.abs(), like(x, self.lam), step), x)

    @abstractmethod
    def _shrink(self, m: Tensor, lam: Tensor, step: Tensor) -> Tensor: ...


class _Power(_OfMagnitudes):
    """λ Σ |w|^q with q = 1 - 1/n."""

    q: ClassVar[float]
    n: ClassVar[int]

    def _lambda_max(self, g: Tensor, step: Tensor) -> Tensor:
        # s |g| <= u (lam s)^(1 / (2 - q)), solved for lam in a form without a division by a step of 0
        return ((g.abs() / self._threshold()) ** (2 - self.q) * step ** (1 - self.q)).amax()

    def _threshold(self) -> float:
        """Below which magnitude the minimizer of ½(x − w)² + |x|^q is 0."""
        q = self.q
        return (2 - q) / (2 * (1 - q)) * (2 * (1 - q)) ** (1 / (2 - q))

    def _penalty(self, m: Tensor, lam: Tensor) -> Tensor:
        zero = m == 0  # where the derivative of the power is infinite, and its gradient here 0
        return torch.where(zero, 0.0, lam * torch.where(zero, 1.0, m) ** self.q)

    def _slope(self, m: Tensor, lam: Tensor) -> Tensor:
        return torch.where(lam == 0, 0.0, lam * self.q * m ** (self.q - 1))

    def _shrink(self, m: Tensor, lam: Tensor, step: Tensor) -> Tensor:
        q, n, scale = self.q, self.n, (lam * step) ** (1 / (2 - self.q))
        dead = m <= self._threshold() * scale
        # The share r = x / w that is kept solves r + c r^(-1/n) = 1 with c = q k, k <= 0.56: for its root y = r^(1/n) that is
        # y^(n+1) - y + c = 0, with no power but whole ones. The left side is convex, so Newton's method falls from 1, and first
        # to 1 - c/n, onto the largest root; k = 0 gives exactly 1. Unlike the closed forms it can't overflow.
        c = torch.where(dead, 0.0, scale.div(m)).pow_(2 - q).mul_(q)
        y = 1 - c / n
        for _ in range(_NEWTON_STEPS[m.dtype]):
            power = y.pow(n)
            y.mul_(power).mul_(n).sub_(c).div_(power.mul_(n + 1).sub_(1))
        return torch.where(dead, 0.0, m.mul_(y.pow_(n)))


class L0_5(_Power):  # noqa: N801  (the digits are the exponent)
    r"""The :math:`L_{1/2}` penalty, which depth-4 factorization induces.

    .. math::
        P(w) = \lambda \sum_i |w_i|^{1/2}, \qquad
        \operatorname{prox}_{sP}(w)_i = \tfrac23 w_i \big(1 + \cos(\tfrac23 \arccos(-\tfrac{3\sqrt3}{4} a |w_i|^{-3/2}))\big)

    for :math:`|w_i| > \tfrac32 a^{2/3}` with :math:`a = s\lambda`, and 0 below: the global minimizer, 0 in the case of a tie.
    The root is computed by Newton's method on the kept share of the weight, which can't overflow.

    Distance to the subdifferential: :math:`|g + \tfrac{\lambda}{2} |w|^{-1/2} \operatorname{sign} w|` where w ≠ 0. Where w = 0
    every number is a subgradient (λ > 0) and the distance is 0: zero always is a local minimum. `lambda_max` therefore asks for
    more: the smallest λ for which a proximal gradient step of size ``step`` from w = 0 stays there,
    :math:`\max (2|g|/3)^{3/2} s^{1/2}`.

    Args:
        lam: λ ≥ 0, a number or a tensor that broadcasts to the weights.

    Raises:
        ValueError: for a λ that is negative, not finite or does not broadcast to the weights.

    Source: Xu, Chang, Xu and Zhang 2012, with λ there twice ours; the link to factors: Kolb et al. 2025, Theorem 1.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.penalties.L0_5(1.0).prox(torch.tensor([1.5, 1.6, 100.0]), step=1.0)
        tensor([ 0.0000,  1.1295, 99.9500])
    """

    q, n = 1 / 2, 2


class L2_3(_Power):  # noqa: N801
    r"""The :math:`L_{2/3}` penalty, which depth-3 factorization induces.

    .. math::
        P(w) = \lambda \sum_i |w_i|^{2/3}, \qquad
        \operatorname{prox}_{sP}(w)_i = \operatorname{sign}(w_i)\, y^3, \quad y^4 - |w_i|\, y + \tfrac23 a = 0

    with the larger root y for :math:`|w_i| > 2 (\tfrac23 a)^{3/4}` where :math:`a = s\lambda`, and 0 below: the global
    minimizer, 0 in the case of a tie.

    Distance to the subdifferential: :math:`|g + \tfrac23 \lambda |w|^{-1/3} \operatorname{sign} w|` where w ≠ 0, and 0 where
    w = 0 (λ > 0), as for `L0_5`. `lambda_max` is the smallest λ for which a proximal gradient step of size ``step`` from w = 0
    stays there, :math:`\max \tfrac32 (|g|/2)^{4/3} s^{1/3}`.

    Args:
        lam: λ ≥ 0, a number or a tensor that broadcasts to the weights.

    Raises:
        ValueError: for a λ that is negative, not finite or does not broadcast to the weights.

    Source: Cao, Sun and Xu 2013, with λ there twice ours; the link to factors: Kolb et al. 2025, Theorem 1.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.penalties.L2_3(1.0).prox(torch.tensor([1.4, 2.0, 1000.0]), step=1.0)
        tensor([  0.0000,   1.4047, 999.9333])
    """

    q, n = 2 / 3, 3


class L0(_OfMagnitudes):
    r"""The number of weights that are not 0; its proximal map is hard thresholding.

    .. math::
        P(w) = \lambda\, |\{i : w_i \ne 0\}|, \qquad
        \operatorname{prox}_{sP}(w)_i = w_i \text{ if } |w_i| > \sqrt{2 s \lambda}, \text{ else } 0

    The gradient of `value` is 0 everywhere. Distance to the subdifferential: :math:`|g|` where w ≠ 0, and 0 where w = 0
    (λ > 0), as for `L0_5`. `lambda_max` is the smallest λ for which a proximal gradient step of size ``step`` from w = 0 stays
    there, :math:`\max s g^2 / 2`.

    Args:
        lam: λ ≥ 0, a number or a tensor that broadcasts to the weights.

    Raises:
        ValueError: for a λ that is negative, not finite or does not broadcast to the weights.

    Source: Blumensath and Davies 2008.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.penalties.L0(0.5).prox(torch.tensor([1.5, -0.9]), step=1.0)
        tensor([1.5000, 0.0000])
    """

    def _lambda_max(self, g: Tensor, step: Tensor) -> Tensor:
        return (step * g.square() / 2).amax()

    def _penalty(self, m: Tensor, lam: Tensor) -> Tensor:
        return torch.where(m.detach().isnan(), m, lam * (m != 0))

    def _slope(self, m: Tensor, lam: Tensor) -> Tensor:
        return torch.where((m == 0) & (lam > 0), torch.inf, 0.0).to(m.dtype)

    def _shrink(self, m: Tensor, lam: Tensor, step: Tensor) -> Tensor:
        return torch.where(m <= (2 * lam * step).sqrt(), 0.0, m)


class MCP(_OfMagnitudes):
    r"""The minimax concave penalty: L1 near 0, constant from γλ on, so that large weights are not shrunk.

    .. math::
        P(w) = \sum_i \begin{cases} \lambda |w_i| - w_i^2 / (2\gamma) & |w_i| \le \gamma\lambda \\
        \gamma\lambda^2 / 2 & |w_i| > \gamma\lambda \end{cases}

    For a step s < γ the proximal map is :math:`\operatorname{sign}(w) \max(|w| - s\lambda, 0) / (1 - s/\gamma)` for
    |w| ≤ γλ and w beyond (firm thresholding). For s ≥ γ the objective is no longer convex; its global minimizer is w for
    :math:`|w| > \lambda \sqrt{\gamma s}` and 0 below.

    Distance to the subdifferential: :math:`|g + \max(\lambda - |w|/\gamma, 0) \operatorname{sign} w|` where w ≠ 0,
    :math:`\max(|g| - \lambda, 0)` where w = 0. `lambda_max` is :math:`\max |g|`: w = 0 is stationary from there on.

    Args:
        lam: λ ≥ 0, a number or a tensor that broadcasts to the weights.
        gamma: γ > 0; the larger, the closer to `L1`.

    Raises:
        ValueError: for a λ that is negative, not finite or does not broadcast to the weights, and γ ≤ 0.

    Source: Zhang 2010; the map for s < γ: Breheny and Huang 2011.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.penalties.MCP(1.0, gamma=3.0).prox(torch.tensor([0.9, 2.0, -4.0]), step=1.0)
        tensor([ 0.0000,  1.5000, -4.0000])
    """

    def __init__(self, lam: float | Tensor, gamma: float = 3.0) -> None:
        super().__init__(lam)
        number = plain(gamma)
        if number is None or not (math.isfinite(number) and number > 0):
            raise ValueError(f"MCP: gamma is {gamma!r}; it takes a finite number > 0")
        self.gamma = float(number)

    def _penalty(self, m: Tensor, lam: Tensor) -> Tensor:
        bent = torch.minimum(m, (self.gamma * lam).expand_as(m))  # the same formula holds with m cut at gamma * lam
        return bent * (lam - bent / (2 * self.gamma))

    def _slope(self, m: Tensor, lam: Tensor) -> Tensor:
        return (lam - m / self.gamma).clamp(min=0)

    def _shrink(self, m: Tensor, lam: Tensor, step: Tensor) -> Tensor:
        ratio = step / self.gamma
        narrowing = torch.where(ratio < 1, 1 - ratio, torch.inf)
        inner = soft_threshold(m, lam * step).div_(narrowing)
        knee = ratio.clamp_(min=1).sqrt_().mul(self.gamma * lam)
        return torch.where(m <= knee, torch.minimum(inner, m), m)

    def _options(self) -> dict[str, object]:
        return {"gamma": self.gamma}


class SCAD(_OfMagnitudes):
    r"""The smoothly clipped absolute deviation penalty: L1 up to λ, then ever flatter, constant from aλ on.

    .. math::
        P(w) = \sum_i \begin{cases} \lambda |w_i| & |w_i| \le \lambda \\
        (2 a \lambda |w_i| - w_i^2 - \lambda^2) / (2 (a - 1)) & \lambda < |w_i| \le a\lambda \\
        \lambda^2 (a + 1) / 2 & |w_i| > a\lambda \end{cases}

    For a step s < a − 1 the proximal map is soft thresholding by sλ up to :math:`|w| = \lambda(1 + s)`,
    :math:`\operatorname{sign}(w) ((a-1)|w| - s a \lambda) / (a - 1 - s)` up to aλ, and w beyond. For s ≥ a − 1 the objective is
    no longer convex; its global minimizer is w beyond :math:`\lambda (a + 1 + s)/2`, for s > a + 1 beyond
    :math:`\lambda \sqrt{s (a + 1)}`, and below that soft thresholding.

    Distance to the subdifferential: :math:`|g + P'(|w|) \operatorname{sign} w|` where w ≠ 0, :math:`\max(|g| - \lambda, 0)`
    where w = 0. `lambda_max` is :math:`\max |g|`: w = 0 is stationary from there on.

    Args:
        lam: λ ≥ 0, a number or a tensor that broadcasts to the weights.
        a: a > 1; 3.7 is the value that Fan and Li recommend.

    Raises:
        ValueError: for a λ that is negative, not finite or does not broadcast to the weights, and a ≤ 1.

    Source: Fan and Li 2001, Equations 2.7 and 2.8 (there for s = 1).

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.penalties.SCAD(1.0, a=3.7).prox(torch.tensor([0.9, 1.5, 3.0, -4.0]), step=1.0)
        tensor([ 0.0000,  0.5000,  2.5882, -4.0000])
    """

    def __init__(self, lam: float | Tensor, a: float = 3.7) -> None:
        super().__init__(lam)
        number = plain(a)
        if number is None or not (math.isfinite(number) and number > 1):
            raise ValueError(f"SCAD: a is {a!r}; it takes a finite number > 1")
        self.a = float(number)

    def _penalty(self, m: Tensor, lam: Tensor) -> Tensor:
        bent = m > lam  # ties belong to one side: torch.minimum would give half a slope to each
        linear = torch.where(bent, lam, m)
        bend = torch.where(bent, torch.minimum(m, (self.a * lam).expand_as(m)) - lam, 0.0)  # how far into the bent part
        return lam * linear + bend * (lam - bend / (2 * (self.a - 1)))

    def _slope(self, m: Tensor, lam: Tensor) -> Tensor:
        return torch.minimum(lam, (self.a * lam - m) / (self.a - 1)).clamp(min=0)

    def _shrink(self, m: Tensor, lam: Tensor, step: Tensor) -> Tensor:
        a = self.a
        convex = step < a - 1
        soft = soft_threshold(m, lam * step)
        # written as a fall from m, which is rounded relative to the fall
        fall = (a * lam - m).mul_(step).div_(torch.where(convex, a - 1 - step, 1.0))
        inner = torch.where(convex & (m > lam * (1 + step)), m - fall, soft)
        knee = torch.where(step <= a + 1, (a + 1 + step) / 2, (step * (a + 1)).sqrt())
        return torch.where(m <= lam * torch.where(convex, a, knee), inner, m)

    def _options(self) -> dict[str, object]:
        return {"a": self.a}
