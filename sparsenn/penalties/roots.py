"""Norms of groups, and the scalar equations that proximal maps over groups come down to; a group is a row of a matrix.

Each equation is concave or convex along the iteration, so Newton's method from the left climbs to the root and never passes it;
the numbers of steps are fixed, so that nothing waits for the device. Rows are scaled by their largest entry: no overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SECULAR_STEPS = 20
_VANISHING_STEPS = 60


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norms with a gradient of 0 at zero rows; infinite where an entry is, NaN where one is."""
    if rows.numel() == 0:
        return rows.new_zeros(len(rows))
    scale = _row_scale(rows)
    return scale[:, 0] * torch.linalg.vector_norm(rows / scale, dim=1)


def kept_share(rows: Tensor, reach: Tensor) -> Tensor:
    """max(1 - reach / norm, 0) for each row, as a column."""
    norms = row_norms(rows)[:, None]
    return torch.where(norms <= reach, 0.0, 1 - reach / norms)


def kept_share_diagonal(rows: Tensor, reach: Tensor) -> Tensor:
    """R / (r + reach_i) for each entry, where r is the root of sum_i (x_i / (r + reach_i))^2 = 1; 0 where there is none."""
    if rows.numel() == 0:
        return torch.ones_like(rows)
    scale = _row_scale(rows)
    x, c = (rows / scale).abs(), reach / scale
    zero = x == 0
    # Lower bounds for the root: no entry alone, nor all entries at the widest reach, may exceed what the sum allows.
    r = torch.maximum((x - c).amax(1, keepdim=True), torch.linalg.vector_norm(x, dim=1, keepdim=True) - c.amax(1, keepdim=True))
    r = r.clamp(min=0)
    dead = torch.where(zero, 0.0, x / c).square().sum(1, keepdim=True) <= 1
    for _ in range(_SECULAR_STEPS):
        # Newton's method on 1 / sqrt(f(r)) - 1, which is concave and nearly straight
        wide = r + c
        terms = torch.where(zero, 0.0, x / wide).square()
        f = terms.sum(1, keepdim=True)
        slope = torch.where(zero, 0.0, terms / wide).sum(1, keepdim=True)
        r = torch.where(f > 1, r + f * (f.sqrt() - 1) / slope, r)
    finite = rows.isfinite().all(1, keepdim=True)
    r = torch.where(finite, r, rows.abs().amax(1, keepdim=True))
    share = torch.where(c == 0, 1.0, 1 / (1 + c / r))
    return torch.where(dead, 0.0, torch.where(r.isnan(), r, share))


def squared_l1_threshold(rows: Tensor, reach: Tensor) -> Tensor:
    """reach_i t for the root t of sum_i max(|x_i| - reach_i t, 0) = t for each row, in closed form; nothing overflows."""
    if rows.numel() == 0:
        return rows.new_zeros(rows.shape)
    scale, top = _row_scale(rows), reach.amax(1, keepdim=True)
    top = torch.where(top == 0, 1.0, top).clamp(max=torch.finfo(rows.dtype).max)
    x, share = (rows / scale).abs(), (reach / top).clamp(max=1)
    # t grows as long as the next entry is beyond its threshold, and falls from there on
    order = torch.where(x == 0, 0.0, x / share).argsort(dim=1, descending=True)
    t = (x.gather(1, order).cumsum(1) / (1 / top + share.gather(1, order).cumsum(1))).amax(1, keepdim=True)
    return torch.where((share == 0) & ~t.isnan(), 0.0, scale * (share * t))


def vanishing_strength(rows: Tensor, tau: float, weight: float) -> Tensor:
    """The least lam for each row with norm(max(abs(row) - lam tau, 0)) <= lam weight."""
    if rows.numel() == 0:
        return rows.new_zeros(len(rows))
    scale = _row_scale(rows)
    x = (rows / scale).abs()
    lam = x.new_zeros(len(x))
    for _ in range(_VANISHING_STEPS):
        left = (x - tau * lam[:, None]).clamp(min=0)
        norm = torch.linalg.vector_norm(left, dim=1)
        falls = tau * left.sum(1) / torch.where(norm == 0, 1.0, norm) + weight
        excess = norm - lam * weight
        lam = torch.where(excess > 0, lam + excess / falls, lam)
    return lam * scale[:, 0]


def _row_scale(rows: Tensor) -> Tensor:
    scale = rows.detach().abs().amax(1, keepdim=True)
    return torch.where((scale == 0) | ~scale.isfinite(), 1.0, scale)
