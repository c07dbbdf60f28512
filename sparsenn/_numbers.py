"""Numbers as callers have them: Python's, NumPy's, or in a tensor without dimensions."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def plain(value: Any) -> int | float | None:
    """A real number as Python's int or float, which any state file takes; None for a bool and all that is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return plain(value.item()) if getattr(value, "ndim", None) == 0 else None


def whole(value: Any) -> int | None:
    """An integer as Python's int; None for a bool and all that is no integer."""
    number = plain(value)
    return number if isinstance(number, int) else None
