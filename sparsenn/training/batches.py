"""The order of the images, a function of seed and epoch alone, so that a resumed run meets the same batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0..count-1 (int64), independent for every pair of seed and epoch.

    Example:
        >>> from sparsenn.training.batches import epoch_order
        >>> sorted(epoch_order(4, seed=0, epoch=7).tolist())
        [0, 1, 2, 3]
    """
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed & (2**63 - 1)))


def batches(images: Tensor, labels: Tensor, order: Tensor, size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ``size`` images gathered in ``order``, from batch ``first`` on; the last one may be smaller.

    Shape:
        images (N, ...), labels (N,), order (N,); yields (B, ...) and (B,).
    """
    order = order.to(images.device)
    for start in range(first * size, len(order), size):
        chosen = order[start : start + size]
        yield images[chosen], labels[chosen]


def batch_count(count: int, size: int) -> int:
    """How many batches cover ``count`` images."""
    return -(-count // size)
