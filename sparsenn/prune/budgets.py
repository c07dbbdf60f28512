"""How many weights stay, and which: exact counts, over all layers together or layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BUDGETS = ("uniform", "erk", "global")


def uniform(shapes: Sequence[Sequence[int]]) -> list[float]:
    """Shares of the weights that stay, up to a common factor, where every layer keeps the same density: their sizes.

    Example:
        >>> from sparsenn.prune.budgets import uniform
        >>> uniform([(300, 784), (100, 300)])
        [235200.0, 30000.0]
    """
    return [float(math.prod(shape)) for shape in shapes]


def erdos_renyi_kernel(shapes: Sequence[Sequence[int]]) -> list[float]:
    r"""Shares of the weights that stay, up to a common factor, in an Erdős–Rényi-Kernel network.

    .. math:: \mathrm{density} \;\propto\; \frac{m + n + k_1 + k_2}{m \cdot n \cdot k_1 \cdot k_2}

    for n inputs, m outputs and a kernel of k₁ × k₂, so a layer keeps a number of weights in proportion to the sum of its sizes:
    small layers stay denser. Vectors are the densest.

    Source: Evci et al. 2020, "Rigging the lottery", Section 3; for linear layers Mocanu et al. 2018.

    Example:
        >>> from sparsenn.prune.budgets import erdos_renyi_kernel
        >>> erdos_renyi_kernel([(300, 784), (64, 32, 3, 3), (10,)])
        [1084.0, 102.0, 10.0]
    """
    return [float(max(sum(shape), 1)) if math.prod(shape) else 0.0 for shape in shapes]


def allocate(shares: Sequence[float], capacities: Sequence[int], total: int) -> list[int]:
    r"""Whole numbers :math:`n_l \approx \min(c_l, s \cdot \mathrm{share}_l)` with one s for all and :math:`\sum_l n_l` = total.

    What a full layer can't take goes to the others. Fractions are rounded down, and the rest goes to the largest fractions, of
    equal ones to the first.

    Args:
        shares: One number ≥ 0 for each layer; more than 0 where the capacity is.
        capacities: The largest number :math:`c_l` of each layer.
        total: The sum, from 0 to that of the capacities.

    Example:
        >>> from sparsenn.prune.budgets import allocate
        >>> allocate([10.0, 10.0, 20.0], [3, 100, 100], 12)
        [3, 3, 6]
    """
    open_layers = [i for i, capacity in enumerate(capacities) if capacity]
    exact = [0.0] * len(shares)
    left = total
    while open_layers:
        scale = left / sum(shares[i] for i in open_layers)
        full = [i for i in open_layers if scale * shares[i] >= capacities[i]]
        for i in full or open_layers:
            exact[i] = float(capacities[i]) if full else scale * shares[i]
        left -= sum(capacities[i] for i in full)
        open_layers = [i for i in open_layers if i not in full] if full else []
    counts = [min(math.floor(value), capacity) for value, capacity in zip(exact, capacities, strict=True)]
    by_fraction = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    while (missing := total - sum(counts)) > 0:
        for i in [i for i in by_fraction if counts[i] < capacities[i]][:missing]:
            counts[i] += 1
    return counts


def largest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Where the ``count`` largest entries of some tensors together are: bool tensors; of equal entries the first ones count.

    Shape:
        Any; the tensors are compared in float64 and come in the order in which ties are broken.

    Example:
        >>> import torch
        >>> from sparsenn.prune.budgets import largest
        >>> largest([torch.tensor([1.0, 3.0]), torch.tensor([[3.0, 2.0]])], 2)
        [tensor([False,  True]), tensor([[ True, False]])]
    """
    if not scores:
        return []
    flat = torch.cat([score.detach().to(scores[0].device, torch.float64).flatten() for score in scores])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    if count > 0:
        bound = _kth_largest(flat, count)
        chosen = flat > bound
        ties = (flat == bound).nonzero().flatten()
        chosen[ties[: count - int(chosen.sum())]] = True
    parts = chosen.split([score.numel() for score in scores])
    return [part.view(score.shape).to(score.device) for part, score in zip(parts, scores, strict=True)]


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    """By topk: kthvalue takes the square of the time where scores fall, and has no deterministic form on CUDA."""
    return flat.topk(flat.numel() - k + 1, largest=False, sorted=False).values.max()
