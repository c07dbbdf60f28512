"""What a step needs of a group's parameters, gathered once and kept for as long as nothing of it changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor

from sparsenn.optim import common, shards

_DENSE = {torch.strided}


@dataclass(slots=True)
class Batch:
    """The parameters of one group that one call of an operator can move: of one device, dtype and dampening."""

    owner: str  # the optimizer, for errors
    dampening: float
    sharded: bool
    dtype: torch.dtype  # of the parameters, when they were taken in
    params: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)  # the parameters, or this rank's parts of them

    def add(self, p: Tensor) -> None:
        """Take in one more parameter."""
        self.params.append(p)
        self.weights.append(shards.local(p.detach()) if self.sharded else p)

    def gradients(self) -> list[Tensor] | None:
        """The gradients as an operator takes them; None where a parameter has none any more, or was converted."""
        grads: list[Any] = [p.grad for p in self.params]
        try:
            layouts = {grad.layout for grad in grads}
        except AttributeError:
            return None
        if layouts != _DENSE:
            raise common.sparse_gradient(self.owner)
        if any(p.dtype is not self.dtype for p in self.params):
            return None
        return [shards.local(grad) for grad in grads] if self.sharded else grads


@dataclass(slots=True)
class Plan:
    """How a group is stepped, for as long as its parameters, its options and the pattern of missing gradients stay."""

    shape: tuple[Any, ...]  # of the options, those that it depends on
    params: list[Tensor]
    state: dict[Any, Any]
    states: int
    idle: list[Tensor]  # parameters without a gradient
    batches: list[Any]  # of the optimizer's own kind
    fresh: bool = True  # not stepped yet

    def holds(self, params: list[Tensor], state: dict[Any, Any]) -> bool:
        """Whether parameters, states and missing gradients are those that it was made for."""
        return (
            self.state is state
            and self.states == len(state)
            and len(self.params) == len(params)
            and all(map(is_, self.params, params))
            and (not self.idle or all(p.grad is None for p in self.idle))
        )

    def gradients(self) -> list[list[Tensor]] | None:
        """Those of each batch; None where a parameter has none any more."""
        found = []
        for batch in self.batches:
            grads = batch.gradients()
            if grads is None:
                return None
            found.append(grads)
        return found

    def first_step_done(self, group: dict[str, Any]) -> None:
        """Where momentum is dampened, it is so from the second step on, which takes a plan of its own."""
        self.fresh = False
        if group["momentum"] and group["dampening"]:
            self.shape = ()
