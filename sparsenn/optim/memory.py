"""Where an optimizer's state lies in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsenn.optim.shards import is_sharded

_STAGGER_BYTES = 320


def staggered_zeros(p: Tensor, dtype: torch.dtype, slot: int) -> Tensor:
    """Zeros in a parameter's shape and layout, a few cache lines further into their page for each slot.

    Large CPU tensors all begin at the same place of a page. A step that walks through many of them at once would then store to
    addresses that equal those of its next loads in their lowest 12 bits, and the processor takes the loads for dependent on the
    stores: 1.4 times slower at depth 4.
    """
    if p.device.type != "cpu" or is_sharded(p):
        return torch.zeros_like(p, dtype=dtype)
    ahead = (slot + 1) * _STAGGER_BYTES // dtype.itemsize
    strides = torch.empty_like(p, device="meta").stride()
    return torch.zeros(p.numel() + ahead, dtype=dtype).as_strided(p.shape, strides, ahead)
