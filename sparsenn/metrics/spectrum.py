"""The matrices between the neurons of a ridge net: their singular values, their rank, who is alive."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsenn.metrics.sparsity import sparsity
from sparsenn.nn.ridge import found_blocks

NEGLIGIBLE = 1e-3  # entries up to here count as zero in the paper's experiments


@torch.no_grad()
def product_singular_values(left: Tensor, right: Tensor) -> Tensor:
    r"""The singular values of A = left · right, descending, from their triangular factors: A is never formed.

    With :math:`W = Q_1 R_1` and :math:`V^\top = Q_2 R_2` those of :math:`W V` are those of :math:`R_1 R_2^\top`, a matrix of
    the inner width: for 1296 × 16 and 16 × 1296 two thin factorizations and an SVD of 16 × 16. A has no others but zeros.

    Args:
        left: W, (m, r).
        right: V, (r, n).

    Returns:
        min(m, r, n) values, float64, relative accuracy of the largest.

    Raises:
        ValueError: for shapes that don't multiply, and values that are not finite.

    Example:
        >>> import torch, sparsenn
        >>> w, v = torch.ones(1000, 2), torch.eye(2, 500)
        >>> sparsenn.metrics.product_singular_values(w, v).round(decimals=3)
        tensor([44.7210,  0.0000], dtype=torch.float64)
    """
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(
            f"product_singular_values: shapes {tuple(left.shape)} and {tuple(right.shape)}; it takes (m, r) and (r, n)"
        )
    left, right = left.double(), right.double()
    if not bool(left.isfinite().all() & right.isfinite().all()):
        raise ValueError("product_singular_values: left or right holds a number that is not finite")
    left_r = torch.linalg.qr(left, mode="r").R
    right_r = torch.linalg.qr(right.mT, mode="r").R
    return torch.linalg.svdvals(left_r @ right_r.mT)


def effective_rank(singular_values: Tensor, threshold: float = NEGLIGIBLE) -> int:
    """How many singular values exceed ``threshold`` times the largest; 0 for a zero matrix.

    Args:
        singular_values: any order, non-negative.
        threshold: relative, in [0, 1).

    Raises:
        ValueError: for a threshold out of range, and values that are not finite.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.metrics.effective_rank(torch.tensor([2.28, 1e-5]))
        1
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"effective_rank: threshold is {threshold!r}; it takes a number in [0, 1)")
    if not bool(singular_values.isfinite().all()):
        raise ValueError("effective_rank: singular_values hold a number that is not finite")
    return int((singular_values > threshold * singular_values.max()).sum()) if singular_values.numel() else 0


@torch.no_grad()
def sorted_by_norm(matrix: Tensor) -> Tensor:
    """The matrix with its rows and its columns in the order of descending Euclidean norm; ties keep their order.

    Raises:
        ValueError: for another number of dimensions than 2.

    Source: Parhi, Wolf and Nowak 2021, Figure 3.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.metrics.sorted_by_norm(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        tensor([[3., 2.],
                [1., 0.]])
    """
    if matrix.dim() != 2:
        raise ValueError(f"sorted_by_norm: matrix has shape {tuple(matrix.shape)}; it takes 2 dimensions")
    rows = torch.linalg.vector_norm(matrix, dim=1).argsort(descending=True, stable=True)
    columns = torch.linalg.vector_norm(matrix, dim=0).argsort(descending=True, stable=True)
    return matrix[rows][:, columns]


@dataclass(frozen=True)
class RidgeLayer:
    """One block of a ridge net.

    Attributes:
        name: of the block in the net.
        neurons: K.
        alive: neurons whose v and w both hold a weight above the threshold.
        bound: N · D, the number of neurons that the representer theorem needs at most; None where N was not given.
        singular_values: of W V with the V of the block before; none for the first.
        rank: the effective rank of that matrix.
    """

    name: str
    neurons: int
    alive: int
    bound: int | None
    singular_values: tuple[float, ...]
    rank: int | None


@dataclass(frozen=True)
class RidgeReport:
    """What `ridge_report` finds.

    Attributes:
        layers: one for each block.
        above: share of |a| > threshold in each weight matrix, averaged over matrices (lower is sparser): the paper's figure.
        exact_zeros: share of exact zeros among all weights.
    """

    layers: tuple[RidgeLayer, ...]
    above: float
    exact_zeros: float

    def __str__(self) -> str:
        lines = [f"{self.above:.3f} of the weights count, averaged over matrices; {100 * self.exact_zeros:.1f} % are exactly 0"]
        for layer in self.layers:
            bound = "" if layer.bound is None else f", the theorem needs at most {layer.bound}"
            rank = "" if layer.rank is None else f"; rank {layer.rank} after the block before"
            lines.append(f"{layer.name or 'block'}: {layer.alive} of {layer.neurons} neurons alive{bound}{rank}")
        return "\n".join(lines)


@torch.no_grad()
def ridge_report(net: nn.Module, *, samples: int | None = None, threshold: float = NEGLIGIBLE) -> RidgeReport:
    """How sparse a net of ridge blocks is, how many of its neurons live, and the rank between its blocks.

    Blocks are taken in the order of ``net.modules()``; a matrix W V is formed of blocks that follow one another and fit.

    Args:
        net: a module with ridge blocks.
        samples: N ≥ 1, for the theorem's bound on the neurons.
        threshold: magnitudes up to here count as zero, for ``above`` and for the living; singular values up to this share of
            the largest, for the rank. In [0, 1).

    Raises:
        ValueError: for a net without ridge blocks, a number of samples or a threshold out of range, and for V and W of blocks
            that follow one another if they hold a number that is not finite.

    Source: Parhi, Wolf and Nowak 2021, Section 3 (sparsity), Theorem 1 (K ≤ N d).

    Example:
        >>> import torch, sparsenn
        >>> net = sparsenn.nn.RidgeNet(4, 1, width=32)
        >>> with torch.no_grad():
        ...     _ = net[0].outer.weight[:, 8:].zero_()
        >>> print(sparsenn.metrics.ridge_report(net, samples=81).layers[0].alive)
        8
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"ridge_report: threshold is {threshold!r}; it takes a number in [0, 1)")
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise ValueError(f"ridge_report: samples is {samples!r}; it takes an integer >= 1")
    blocks = found_blocks("ridge_report", net)
    names = {id(module): name for name, module in net.named_modules()}
    layers = []
    for index, block in enumerate(blocks):
        v, w = block.outer.weight, block.inner.weight
        alive = ((v.abs() > threshold).any(0) & (w.abs() > threshold).any(1)).sum()
        before = blocks[index - 1].outer.weight if index else None
        follows = before is not None and before.shape[0] == w.shape[1]
        values = product_singular_values(w, before) if follows and before is not None else w.new_zeros(0)
        layers.append(
            RidgeLayer(
                name=names[id(block)],
                neurons=len(w),
                alive=int(alive),
                bound=None if samples is None else samples * len(v),
                singular_values=tuple(values.tolist()),
                rank=effective_rank(values, threshold) if follows else None,
            )
        )
    return RidgeReport(tuple(layers), mean_share_above(net, threshold), exact_zeros(net))


def mean_share_above(net: nn.Module, threshold: float = NEGLIGIBLE) -> float:
    """The share of |a| > threshold in each weight matrix of a net, averaged over its matrices; 0 where it has none."""
    shares = [1.0 - sparsity(p, threshold) for p in _matrices(net) if p.numel()]
    return sum(shares) / max(len(shares), 1)


def exact_zeros(net: nn.Module) -> float:
    """The share of exact zeros among the entries of all weight matrices of a net; 0 where it has none."""
    matrices = _matrices(net)
    return sum(int((p == 0).sum()) for p in matrices) / max(sum(p.numel() for p in matrices), 1)


def _matrices(net: nn.Module) -> list[Tensor]:
    return [p for p in net.parameters() if p.dim() > 1]
