"""Pictures of where factors start: the least factors of a weight, and the densities of factors and of their products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsenn import init
from sparsenn.data import require_extra
from sparsenn.papers.dwf.figures import accuracy_axes, color_of, panels, ramp, tradeoff, values_of
from sparsenn.training.figures import png
from sparsenn.training.table import Row

_STD = 1 / 28  # of the first layer of a LeNet-300-100 under N(0, 1 / n_in)
_DRAWS = 1_000_000
_BINS = 200
_PRODUCTS = 1000  # of Figure 25
_PRODUCT_STD = 0.1  # the same
_DEPTHS = (2, 3, 4, 10, 20)  # the same
_TERMS = (1, 5)  # the same
_MADE = 4  # depth of the products in Figure 4
_LINES = {2: "-", 3: "--", 4: ":"}


def geometry(title: str) -> bytes:
    """Figure 3: the factors of a weight lie on a hyperbola; nearest to 0 are the balanced ones, where the norm is 2 |w|."""
    figure, (plane, along) = panels(["factors of w", "their penalty"], title, "", "")
    reach = 2.0
    for w, color in zip((0.25, 0.5, 1.0), ramp(3), strict=True):
        first = torch.linspace(w / reach, reach, 400)
        for sign in (1, -1):
            plane.plot(sign * first, sign * w / first, color=color, lw=1.3, label=f"w = {w:g}" if sign > 0 else None)
            plane.plot(sign * math.sqrt(w), sign * math.sqrt(w), "o", color=color, ms=5)
        turn = torch.linspace(0, 2 * math.pi, 200)
        plane.plot(math.sqrt(2 * w) * turn.cos(), math.sqrt(2 * w) * turn.sin(), color=color, lw=0.7, ls=":")
        along.plot(first, (first**2 + (w / first) ** 2) / 2, color=color, lw=1.3, label=f"w = {w:g}")
        along.axhline(w, color=color, lw=0.7, ls=":")
        along.plot(math.sqrt(w), w, "o", color=color, ms=5)
    plane.set(xlabel="ω₁", ylabel="ω₂", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    along.set(xlabel="ω₁ (with ω₂ = w / ω₁)", ylabel="(ω₁² + ω₂²) / 2", ylim=(0, reach))
    along.legend(frameon=False, fontsize=8)
    return png(figure)


def trained(rows: Sequence[Row], title: str) -> bytes:
    """Figure 4: densities of factors and of products of four, and accuracy against compression by start and depth."""
    figure, (left, middle, right) = panels(["factors", f"products, D = {_MADE}", "trained"], title, "", "")
    spread = {}
    for depth in (2, 3, 4):
        for name, style in (("variance_matching", ":"), ("dwf", "-")):
            drawn = _drawn(name, depth, _STD, _DRAWS)
            label = f"D = {depth}" if name == "dwf" else None
            _density(left, drawn[0], (-1.5, 1.5), color=color_of(("dwf", depth)), ls=style, label=label)
            spread[name] = torch.stack(drawn).prod(0)  # of the last depth, _MADE
    for (name, product), color in zip(spread.items(), ("#d08a1d", "#8c2d5a"), strict=True):
        kurtosis = float(product.pow(4).mean() / product.square().mean() ** 2)
        _density(middle, product, (-6 * _STD, 6 * _STD), color=color, label=f"{name}, kurtosis {kurtosis:.0f}")
    _normal(middle, _STD, 6 * _STD)
    left.set(xlabel="ω (dotted: not truncated)", ylabel="density")
    middle.set(xlabel="w", yscale="log", ylim=(1e-2, None))
    names = values_of(rows, "factor_init")
    for color, name in zip(ramp(len(names)), names, strict=True):
        for depth in values_of(rows, "depth"):
            own = [row for row in rows if (row["factor_init"], row["depth"]) == (name, depth)]
            tradeoff(right, own, f"{name}, D = {depth}", color, ls=_LINES.get(depth, "-."))
    right.set(xlabel="compression", ylabel="test accuracy (%)")
    accuracy_axes(right, rows)
    for pair in (left, middle, right):
        pair.legend(frameon=False, fontsize=6)
    return png(figure)


def gaussian(title: str) -> bytes:
    """Figure 25: factors whose product is normal, by the number of terms that are taken exactly, and a test of the product.

    In the legend is the p-value of a Kolmogorov-Smirnov test of 1000 products against the normal distribution. The terms that
    are not exact are a normal variable with their mean and variance here; the paper leaves them away.
    """
    stats = require_extra("scipy.stats", "a Kolmogorov-Smirnov test")
    titles = [f"{what}, {_count(terms)} exact" for terms in _TERMS for what in ("factors", "products")]
    figure, axes = panels(titles, title, "", "density", rows=len(_TERMS))
    for row, terms in enumerate(_TERMS):
        left, right = axes[2 * row : 2 * row + 2]
        for depth, color in zip(_DEPTHS, ramp(len(_DEPTHS)), strict=True):
            drawn = _gaussian(depth, terms, _DRAWS)
            product = torch.stack(drawn).prod(0)
            test = stats.kstest((product[:_PRODUCTS] / _PRODUCT_STD).numpy(), "norm")
            _density(left, drawn[0], (-1.5, 1.5), color=color, label=f"D = {depth}")
            _density(right, product, (-0.4, 0.4), color=color, label=f"D = {depth}, p = {test.pvalue:.2f}")
        _normal(right, _PRODUCT_STD, 0.4)
        left.set_yscale("log")
        left.legend(frameon=False, fontsize=7)
        right.legend(frameon=False, fontsize=7)
    return png(figure)


def _count(terms: int) -> str:
    return f"{terms} term{'' if terms == 1 else 's'}"


def _drawn(name: str, depth: int, std: float, count: int) -> list[Tensor]:
    factors = [torch.empty(count, dtype=torch.float64) for _ in range(depth)]
    init.fill_(factors, factors[0], name, std=std, seed=0)
    return factors


def _gaussian(depth: int, terms: int, count: int) -> list[Tensor]:
    factors = [torch.empty(count, dtype=torch.float64) for _ in range(depth)]
    init.gaussian_product_(factors, _PRODUCT_STD, terms=terms, generator=torch.Generator().manual_seed(0))
    return factors


def _density(axes: Any, values: Tensor, reach: tuple[float, float], **style: Any) -> None:
    """A histogram as a line; values beyond the axis count in the whole."""
    low, high = reach
    width = (high - low) / _BINS
    counts = torch.histc(values, _BINS, low, high)
    middles = low + width * (torch.arange(_BINS) + 0.5)
    shares = counts / (len(values) * width)
    shown = shares > 0
    axes.plot(middles[shown], shares[shown], lw=1.2, **style)


def _normal(axes: Any, std: float, reach: float) -> None:
    x = torch.linspace(-reach, reach, _BINS)
    density: Callable[[Tensor], Tensor] = torch.distributions.Normal(0.0, std).log_prob
    axes.plot(x, density(x).exp(), color="black", lw=0.9, ls="--", label="normal")
