"""Independent factors whose product is exactly normal."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsenn.init import stream
from sparsenn.init.factors import Draw, checked_factors, draw_into, positive

_PERIOD = 64.0
_HIGHEST = 6.0
_LOGIT_RANGE = 25.0
_KNOTS = 4096
_EULER_GAMMA = 0.5772156649015329


@torch.no_grad()
def gaussian_product_(
    factors: Sequence[Tensor], std: float, *, terms: int = 64, generator: torch.Generator | None = None
) -> None:
    r"""Draw D independent, identically distributed factors whose product is N(0, σ²).

    .. math:: \ln|\omega_d| = \frac{\ln(2\sigma^2)}{2D} - G_{0,d}
        - \sum_{k \ge 1} \left[\frac{G_{k,d}}{2k+1} - \frac{1}{2D} \ln\Big(1 + \frac1k\Big)\right],
        \qquad G_{k,d} \sim \operatorname{Gamma}(1/D, 1)

    with a random sign. Drawing the gamma variables of every factor is what makes this slow; instead the series is summed once
    per depth, in its characteristic function, where the terms after ``terms`` are replaced by a normal variable with their mean
    and variance. Inverting that gives a table of quantiles, and each factor costs one uniform draw and one interpolation.

    Args:
        factors: D ≥ 1 tensors of one shape, to be overwritten.
        std: Standard deviation σ of the product.
        terms: How many terms of the series, beside :math:`G_0`, are taken exactly; at least 1.
        generator: Source of the seed. Default: torch's own.

    Raises:
        ValueError: for a ``std`` that is not positive and finite, ``terms`` below 1, no factors, or factors of different shapes
            or devices.

    Source: Kolb et al. 2025, Appendix H.2, Lemma 5 (Equation 19).

    Example:
        >>> import torch, sparsenn
        >>> factors = [torch.empty(100000) for _ in range(3)]
        >>> sparsenn.init.gaussian_product_(factors, std=2.0, generator=torch.Generator().manual_seed(0))
        >>> product = factors[0] * factors[1] * factors[2]
        >>> round((product.abs() < 2.0).float().mean().item(), 2)  # one standard deviation
        0.68
    """
    factors = checked_factors("gaussian_product_", factors)
    depth = len(factors)
    scale = positive("gaussian_product_", std) ** (1 / depth)
    if terms < 1:
        raise ValueError(f"gaussian_product_: terms must be at least 1; got {terms}")
    table = _quantiles(depth, terms).to(factors[0].device) if not factors[0].is_meta else torch.empty(0)
    draw_into(factors, _interpolated(table, scale), None, stream.new_seed(generator), None)


def _interpolated(table: Tensor, scale: float) -> Draw:
    step = 2 * _LOGIT_RANGE / _KNOTS

    def draw(u: Tensor, sign: Tensor) -> Tensor:
        position = torch.logit(u).add_(_LOGIT_RANGE).div_(step).clamp_(0, _KNOTS - 2**-20)
        knot = position.long()
        t = position.sub_(knot)
        a, b, c, d = table[:, knot].unbind()
        return (((d * t + c) * t + b) * t + a).exp_().mul_(sign).mul_(scale)

    return draw


@functools.lru_cache(maxsize=32)
def _quantiles(depth: int, terms: int) -> Tensor:
    """Cubic pieces of ln|ω| for σ = 1 over a uniform grid of logit(u): coefficients of powers of the place within a piece."""
    x, density, cdf = _distribution(depth, terms)
    tail = 1e-13
    inside = (cdf > tail) & (cdf < 1 - tail)
    x, density, cdf = x[inside], density[inside], cdf[inside]
    logit, slope = torch.logit(cdf), cdf * (1 - cdf) / density
    at = torch.linspace(-_LOGIT_RANGE, _LOGIT_RANGE, _KNOTS + 1, dtype=torch.float64)
    left = (torch.searchsorted(logit, at, right=True) - 1).clamp(0, len(logit) - 2)
    width = logit[left + 1] - logit[left]
    pieces = _hermite(x[left], x[left + 1], slope[left] * width, slope[left + 1] * width)
    t = (at - logit[left]) / width
    a, b, c, d = pieces
    value = ((d * t + c) * t + b) * t + a
    gradient = ((3 * d * t + 2 * c) * t + b) / width * (2 * _LOGIT_RANGE / _KNOTS)
    return _hermite(value[:-1], value[1:], gradient[:-1], gradient[1:])


def _hermite(start: Tensor, end: Tensor, slope: Tensor, end_slope: Tensor) -> Tensor:
    """Cubics on [0, 1] with the given values and slopes at both ends, lowest power first."""
    rise = end - start
    return torch.stack([start, slope, 3 * rise - 2 * slope - end_slope, slope + end_slope - 2 * rise])


def _distribution(depth: int, terms: int) -> tuple[Tensor, Tensor, Tensor]:
    """Grid, density and distribution function of ln|ω| for σ = 1, by the Fourier series of a period that holds both tails."""
    points = 1 << max(16, math.ceil(math.log2(4096 * depth)))
    # The modulus is at most exp(-pi t / 4D), up to a constant: beyond this range it is below 1e-20.
    t = torch.arange(math.ceil(60 * depth * _PERIOD / (2 * math.pi)), dtype=torch.float64) * (2 * math.pi / _PERIOD)
    # ln|z| of a normal z has these moments; what the kept terms lack of them is the remainder's.
    mean, variance = -0.5 * (_EULER_GAMMA + math.log(2)), math.pi**2 / 8
    log_modulus, angle = torch.zeros_like(t), torch.zeros_like(t)
    for k in range(terms + 1):
        rate = 2 * k + 1
        log_modulus -= 0.5 * torch.log1p((t / rate).square_())
        angle -= torch.atan(t / rate)
        mean += 1 / rate
        variance -= 1 / rate**2
    log_modulus -= 0.5 * variance * t.square()
    angle += mean * t

    # The grid is lowest + period * j / points: the shift of the angle makes the series a plain inverse transform.
    lowest = _HIGHEST - _PERIOD
    characteristic = torch.polar((log_modulus / depth).exp(), t * lowest - angle / depth)
    x = lowest + torch.arange(points, dtype=torch.float64) * (_PERIOD / points)
    density = torch.fft.irfft(characteristic, n=points, norm="forward") / _PERIOD
    characteristic[0] = 0
    characteristic[1:] /= 1j * t[1:]
    wave = torch.fft.irfft(characteristic, n=points, norm="forward") / _PERIOD
    return x, density, (x - lowest) / _PERIOD + wave - wave[0]
