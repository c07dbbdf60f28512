"""What compaction knows of the tensors between layers: which units are constants, and which of them somebody needs.

A *unit* is a position along one dimension of a tensor, a neuron or a channel. A unit is *known* where it has one value at all
places and for all inputs of the network, else it is *live*. It is *needed* where it must be at its place, because something
that is no constant is computed from it and reaches an output. Tensors that must keep the same units, such as the input and the
output of an activation or the terms of a sum, share *atoms*: an atom stays or goes in all tensors at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn


@dataclass(eq=False)
class Units:
    """The units of one tensor.

    Attributes:
        shape: of the tensor.
        axis: the dimension that the units lie on.
        atoms: the atom of each unit.
        known: the value of each unit that is a constant, NaN for the live ones; float64 on the CPU.
        given: whether the tensor has the width of an input of the network, which is the user's.
        needed: which units must be at their places; filled from the outputs to the inputs.
    """

    shape: tuple[int, ...]
    axis: int
    atoms: Tensor
    known: Tensor
    given: bool = False
    needed: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.known = torch.where(self.known.isfinite(), self.known, torch.nan)
        self.needed = torch.zeros(self.atoms.shape, dtype=torch.bool)

    @property
    def width(self) -> int:
        """Number of units."""
        return self.atoms.numel()

    @property
    def live(self) -> Tensor:
        """Which units are no constants."""
        return self.known.isnan()


class Layer(Protocol):
    """A module whose parameters hold numbers of single units."""

    def rewrite(self, stay: Tensor, round_to: int) -> None:
        """Drop, in place, what belongs to units that go; ``stay`` holds a bool for each atom."""


class Trace:
    """The forward pass over a network: its units, and on a tape what each step needs, to be played backwards."""

    def __init__(self, training: set[nn.Module], whole: set[nn.Module]) -> None:
        self.training = training  # modules that were in training mode
        self.whole = whole  # modules that cannot be changed, because something else uses them or their parameters too
        self.tape: list[Callable[[], object]] = []
        self.layers: list[Layer] = []
        self.fresh_units: list[Units] = []
        self._count = 0
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._pinned: list[Tensor] = []

    def fresh(self, shape: tuple[int, ...], axis: int, known: Tensor | None = None, *, given: bool = False) -> Units:
        """Units that no other tensor shares, live where nothing is known."""
        width = shape[axis] if shape else 0
        atoms = torch.arange(self._count, self._count + width)
        self._count += width
        units = Units(tuple(shape), axis, atoms, live_units(width) if known is None else known, given)
        self.fresh_units.append(units)
        return units

    def opaque(self, tensor: Tensor, axis: int | None = None, *, given: bool = False) -> Units:
        """A tensor of which nothing is known and whose width must stay."""
        units = self.fresh(tuple(tensor.shape), min(1, tensor.dim() - 1) if axis is None else axis, given=given)
        self.pin(units.atoms)
        return units

    def like(self, units: Units, known: Tensor, shape: tuple[int, ...] | None = None, axis: int | None = None) -> Units:
        """A tensor with the same atoms, made of `units` one by one; what is live in it needs what it is made of."""
        made = Units(
            units.shape if shape is None else tuple(shape),
            units.axis if axis is None else axis,
            units.atoms,
            known,
            units.given,
        )
        self.tape.append(lambda: self.need(units, made.needed & made.live))
        return made

    def pin(self, atoms: Tensor) -> None:
        """These atoms stay."""
        self._pinned.append(atoms.reshape(-1))

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Atoms that stay or go together, pair by pair."""
        self._edges.append((first.reshape(-1), second.reshape(-1)))

    def need(self, units: Units, mask: Tensor) -> None:
        """These units must be at their places, the constants among them too."""
        units.needed |= mask
        self.pin(units.atoms[mask & ~units.live])

    def demand(self, units: Units) -> None:
        """All units are needed at their places: by an output, or an operation that mixes them."""
        self.pin(units.atoms)
        units.needed.fill_(True)

    def along(self, units: Units, axis: int) -> Units:
        """The same tensor with its units on another dimension; the ones that it had must all stay then."""
        if units.axis == axis:
            return units
        self.demand(units)
        turned = self.fresh(units.shape, axis, given=units.given)
        self.pin(turned.atoms)
        return turned

    def play_back(self) -> None:
        """Fill `needed` everywhere."""
        for step in reversed(self.tape):
            step()

    def layout(self, round_to: int) -> Tensor:
        """Which atoms stay: a bool for each, after :meth:`play_back`."""
        labels = _connected(self._count, self._edges)
        stay = torch.zeros(self._count, dtype=torch.bool)
        for atoms in self._pinned:
            stay[labels[atoms]] = True
        for units in self.fresh_units:
            stay[labels[units.atoms[units.needed & units.live]]] = True
        for units in self.fresh_units:
            if units.width and not stay[labels[units.atoms]].any():
                stay[labels[units.atoms[0]]] = True  # no layer is left without a unit
        changed = round_to > 1
        while changed:
            widened = [_widen(stay, labels[units.atoms], round_to) for units in self.fresh_units]
            changed = any(widened)
        return stay[labels]


def map_nested(values: Any, function: Callable[[Any], Any]) -> Any:
    """A function of everything in lists, tuples and dicts, however nested."""
    return fx.node.map_aggregate(values, function)


def live_units(width: int) -> Tensor:
    """Nothing known of any unit."""
    return torch.full((width,), torch.nan, dtype=torch.float64)


def round_up(mask: Tensor, allowed: Tensor, round_to: int) -> Tensor:
    """The mask with the first others of the allowed ones, until their number is a multiple other than 0, or all are taken."""
    count = int(mask.sum())
    target = max(1, -(-count // round_to)) * round_to
    others = (allowed & ~mask).nonzero().flatten()[: target - count]
    return mask.index_fill(0, others, True)


def _widen(stay: Tensor, labels: Tensor, round_to: int) -> bool:
    """Let the first units stay that were to go, until the width is a multiple; whether any was needed for that."""
    here = stay[labels]
    count = int(here.sum())
    target = min(labels.numel(), -(-count // round_to) * round_to)
    if count == target:
        return False
    for label in labels[~here]:
        if int(stay[labels].sum()) >= target:
            break
        stay[label] = True
    return True


def _connected(count: int, edges: list[tuple[Tensor, Tensor]]) -> Tensor:
    """For each atom the smallest one that it is tied to, over any number of ties."""
    labels = torch.arange(count)
    if not edges:
        return labels
    first, second = (torch.cat(side) for side in zip(*edges, strict=True))
    while True:
        smallest = torch.minimum(labels[first], labels[second])
        lowered = labels.scatter_reduce(0, first, smallest, "amin").scatter_reduce(0, second, smallest, "amin")
        lowered = lowered[lowered]
        if torch.equal(lowered, labels):
            return labels
        labels = lowered
