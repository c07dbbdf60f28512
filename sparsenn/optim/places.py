"""Where the parameters of an optimizer stand in its groups."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Place(NamedTuple):
    """Where a parameter stands: in which of how many groups, at which slot there, and at which position over all groups."""

    group: int
    groups: int
    slot: int
    position: int

    def holds(self, p: Tensor, groups: list[dict[str, Any]]) -> bool:
        """Whether it still stands there."""
        if len(groups) != self.groups:
            return False
        params = groups[self.group]["params"]
        return self.slot < len(params) and params[self.slot] is p


class Places:
    """The places of all parameters, found anew when one is no longer where it was."""

    def __init__(self) -> None:
        self._found: dict[Tensor, Place] = {}

    def of(self, p: Tensor, groups: list[dict[str, Any]]) -> Place | None:
        """Where a parameter stands in the groups, or None; of one that is there twice the first place."""
        place = self._found.get(p)
        if place is None or not place.holds(p, groups):
            self._found = _places(groups)  # of all, as one question seldom comes alone
            place = self._found.get(p)
        return place


def _places(groups: list[dict[str, Any]]) -> dict[Tensor, Place]:
    found: dict[Tensor, Place] = {}
    position = 0
    for number, group in enumerate(groups):
        for slot, p in enumerate(group["params"]):
            found.setdefault(p, Place(number, len(groups), slot, position))
            position += 1
    return found
