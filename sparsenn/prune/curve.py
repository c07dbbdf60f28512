"""What a trained model is worth once only its largest weights are left."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

from torch import nn

from sparsenn.nn.selection import Selectors, selected
from sparsenn.prune.budgets import largest
from sparsenn.prune.masks import entries, remove


def pruning_curve(
    model: nn.Module,
    metric: Callable[[nn.Module], float],
    *,
    compressions: Sequence[float] | None = None,
    exclude: Selectors = (),
) -> list[tuple[float, float]]:
    """A metric against the compression ratio, by global magnitude pruning of a trained model without any training after it.

    Args:
        model: The model, which stays as it is; a copy, without masks, is pruned.
        metric: Takes the pruned copy, gives a number, such as its accuracy.
        compressions: All N parameters over those that stay: at a compression c the ⌊N / c⌋ largest do. Default: 2, 4, 8, … up
            to N.
        exclude: Who is never pruned, as in :func:`magnitude`; default: nobody, biases and normalization are ranked too.

    Returns:
        For each compression, in the order given, the exact ratio and the metric there; those that keep no weight, that can't be
        reached under ``exclude``, or that the zeros of the model surpass by themselves, are left out.

    Raises:
        ValueError: for a compression below 1, a pattern that means nothing, or a parameter that can't be pruned (see
            :func:`magnitude`).

    Source: Kolb et al. 2025, Figure 1, right.

    Example:
        >>> import torch, sparsenn
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, -4.0, 0.0, 2.0]])
        >>> sparsenn.prune.pruning_curve(layer, lambda pruned: float(pruned.weight.abs().sum()))
        [(2.0, 7.0), (4.0, 4.0)]
    """
    pruned = remove(copy.deepcopy(model))
    found = entries(pruned)
    protected = selected([entry.named for entry in found], exclude, "pruning_curve: exclude")
    chosen = [entry for i, entry in enumerate(found) if i not in protected and entry.stored.is_floating_point()]
    for entry in chosen:
        if entry.obstacle:
            raise ValueError(f"pruning_curve: {entry.name!r} {entry.obstacle}, or leave it out with exclude")
    weights = [entry.stored.detach() for entry in chosen]
    whole = [weight.clone() for weight in weights]
    total = sum(entry.numel for entry in found)
    free = total - sum(weight.numel() for weight in weights)
    alive = sum(int(weight.count_nonzero()) for weight in weights)
    if compressions is None:
        compressions = [2.0**k for k in range(1, int(math.log2(max(total, 1))) + 1)]
    curve = []
    for compression in compressions:
        if not 1 <= compression < math.inf:
            raise ValueError(f"pruning_curve: compressions holds {compression!r}; it takes numbers >= 1")
        keep = math.floor(total / compression) - free
        if 0 <= keep <= alive and keep + free > 0:
            kept = largest([weight.abs() for weight in whole], keep)
            for weight, start, mask in zip(weights, whole, kept, strict=True):
                weight.copy_(start.masked_fill(~mask, 0))
            curve.append((total / (keep + free), metric(pruned)))
    return curve
