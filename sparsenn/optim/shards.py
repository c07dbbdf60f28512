"""What an optimizer must know of parameters that are sharded over ranks (DTensor, as FSDP2 makes them)."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from sparsenn.init.stream import new_seed


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor. Its module is not imported for the question: without it there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor: the tensor itself where it is not sharded."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def global_index(p: Tensor) -> Tensor | None:
    """The row-major number that each element of this rank's part has in the whole; None where the part is the whole."""
    if not is_sharded(p):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)  # type: ignore[attr-defined]
    index = torch.zeros((), dtype=torch.int64, device=p.device)
    for size, begin, whole in zip(shape, offset, p.shape, strict=True):
        index = index.unsqueeze(-1) * whole + torch.arange(begin, begin + size, device=p.device)
    return index.reshape(shape)


def part(x: Tensor, p: Tensor) -> Tensor:
    """Of a whole tensor in a parameter's shape, the part that this rank has of the parameter."""
    if not is_sharded(p):
        return x
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)  # type: ignore[attr-defined]
    for dim, (size, begin) in enumerate(zip(shape, offset, strict=True)):
        x = x.narrow(dim, min(begin, x.shape[dim]), size)  # an empty part may begin past the end
    return x


def placement(p: Tensor) -> tuple[Any, ...]:
    """How a parameter lies over the ranks; () where it is not sharded."""
    return (p.device_mesh, *p.placements) if is_sharded(p) else ()  # type: ignore[attr-defined]


def summed(count: Tensor, p: Tensor) -> Tensor:
    """The sum over the ranks of what each has counted in its part of a parameter; a collective where it is sharded."""
    if not is_sharded(p):
        return count
    from torch.distributed.tensor import DTensor, Partial, Replicate

    parts = [Replicate() if placement.is_replicate() else Partial() for placement in p.placements]  # type: ignore[attr-defined]
    return DTensor.from_local(count, p.device_mesh, parts).full_tensor()  # type: ignore[attr-defined]


def root_mean_square(p: Tensor) -> float:
    """Of the whole parameter; a collective where it is sharded."""
    if p.numel() == 0:
        return 0.0
    squares = p.detach().to(torch.float64).square().sum()
    whole = squares.full_tensor() if is_sharded(squares) else squares  # type: ignore[attr-defined]
    return float((whole / p.numel()).sqrt())


def shared_seed(generator: torch.Generator | None) -> int:
    """A seed from the generator; without one from torch's default generator on rank 0, for all ranks."""
    seed = new_seed(generator, 2**62)  # another bound would draw other factors from the generators of earlier runs
    if generator is None and torch.distributed.is_available() and torch.distributed.is_initialized():
        seeds = [seed]
        torch.distributed.broadcast_object_list(seeds, src=0)
        seed = seeds[0]
    return seed
