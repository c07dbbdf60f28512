"""How D factors of a weight start: drawn as in the paper, or split from a given weight.

Every function works in place and under ``no_grad``, on float64, float32, bfloat16 and float16, any shape (0-d and empty too)
and any strides. Numbers are drawn and computed in float64 and rounded once into the factor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsenn.init import stream
from sparsenn.ops.reference import DTYPES

FACTOR_INITS = ("preserve", "root", "dwf", "variance_matching", "standard")
MIN_ABS = 3e-3
MIN_WEIGHT = 1e-4
# Share of a zero weight's gradient that its last factor sees at the start.
_ZERO_GAIN = 0.1
# Largest gradient of a factor, in terms of its weight's, beside the balanced split's; never kept below 1.
_MAX_UNEVEN_GAIN = 2.0


# A float64 draw from a uniform one in (0, 1) and an independent sign.
Draw = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def preserve_(
    factors: Sequence[Tensor],
    weight: Tensor,
    *,
    std: float | None = None,
    min_abs: float = MIN_ABS,
    min_weight: float = MIN_WEIGHT,
    generator: torch.Generator | None = None,
) -> None:
    r"""Split a weight over D factors that are random among themselves and whose product is the weight.

    Factors :math:`u_1 \dots u_D` are drawn as by :func:`dwf_`; then the D factors of each weight are rescaled by one positive
    number, and the last takes the sign that is wanted:

    .. math:: |\omega_d| = |u_d| \left(\frac{|\bar w|}{\prod_k |u_k|}\right)^{1/D}, \qquad
        \bar w = \operatorname{sign}(w) \max(|w|, w_{\min}), \qquad \prod_d \omega_d = \bar w

    So the network's function stays, also a pretrained one's, while the factors are unbalanced enough to change signs. The last
    factor absorbs the rounding of the others: the product is :math:`\bar w` to one rounding of that factor.

    A factor's gradient is the weight's times :math:`|\bar w / \omega_d|`. Where that would exceed both 1 and twice the balanced
    split's :math:`|\bar w|^{1-1/D}`, the ratios between the factors are drawn together (by a power below 1) until it does not:
    otherwise one in a hundred BatchNorm scales at D = 3 starts 300 times as steep as the scale itself, and SGD diverges.

    Weights below the floor :math:`w_{\min}`, zeros above all, are raised to it (with a random sign where w is exactly 0) and
    split otherwise, since D small factors hold each other down: the gradient of each has the others as a factor, and the decay
    wins. There all but the last have the magnitude :math:`0.1^{1/(D-1)}`, and the last is ten times the weight. It follows a
    tenth of the weight's gradient, at every depth, and passes through 0 freely: BatchNorm shifts and zero biases learn.

    At depth 1 the factor is the weight, exactly and without the floor: one factor is no factorization.

    Args:
        factors: D ≥ 1 tensors of the weight's shape, to be overwritten.
        weight: The tensor to split. It is read only; its new value, where the floor acts, is the product of the factors.
        std: Scale of the draw, as in :func:`dwf_`. Only ratios between the factors of one weight matter, so it is raised where
            the draw would otherwise have an empty support. Default: the weight's root mean square, at least ``min_weight``.
        min_abs: Smallest magnitude of a factor in the draw, before rescaling; in [0, 1).
        min_weight: The floor. With 0 it acts on exact zeros only, and they stay zeros: their last factor is 0.
        generator: Source of the seed. Default: torch's own.

    Raises:
        ValueError: for no factors, other shapes, dtypes or devices than the weight's, a negative ``min_weight``, a ``min_abs``
            outside of [0, 1), or a scale that is not finite (weights that hold NaN or infinity).

    Source: ours; the draw is that of Kolb et al. 2025, Algorithm 1.

    Example:
        >>> import torch, sparsenn
        >>> weight = torch.tensor([0.5, -0.25, 0.0])
        >>> factors = [torch.empty(3) for _ in range(3)]
        >>> sparsenn.init.preserve_(factors, weight)
        >>> product = factors[0] * factors[1] * factors[2]
        >>> torch.testing.assert_close(product[:2], weight[:2])
        >>> torch.testing.assert_close(product[2].abs(), torch.tensor(1e-4))
    """
    factors = checked_factors("preserve_", factors, weight)
    _preserve(factors, weight, std, min_abs, min_weight, stream.new_seed(generator), None)


@torch.no_grad()
def root_(factors: Sequence[Tensor], weight: Tensor) -> None:
    r"""Split a weight over D factors of equal magnitude, the first with the weight's sign.

    .. math:: \omega_1 = \operatorname{sign}(w) |w|^{1/D}, \qquad \omega_2 = \dots = \omega_D = |w|^{1/D}

    The start is balanced, and SGD keeps it so, with L2 or without: the magnitudes stay equal, so the factors reach 0 only
    together and then stay there. **A balanced start can't move a weight that is 0, nor, at even D, change the sign of any**,
    whatever the steps. At odd D small steps of gradient descent can't either, but momentum or a large step may carry all of
    them over 0 at once.

    Args:
        factors: D ≥ 1 tensors of the weight's shape, to be overwritten. With one, it becomes the weight.
        weight: The tensor to split.

    Raises:
        ValueError: for no factors, or other shapes, dtypes or devices than the weight's.

    Source: Kolb et al. 2025, Definition 4; the sign by Lemma 4.

    Example:
        >>> import torch, sparsenn
        >>> factors = [torch.empty(2), torch.empty(2)]
        >>> sparsenn.init.root_(factors, torch.tensor([-4.0, 9.0]))
        >>> factors
        [tensor([-2.,  3.]), tensor([2., 3.])]
    """
    factors = checked_factors("root_", factors, weight)
    _root(factors, weight)


@torch.no_grad()
def dwf_(factors: Sequence[Tensor], std: float, min_abs: float = MIN_ABS, generator: torch.Generator | None = None) -> None:
    r"""Draw factors from a truncated normal whose variance is, before the truncation, matched to that of the weight.

    .. math:: \omega_d \sim \mathcal N(0, \sigma^{2/D}) \quad\text{given}\quad
        \omega_{\min} < |\omega_d| < \min\left(1, (2 \sigma)^{1/D}\right)

    The truncation takes away dead weights near 0 and the outliers of :func:`variance_matching_`. The draw inverts the
    distribution function; nothing is rejected. In a factor's dtype the bounds hold strictly.

    Args:
        factors: D ≥ 1 tensors of one shape, to be overwritten.
        std: Standard deviation σ of the weight that the factors replace.
        min_abs: :math:`\omega_{\min}`, the same at every depth (Appendix G; the listing of Algorithm 1 has
            :math:`\varepsilon^{1/D}`).
        generator: Source of the seed. Default: torch's own.

    Raises:
        ValueError: for an empty support, a ``std`` that is not positive and finite, a negative ``min_abs``, no factors, or
            factors of different shapes or devices.

    Source: Kolb et al. 2025, Algorithm 1 and Appendix G.

    Example:
        >>> import torch, sparsenn
        >>> factors = [torch.empty(1000) for _ in range(3)]
        >>> sparsenn.init.dwf_(factors, std=0.05)
        >>> bool(((factors[0].abs() > 3e-3) & (factors[0].abs() < 0.1 ** (1 / 3))).all())
        True
    """
    factors = checked_factors("dwf_", factors)
    draw_into(factors, *_dwf("dwf_", factors, std, min_abs), stream.new_seed(generator), None)


@torch.no_grad()
def variance_matching_(factors: Sequence[Tensor], std: float, generator: torch.Generator | None = None) -> None:
    r"""Draw normal factors whose product has the given standard deviation.

    .. math:: \omega_d \sim \mathcal N(0, \sigma^{2/D}), \qquad \operatorname{Var}\Big(\prod_d \omega_d\Big) = \sigma^2

    The product has kurtosis :math:`3^D`: most weights are nearly 0 and a few are large. :func:`dwf_` cures both.

    Args:
        factors: D ≥ 1 tensors of one shape, to be overwritten.
        std: Standard deviation σ of the product.
        generator: Source of the seed. Default: torch's own.

    Raises:
        ValueError: for a ``std`` that is not positive and finite, no factors, or factors of different shapes or devices.

    Source: Kolb et al. 2025, Section 4.1.

    Example:
        >>> import torch, sparsenn
        >>> factors = [torch.empty(100000) for _ in range(3)]
        >>> sparsenn.init.variance_matching_(factors, std=0.125, generator=torch.Generator().manual_seed(0))
        >>> [round(factor.std().item(), 2) for factor in factors]
        [0.5, 0.5, 0.5]
    """
    factors = checked_factors("variance_matching_", factors)
    scale = positive("variance_matching_", std) ** (1 / len(factors))
    draw_into(factors, _normal(scale), None, stream.new_seed(generator), None)


@torch.no_grad()
def standard_(factors: Sequence[Tensor], std: float, generator: torch.Generator | None = None) -> None:
    r"""Draw every factor as one would draw the weight itself.

    .. math:: \omega_d \sim \mathcal N(0, \sigma^2), \qquad \operatorname{Var}\Big(\prod_d \omega_d\Big) = \sigma^{2 D}

    Here for comparison: the product shrinks to 0 as D grows, and activations vanish.

    Args:
        factors: D ≥ 1 tensors of one shape, to be overwritten.
        std: Standard deviation σ of each factor.
        generator: Source of the seed. Default: torch's own.

    Raises:
        ValueError: for a ``std`` that is not positive and finite, no factors, or factors of different shapes or devices.

    Source: Kolb et al. 2025, Definition 3 and Lemma 2.

    Example:
        >>> import torch, sparsenn
        >>> factors = [torch.empty(100000) for _ in range(2)]
        >>> sparsenn.init.standard_(factors, std=0.1, generator=torch.Generator().manual_seed(0))
        >>> round((factors[0] * factors[1]).std().item(), 3)
        0.01
    """
    factors = checked_factors("standard_", factors)
    draw_into(factors, _normal(positive("standard_", std)), None, stream.new_seed(generator), None)


@torch.no_grad()
def fill_(
    factors: Sequence[Tensor],
    weight: Tensor,
    factor_init: str,
    *,
    std: float | None = None,
    seed: int | None = None,
    index: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Start the factors of a weight by the name of a method; the common entry of optimizers and parametrizations.

    ``"preserve"`` and ``"root"`` split the weight, the others draw the factors and use the weight for its scale only; the
    weight itself is never written. Each draw is a function of (seed, number of the factor, number of the element): a shard of a
    weight, given its part of ``index`` and the whole's ``std``, gets its part of the whole's factors, to the bit.

    Args:
        factors: D ≥ 1 tensors of the weight's shape, to be overwritten.
        weight: The weight to split or to take the scale from.
        factor_init: One of ``FACTOR_INITS``: ``"preserve"``, ``"root"``, ``"dwf"``, ``"variance_matching"``, ``"standard"``.
        std: Scale of the draw. Default: ``max(root_mean_square(weight), MIN_WEIGHT)``, so that a weight of zeros is drawn at
            scale 1e-4. ``"root"`` does not use it.
        seed: Any integer. Default: one drawn from ``generator``.
        index: int64 tensor of the weight's shape with the elements' numbers in the whole weight. Default: row-major from 0.
        generator: Source of the seed where none is given. Default: torch's own.

    Raises:
        ValueError: for an unknown ``factor_init``, no factors, other shapes or devices than the weight's, an ``index`` of
            another shape or dtype, an empty support of ``"dwf"`` or a scale that is not finite (weights that hold NaN or
            infinity).

    Example:
        >>> import torch, sparsenn
        >>> weight = torch.randn(4, 3)
        >>> whole = [torch.empty(4, 3) for _ in range(2)]
        >>> sparsenn.init.fill_(whole, weight, "preserve", std=1.0, seed=7)
        >>> part = [torch.empty(2, 3) for _ in range(2)]
        >>> numbers = torch.arange(12).view(4, 3)
        >>> sparsenn.init.fill_(part, weight[2:], "preserve", std=1.0, seed=7, index=numbers[2:])
        >>> torch.equal(part[1], whole[1][2:])
        True
    """
    if factor_init not in FACTOR_INITS:
        raise ValueError(f"fill_: unknown factor_init {factor_init!r}; it takes one of {', '.join(map(repr, FACTOR_INITS))}")
    factors = checked_factors("fill_", factors, weight)
    if index is not None and (index.shape != weight.shape or index.dtype != torch.int64 or index.device != weight.device):
        raise ValueError(
            f"fill_: index must be an int64 tensor of the weight's shape {tuple(weight.shape)} on {weight.device}; "
            f"got {index.dtype} of shape {tuple(index.shape)} on {index.device}"
        )
    if factor_init == "root":
        return _root(factors, weight)
    if seed is None:
        seed = stream.new_seed(generator)
    if weight.is_meta or weight.numel() == 0:
        return None
    if factor_init == "preserve":
        return _preserve(factors, weight, std, MIN_ABS, MIN_WEIGHT, seed, index)
    std = _scale("fill_", weight, MIN_WEIGHT) if std is None else positive("fill_", std)
    if factor_init == "dwf":
        return draw_into(factors, *_dwf("fill_", factors, std, MIN_ABS), seed, index)
    scale = std if factor_init == "standard" else std ** (1 / len(factors))
    return draw_into(factors, _normal(scale), None, seed, index)


@torch.no_grad()
def root_mean_square(weight: Tensor) -> float:
    r"""Root mean square of a tensor, :math:`\sqrt{\sum_i w_i^2 / n}`, in float64 and the same bits for any number of threads.

    Args:
        weight: Floating-point tensor of any shape; of an empty one the result is 0.

    Returns:
        A float: what :func:`fill_` takes as ``std`` where it is not given, before the floor. NaN where a weight is not finite.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.init.root_mean_square(torch.tensor([3.0, 4.0, 0.0, 0.0]))
        2.5
    """
    # A sum of less than 2^15 elements is not split over threads.
    parts = [weight[piece].double().square().sum() for piece in stream.pieces(weight.shape, 1 << 14)]
    squares = torch.stack(parts).tolist() if parts else []
    finite = all(map(math.isfinite, squares))
    return math.sqrt(math.fsum(squares) / max(weight.numel(), 1)) if finite else math.nan


def _preserve(
    factors: list[Tensor],
    weight: Tensor,
    std: float | None,
    min_abs: float,
    min_weight: float,
    seed: int,
    index: Tensor | None,
) -> None:
    depth = len(factors)
    if not 0 <= min_abs < 1:
        raise ValueError(f"preserve_: min_abs must be in [0, 1); got {min_abs}")
    if not 0 <= min_weight < math.inf:
        raise ValueError(f"preserve_: min_weight must be at least 0 and finite; got {min_weight}")
    if depth == 1:
        factors[0].copy_(weight)
        return
    if weight.is_meta or weight.numel() == 0:
        return
    std = _scale("preserve_", weight, min_weight) if std is None else float(std)
    if not 0 <= std < math.inf:
        raise ValueError(f"preserve_: std must be at least 0 and finite; got {std}")
    # The draw's scale cancels; raised so that the largest magnitude is twice the smallest where [min_abs, 1) has the room.
    std = max(std, (2 * min_abs) ** depth / 2, torch.finfo(torch.float32).tiny)
    draw = _truncated_normal(std ** (1 / depth), min_abs, _upper(std, depth))
    zero_size = _ZERO_GAIN ** (1 / (depth - 1))
    for piece, numbers in stream.numbered_pieces(weight, index):
        drawn = [draw(*stream.uniform(numbers, seed, d)) for d in range(depth)]
        w = weight[piece].double()
        small = (w.abs() < min_weight) | (w == 0)
        sign = torch.where(w == 0, torch.stack([u.sign() for u in drawn]).prod(0), w.sign())
        target = torch.where(small, sign * min_weight, w)
        logs = torch.stack([u.abs() for u in drawn]).log_()
        logs -= functools.reduce(torch.add, logs) / depth  # a reduction by torch adds in an order that depends on the place
        log_target = target.abs().log_()
        log_gain = log_target * (1 - 1 / depth)
        room = (math.log(_MAX_UNEVEN_GAIN) + log_gain).clamp_(min=0) - log_gain
        logs *= (room / -logs.amin(0).clamp_(max=-1e-300)).clamp_(max=1)
        sizes = logs.add_(log_target / depth).exp_()
        others = torch.ones_like(w)
        for factor, u, size in zip(factors[:-1], drawn[:-1], sizes, strict=False):
            part = factor[piece].copy_(u.sign() * torch.where(small, zero_size, size))
            others *= part.double()
        factors[-1][piece].copy_(target / others)


def _root(factors: list[Tensor], weight: Tensor) -> None:
    depth = len(factors)
    if depth == 1:
        factors[0].copy_(weight)
        return
    if weight.is_meta:
        return
    for piece, _ in stream.numbered_pieces(weight, None):
        w = weight[piece].double()
        size = w.abs()
        root = size.log().div_(depth).exp_()
        power = root
        for _ in range(depth - 2):
            power = power * root
        # One Newton step: exp(log(x) / D) alone is off by |log x| roundings.
        newton = root - (root - size / power) / depth
        root = torch.where((size > 0) & size.isfinite(), newton, root)
        factors[0][piece].copy_(root.copysign(w))
        for factor in factors[1:]:
            factor[piece].copy_(root)


def draw_into(factors: list[Tensor], draw: Draw, bounds: tuple[float, float] | None, seed: int, index: Tensor | None) -> None:
    """Fill each factor from its own stream; with bounds, magnitudes stay strictly between them in the factor's dtype."""
    limits = [_inner(*bounds, factor.dtype) if bounds else None for factor in factors]
    if factors[0].is_meta or factors[0].numel() == 0:
        return
    for piece, numbers in stream.numbered_pieces(factors[0], index):
        for d, (factor, limit) in enumerate(zip(factors, limits, strict=True)):
            value = draw(*stream.uniform(numbers, seed, d))
            if limit is not None:
                value = value.abs().clamp_(*limit).copysign_(value)
            factor[piece].copy_(value)


def _normal(scale: float) -> Draw:
    return lambda u, sign: torch.erfinv(u).mul_(sign).mul_(scale * math.sqrt(2))


def _truncated_normal(scale: float, low: float, high: float) -> Draw:
    """N(0, scale²) given low < |x| < high: the inverse of its distribution function, accurate since high ≤ 2 scale."""
    first, last = (math.erf(bound / (scale * math.sqrt(2))) for bound in (low, high))
    normal = _normal(scale)
    return lambda u, sign: normal(u.mul(last - first).add_(first), sign)


def _upper(std: float, depth: int) -> float:
    return min(1.0, (2 * std) ** (1 / depth))


def _dwf(where: str, factors: list[Tensor], std: float, min_abs: float) -> tuple[Draw, tuple[float, float]]:
    std, depth = positive(where, std), len(factors)
    if not 0 <= min_abs < math.inf:
        raise ValueError(f"{where}: min_abs must be at least 0 and finite; got {min_abs}")
    bounds = (min_abs, _upper(std, depth))
    if any(low > high for low, high in (_inner(*bounds, factor.dtype) for factor in factors)):
        raise ValueError(
            f"{where}: nothing lies between min_abs={min_abs:g} and min(1, (2 std)^(1/D)) = {bounds[1]:g} "
            f"for std={std:g}, D={depth}, {factors[0].dtype}; take a smaller min_abs or factor_init='preserve'"
        )
    return _truncated_normal(std ** (1 / depth), *bounds), bounds


def _inner(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The smallest number of a dtype above ``low`` and the largest one below ``high``."""

    def inside(bound: float, towards: float) -> float:
        rounded = torch.tensor(bound, dtype=dtype)
        crossed = rounded.item() > bound if towards > bound else rounded.item() < bound
        return (rounded if crossed else torch.nextafter(rounded, torch.tensor(towards, dtype=dtype))).item()

    return inside(low, math.inf), inside(high, -math.inf)


def _scale(where: str, weight: Tensor, floor: float) -> float:
    std = root_mean_square(weight)
    if not math.isfinite(std):
        raise ValueError(f"{where}: weight holds values that are not finite, so its root mean square is no scale; pass std")
    return max(std, floor)


def positive(where: str, std: float) -> float:
    """A standard deviation as Python's float, or ValueError."""
    if not 0 < std < math.inf:
        raise ValueError(f"{where}: std must be positive and finite; got {std}")
    return float(std)


def checked_factors(where: str, factors: Sequence[Tensor], weight: Tensor | None = None) -> list[Tensor]:
    """Factors of one shape and device, the weight's if it is given, and of dtypes that can be drawn, or ValueError."""
    factors = list(factors)
    if not factors:
        raise ValueError(f"{where}: factors must hold at least one tensor; got none")
    like = factors[0] if weight is None else weight
    for name, tensor in [*((f"factors[{d}]", factor) for d, factor in enumerate(factors)), ("weight", like)]:
        if tensor.shape != like.shape or tensor.device != like.device:
            raise ValueError(
                f"{where}: {name} has shape {tuple(tensor.shape)} on {tensor.device}; all take the shape {tuple(like.shape)} "
                f"on {like.device} of {'the first factor' if weight is None else 'the weight'}"
            )
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{where}: {name} is {tensor.dtype}; it takes {', '.join(map(str, DTYPES))}")
    return factors
