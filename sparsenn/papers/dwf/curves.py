"""Curves of accuracy against compression, and what is read off them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sparsenn.papers.dwf.settings import KEY
from sparsenn.training.table import Row

Point = tuple[float, float]  # compression, accuracy in [0, 1]
_NAMES = {
    "dense": "Dense",
    "dwf": "D",
    "magnitude": "GMP",
    "snip": "SNIP",
    "synflow": "SynFlow",
    "random": "Random",
    "l1-subgradient": "vanilla L1",
    "prox": "proximal L1",
}
_ROUNDING = 0.01  # a pruning method keeps whole weights, of which some become 0 in training
PRUNING = (("magnitude", 1), ("snip", 1), ("synflow", 1), ("random", 1))


def kind(row: Row) -> tuple[str, int]:
    """Method and depth of a run."""
    return row["method"], row["depth"]


def name_of(which: tuple[str, int]) -> str:
    """What tables and pictures call a method, or a depth of factors.

    Example:
        >>> from sparsenn.papers.dwf.curves import name_of
        >>> name_of(("dwf", 20)), name_of(("magnitude", 1))
        ('D = 20', 'GMP')
    """
    method, depth = which
    return f"{_NAMES[method]} = {depth}" if method == "dwf" else _NAMES[method]


def kinds_in(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """The kinds of the rows, each once: the dense net, factors by their depth, then the other methods."""
    order = [*_NAMES]
    return sorted({kind(row) for row in rows}, key=lambda which: (order.index(which[0]), which[1]))


def factorized_in(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """Those of them that have factors."""
    return [which for which in kinds_in(rows) if which[0] == "dwf"]


def select(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The finished rows that have these values."""
    return [row for row in rows if row["status"] == "finished" and all(row[name] == value for name, value in values.items())]


def seeds_in(rows: Iterable[Row]) -> list[int]:
    """The seeds of the rows, each once."""
    return sorted({row["seed"] for row in rows})


def living(rows: Iterable[Row]) -> list[Point]:
    """The points of the nets with weights left, from the least compressed on."""
    return sorted((row["compression"], row["accuracy"]) for row in rows if row["compression"] is not None)


def accuracy_at(rows: Sequence[Row], compression: float) -> float | None:
    """Accuracy of a curve at a compression, linear in its logarithm between the two trained nets beside it.

    Beyond the most compressed net it is what a net without weights has, if one of the rows is such a net; None there otherwise,
    and below the least compressed one: nothing is extrapolated.

    Example:
        >>> from sparsenn.papers.dwf.curves import accuracy_at
        >>> rows = [{"compression": 10.0, "accuracy": 0.9}, {"compression": 1000.0, "accuracy": 0.7}]
        >>> round(accuracy_at(rows, 100.0), 3), accuracy_at(rows, 2000.0), accuracy_at(rows, 5.0)
        (0.8, None, None)
    """
    points = living(rows)
    dead = [row["accuracy"] for row in rows if row["compression"] is None]
    if not points or compression > points[-1][0] * (1 + _ROUNDING):
        return min(dead, default=None)
    if compression < points[0][0] / (1 + _ROUNDING):
        return None
    above = next((i for i, (c, _) in enumerate(points) if c >= compression), len(points) - 1)
    if above == 0 or points[above][0] < compression:
        return points[above][1]
    (low, before), (high, after) = points[above - 1], points[above]
    return before + (after - before) * math.log(compression / low) / math.log(high / low)


def compression_at(rows: Sequence[Row], accuracy: float) -> float | None:
    """The largest compression at which a curve has an accuracy, linear in its logarithm between trained nets.

    The curve ends with its most compressed net that has weights left. None where no net has the accuracy.

    Example:
        >>> from sparsenn.papers.dwf.curves import compression_at
        >>> rows = [{"compression": 10.0, "accuracy": 0.9}, {"compression": 1000.0, "accuracy": 0.7}]
        >>> round(compression_at(rows, 0.8), 6), compression_at(rows, 0.7), compression_at(rows, 0.95)
        (100.0, 1000.0, None)
    """
    points = living(rows)
    good = [i for i, (_, own) in enumerate(points) if own >= accuracy]
    if not good:
        return None
    low, before = points[good[-1]]
    if good[-1] + 1 == len(points):
        return low
    high, after = points[good[-1] + 1]
    return low * (high / low) ** ((before - accuracy) / (before - after))


def sparsest(rows: Sequence[Row], accuracy: float) -> float | None:
    """The compression of the sparsest trained net that has an accuracy; None where none has it."""
    return max((c for c, own in living(rows) if own >= accuracy), default=None)


@dataclass(frozen=True)
class Band:
    """A curve over seeds: of each setting the median compression, the median accuracy and the smallest accuracy."""

    compressions: list[float]
    medians: list[float]
    lowest: list[float]


def band(rows: Iterable[Row]) -> Band:
    """The curve of one method, from the least compressed setting on; settings at which half of the nets died are left out."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in KEY if name != "seed"), []).append(row)
    found = []
    for group in groups.values():
        alive = [row for row in group if row["compression"] is not None]
        if 2 * len(alive) > len(group):
            accuracies = [row["accuracy"] for row in group]
            found.append((median(row["compression"] for row in alive), median(accuracies), min(accuracies)))
    found.sort()
    return Band(*(list(column) for column in zip(*found, strict=True)) if found else ([], [], []))


def front(points: Iterable[Any]) -> list[Point]:
    """The points that no other beats in both compression and accuracy, from the most compressed on.

    Example:
        >>> from sparsenn.papers.dwf.curves import front
        >>> front([(1, 0.9), (4, 0.8), (2, 0.7)])
        [(4, 0.8), (1, 0.9)]
    """
    best: list[Point] = []
    for compression, accuracy in sorted(((c, a) for c, a in points), reverse=True):
        if not best or accuracy > best[-1][1]:
            best.append((compression, accuracy))
    return best
