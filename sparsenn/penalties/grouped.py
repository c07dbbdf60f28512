"""Penalties that remove whole groups of weights: rows, columns, filters, channels, attention heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsenn._numbers import whole
from sparsenn.nn.parametrizations import GROUPS
from sparsenn.ops import soft_threshold
from sparsenn.ops.reference import accumulator
from sparsenn.penalties import roots
from sparsenn.penalties.base import Penalty, like, signed
from sparsenn.penalties.separable import checked_ratio


@dataclass(frozen=True)
class Heads:
    """The heads of an attention layer as groups of a projection's weight.

    Args:
        num_heads: Number of heads H ≥ 1.
        head_dim: Width of one head ≥ 1.
        of: "rows" for the projections to queries, keys and values, (B · H · head_dim, C) with B ≥ 1 of them stacked as in
            ``MultiheadAttention.in_proj_weight``: a group is one head's rows in all B blocks. "columns" for the projection from
            the heads, (C, H · head_dim) as ``out_proj.weight``.

    Raises:
        ValueError: for numbers below 1 and another ``of``.

    Example:
        >>> import torch, sparsenn
        >>> attention = torch.nn.MultiheadAttention(32, num_heads=4)
        >>> penalty = sparsenn.penalties.GroupL1(1e-3, groups=sparsenn.penalties.Heads(4, 8))
        >>> penalty.norms(attention.in_proj_weight).shape
        torch.Size([4])
    """

    num_heads: int
    head_dim: int
    of: str = "rows"

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim"):
            given = getattr(self, name)
            if (number := whole(given)) is None or number < 1:
                raise ValueError(f"Heads: {name} is {given!r}; it takes an integer >= 1")
            object.__setattr__(self, name, number)
        if self.of not in ("rows", "columns"):
            raise ValueError(f"Heads: of is {self.of!r}; it takes 'rows' or 'columns'")


class _Grouped(Penalty):
    """What penalties over groups share: the matrix that has one group in each row, and the way back."""

    def __init__(self, lam: float | Tensor, groups: str | Heads, weighted: bool) -> None:
        super().__init__(lam)
        kind = type(self).__name__
        if not isinstance(groups, Heads) and groups not in GROUPS:
            raise ValueError(f"{kind}: groups is {groups!r}; it takes one of {', '.join(GROUPS)}, or Heads(...)")
        self.groups = groups
        self.weighted = bool(weighted)

    def _set_lam(self, lam: float | Tensor) -> None:
        if isinstance(lam, Tensor) and lam.numel() != 1:
            kind = type(self).__name__
            raise ValueError(f"{kind}: lam has shape {tuple(lam.shape)}; it takes a number or a tensor with one element")
        super()._set_lam(lam)

    def check_fits(self, w: Tensor, name: str = "w") -> None:
        super().check_fits(w, name)
        self._layout(tuple(w.shape), name)

    @torch.no_grad()
    def norms(self, w: Tensor) -> Tensor:
        """The Euclidean norm of every group, without overflow; float32 for half types."""
        self.check_fits(w)
        return roots.row_norms(self._split(accumulator(w)))

    def _layout(self, shape: tuple[int, ...], name: str = "w") -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A shape to view the weight in, and an order of its dimensions with the groups' first."""
        kind, dims = type(self).__name__, len(shape)
        if isinstance(self.groups, Heads):
            heads, width = self.groups.num_heads, self.groups.head_dim
            rows = self.groups.of == "rows"
            whole = dims == 2 and (shape[0] % (heads * width) == 0 if rows else shape[1] == heads * width)
            if not whole:
                takes = f"(B * {heads * width}, C)" if rows else f"(C, {heads * width})"
                raise ValueError(f"{kind}: {name} has shape {shape}; {self.groups} takes {takes}")
            if rows:
                return (shape[0] // (heads * width), heads, width, shape[1]), (1, 0, 2, 3)
            return (shape[0], heads, width), (1, 0, 2)
        takes_dims, dim = GROUPS[self.groups]
        if dims not in takes_dims:
            raise ValueError(
                f"{kind}: {name} has shape {shape}; groups={self.groups!r} takes {' or '.join(map(str, takes_dims))} dimensions"
            )
        return shape, (dim, 1 - dim, *range(2, dims))

    def _split(self, x: Tensor) -> Tensor:
        view, order = self._layout(tuple(x.shape))
        return x.reshape(view).permute(order).reshape(view[order[0]], math.prod(view[d] for d in order[1:]))

    def _join(self, rows: Tensor, shape: torch.Size) -> Tensor:
        view, order = self._layout(tuple(shape))
        back = sorted(range(len(order)), key=order.__getitem__)
        return rows.reshape([view[d] for d in order]).permute(back).reshape(shape)

    def _group_weight(self, rows: Tensor) -> float:
        return math.sqrt(rows.shape[1]) if self.weighted else 1.0

    def _options(self) -> dict[str, object]:
        return {"groups": repr(self.groups), "weighted": self.weighted}

    # λ (τ ‖w‖₁ + (1 − τ) Σ_G ω ‖w_G‖₂), of which the group lasso is the case τ = 0

    _tau = 0.0

    def _value(self, x: Tensor) -> Tensor:
        rows = self._split(x)
        total = (1 - self._tau) * self._group_weight(rows) * roots.row_norms(rows).sum()
        if self._tau:
            total = total + self._tau * rows.abs().sum()
        return self._scalar_lam(x) * total

    def _prox(self, x: Tensor, step: Tensor) -> Tensor:
        reach = self._scalar_lam(x) * step
        one_step = reach.numel() == 1
        reach = reach.reshape(()) if one_step else self._split(reach.expand_as(x))
        rows = self._split(x)
        sparse = soft_threshold(rows, self._tau * reach) if self._tau else rows
        group_reach = (1 - self._tau) * self._group_weight(rows) * reach
        share = roots.kept_share(sparse, group_reach) if one_step else roots.kept_share_diagonal(sparse, group_reach)
        return torch.empty_like(x).copy_(self._join(sparse * share, x.shape) + 0.0)

    def _distance(self, x: Tensor, g: Tensor) -> Tensor:
        rows, g, lam = self._split(x), self._split(g), self._scalar_lam(x)
        tau, weight = self._tau, self._group_weight(rows)
        norms = roots.row_norms(rows)
        alive = norms[:, None] != 0
        group = (1 - tau) * weight * lam * torch.where(alive, rows / torch.where(alive, norms[:, None], 1.0), 0.0)
        zero = soft_threshold(g.abs(), tau * lam) if tau else g.abs()
        # beside a weight that is not 0, a zero one feels the group's pull not at all, and L1's as a dead zone
        distance = roots.row_norms(torch.where(rows != 0, g + tau * lam * rows.sign() + group, zero))
        return torch.where(alive[:, 0], distance, (distance - (1 - tau) * weight * lam).clamp(min=0))

    def _scalar_lam(self, x: Tensor) -> Tensor:
        return like(x, self.lam).reshape(())


class GroupL1(_Grouped):
    r"""The group lasso: a sum of Euclidean norms, which removes whole groups at once.

    .. math::
        P(w) = \lambda \sum_G \omega \|w_G\|_2, \qquad
        \operatorname{prox}_{sP}(w)_G = \max\Big(1 - \frac{s \lambda \omega}{\|w_G\|_2}, 0\Big) w_G

    with :math:`\omega = \sqrt{|G|}`, so that groups of different size are penalised alike, or ω = 1. With one step per weight
    there is no closed form: a group is 0 where :math:`\|w_G / s\|_2 \le \lambda\omega`, and else
    :math:`w_i r / (r + s_i \lambda \omega)` with the norm r of the result, found to rounding by a monotone Newton iteration.

    Distance to the subdifferential, one number a group: :math:`\|g_G + \lambda \omega w_G / \|w_G\|\|_2`, for a zero group
    :math:`\max(\|g_G\|_2 - \lambda \omega, 0)`. `lambda_max` is :math:`\max_G \|g_G\|_2 / \omega`: w = 0 is stationary from
    there on. A NaN makes its whole group NaN.

    Args:
        lam: λ ≥ 0, a number or a tensor with one element.
        groups: "rows" (a linear layer's outputs) or "columns" (its inputs) of a matrix; "filters" (dimension 0: a convolution's
            output channels) or "channels" (dimension 1: its input channels; a transposed convolution has them the other way
            round) of a weight with 3 to 5 dimensions; or `Heads`.
        weighted: Whether :math:`\omega = \sqrt{|G|}`, the convention of the literature, or 1.

    Raises:
        ValueError: for a λ that is negative or not finite, unknown groups, and a tensor that has no such groups.

    Source: Yuan and Lin 2006; for networks Scardapane et al. 2017. The map: Parikh and Boyd 2014, Section 6.5.1.

    Example:
        >>> import torch, sparsenn
        >>> penalty = sparsenn.penalties.GroupL1(1.0, groups="rows", weighted=False)
        >>> penalty.prox(torch.tensor([[3.0, 4.0], [0.6, 0.0]]), step=1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])
    """

    def __init__(self, lam: float | Tensor, groups: str | Heads = "rows", weighted: bool = True) -> None:
        super().__init__(lam, groups, weighted)

    def _lambda_max(self, g: Tensor, step: Tensor) -> Tensor:
        rows = self._split(g)
        return roots.row_norms(rows).amax() / self._group_weight(rows)


class SparseGroupL1(_Grouped):
    r"""The sparse group lasso: groups vanish, and weights within the groups that stay.

    .. math:: P(w) = \lambda \Big( \tau \|w\|_1 + (1 - \tau) \sum_G \omega \|w_G\|_2 \Big)

    The proximal map is soft thresholding by :math:`s \lambda \tau`, then that of `GroupL1` at :math:`(1 - \tau) \lambda`, also
    with one step per weight. The distance to the subdifferential is one number a group. `lambda_max` is the smallest λ with
    :math:`\|\max(|g_G| - \lambda\tau, 0)\|_2 \le \lambda (1 - \tau) \omega` for every group: w = 0 is stationary from there on.

    Args:
        lam: λ ≥ 0, a number or a tensor with one element.
        l1_ratio: τ in [0, 1]; 0 is `GroupL1`, 1 is `L1`.
        groups: As for `GroupL1`.
        weighted: As for `GroupL1`.

    Raises:
        ValueError: as `GroupL1`, and for a ratio outside [0, 1].

    Source: Simon, Friedman, Hastie and Tibshirani 2013, with their α for τ.

    Example:
        >>> import torch, sparsenn
        >>> penalty = sparsenn.penalties.SparseGroupL1(2.0, l1_ratio=0.5, groups="rows", weighted=False)
        >>> penalty.prox(torch.tensor([[4.0, 5.0, 0.5], [1.5, 0.0, 1.5]]), step=1.0)
        tensor([[2.4000, 3.2000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """

    def __init__(self, lam: float | Tensor, l1_ratio: float = 0.5, groups: str | Heads = "rows", weighted: bool = True) -> None:
        super().__init__(lam, groups, weighted)
        self.l1_ratio = self._tau = checked_ratio("SparseGroupL1", l1_ratio)

    def _lambda_max(self, g: Tensor, step: Tensor) -> Tensor:
        rows = self._split(g)
        return roots.vanishing_strength(rows, self._tau, (1 - self._tau) * self._group_weight(rows)).amax()

    def _options(self) -> dict[str, object]:
        return {"l1_ratio": self.l1_ratio, **super()._options()}


class SquaredL1(_Grouped):
    r"""The sum over groups of the squared L1 norm: what :func:`rbv2` asks of the weights out of a neuron.

    .. math::
        P(w) = \lambda \sum_G \|w_G\|_1^2, \qquad
        \operatorname{prox}_{sP}(w)_i = \operatorname{sign}(w_i) \max(|w_i| - 2 s_i \lambda t_G, 0)

    with the L1 norm t of the result, which is the largest of
    :math:`\sum_{i \le m} |w_i| / (1 + 2 \lambda \sum_{i \le m} s_i)` over the m entries with the largest :math:`|w_i| / s_i`,
    found by sorting. Weights within a group vanish, a whole group only where it is 0 before.

    Distance to the subdifferential, one number a group: the Euclidean norm of :math:`g + 2 \lambda t \operatorname{sign} w` at
    non-zero weights and :math:`\max(|g| - 2 \lambda t, 0)` at zeros. `lambda_max` is infinite, unless the gradient is 0. A NaN
    makes its whole group NaN; beside an infinite weight the finite ones become 0.

    Args:
        lam: λ ≥ 0, a number or a tensor with one element.
        groups: as for `GroupL1`.

    Raises:
        ValueError: as `GroupL1`.

    Source: Parhi, Wolf and Nowak 2021, Equation 2; as the exclusive lasso Zhou, Jin and Hoi 2010.

    Example:
        >>> import torch, sparsenn
        >>> penalty = sparsenn.penalties.SquaredL1(0.5, groups="rows")
        >>> penalty.prox(torch.tensor([[3.0, -1.0], [0.5, 0.5]]), step=1.0)
        tensor([[1.5000, 0.0000],
                [0.1667, 0.1667]])
    """

    def __init__(self, lam: float | Tensor, groups: str | Heads = "rows") -> None:
        super().__init__(lam, groups, weighted=False)

    def _value(self, x: Tensor) -> Tensor:
        return self._scalar_lam(x) * self._split(x).abs().sum(1).square().sum()

    def _prox(self, x: Tensor, step: Tensor) -> Tensor:
        rows, reach = self._split(x), self._split((2 * self._scalar_lam(x) * step).expand_as(x))
        threshold = roots.squared_l1_threshold(rows, reach)
        small = torch.where(rows.isinf(), rows.abs(), soft_threshold(rows.abs(), threshold))
        return torch.empty_like(x).copy_(self._join(signed(small, rows), x.shape))

    def _distance(self, x: Tensor, g: Tensor) -> Tensor:
        rows, g = self._split(x), self._split(g)
        slope = 2 * self._scalar_lam(x) * rows.abs().sum(1, keepdim=True)
        return roots.row_norms(torch.where(rows == 0, (g.abs() - slope).clamp(min=0), g + rows.sign() * slope))

    def _lambda_max(self, g: Tensor, step: Tensor) -> Tensor:
        top = g.abs().amax()
        return torch.where(top == 0, top, top * torch.inf)

    def _options(self) -> dict[str, object]:
        return {"groups": repr(self.groups)}
