"""The parameters of a step on factors as a kernel takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparsenn.optim import plans


@dataclass(slots=True)
class Pieces:
    """One parameter as the kernel takes it: local shards, and the weight's version after the last step (None: check first)."""

    param: Tensor
    depth: int
    state: dict[str, Any]
    weight: Tensor
    factors: list[Tensor]  # or what stands for them: as many for every parameter of a batch
    moments: dict[str, list[Tensor]]  # by their names, one for each of these
    version: int | None


@dataclass(slots=True)
class Batch(plans.Batch):
    """The parameters of one call, with the factors and moments of one after the other."""

    pieces: list[Pieces] = field(default_factory=list)
    factors: list[Tensor] = field(default_factory=list)
    moments: dict[str, list[Tensor]] = field(default_factory=dict)


def numbered(state: dict[str, Any], stem: str) -> list[Tensor]:
    """The tensors ``stem_0``, ``stem_1`` ... of a parameter's state."""
    found: list[Tensor] = []
    while (name := f"{stem}_{len(found)}") in state:
        found.append(state[name])
    return found
