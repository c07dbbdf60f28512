"""Work on many tensors element by element: small ones together, large ones in parts that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

# On the CPU results that are dropped at once then lie in memory that is at hand, and not in fresh pages. Elsewhere a long run
# is quick and a short one waits for its launch.
_CPU_RUN = 1 << 16
_DEVICE_RUN = 1 << 20

Row = tuple[Tensor, ...]


def over(rows: Iterable[Row], work: Callable[..., None]) -> None:
    """Call ``work(*tensors)`` on 1-d runs of rows of tensors, of which it changes the first in place, until all are done.

    Tensors of a row have one shape, those of a column one dtype and device. ``work`` treats every element alike, and gets
    tensors as they are where they have no common order in memory.
    """
    waiting: list[Row] = []
    size = 0
    for row in rows:
        flat = _flat(row)
        if flat is None:
            work(*row)
            continue
        count, on_cpu = flat[0].numel(), flat[0].is_cpu
        limit = _CPU_RUN if on_cpu else _DEVICE_RUN
        if count >= limit:
            for run in zip(*(x.split(limit) for x in flat), strict=True) if on_cpu else (flat,):
                work(*run)
            continue
        if size + count > limit:
            _together(waiting, work)
            waiting, size = [], 0
        waiting.append(flat)
        size += count
    _together(waiting, work)


def _together(rows: Sequence[Row], work: Callable[..., None]) -> None:
    if len(rows) == 1:
        work(*rows[0])
    elif rows:
        columns = list(zip(*rows, strict=True))
        joined = [torch.cat(column) for column in columns]
        work(*joined)
        torch._foreach_copy_(columns[0], joined[0].split([x.numel() for x in columns[0]]))


def _flat(row: Row) -> Row | None:
    """1-d views in the order in which all tensors of a row lie in memory; None where there is none."""
    if not all(x.is_contiguous() for x in row):
        strides = row[0].stride()
        order = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
        row = tuple(x.permute(order) for x in row)
        if not all(x.is_contiguous() for x in row):
            return None
    return tuple(x.view(-1) for x in row)
