"""The published numbers of Tables 1 and 2, and how ours stand to them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from sparsenn.papers.dwf.curves import PRUNING, accuracy_at, compression_at, kind, living, seeds_in, select, sparsest
from sparsenn.papers.dwf.settings import SPARSITIES
from sparsenn.papers.spread import mean_std
from sparsenn.training.table import Row

_SLACK = 0.1  # points of accuracy by which two means agree in any case


@dataclass(frozen=True)
class Published:
    """A number of the paper.

    Attributes:
        table: 1 (compression ratios) or 2 (test accuracies in percent).
        dataset: a name of ``sparsenn.data.names()``.
        model: a name of ``sparsenn.models.names()``.
        method: as in ``TrainConfig``.
        depth: number of factors; 1 without factors.
        at: points of accuracy below the dense net in Table 1, percent of sparsity in Table 2 (0 for the dense net).
        value: the number.
        std: its standard deviation over three seeds; None in Table 1.
    """

    table: int
    dataset: str
    model: str
    method: str
    depth: int
    at: float
    value: float
    std: float | None


def published(table: int, dataset: str, model: str) -> dict[tuple[str, int, float], Published]:
    """A table's numbers for a data set and a network, by method, depth and column.

    Source:
        Kolb et al. 2025, Tables 1 and 2; six cells of Table 2 (LeNet-5 on Fashion-MNIST, GMP and SNIP at 99.75 % and beyond)
        can't be read and are not there.

    Example:
        >>> from sparsenn.papers.dwf.compare import published
        >>> cells = published(1, "fashion-mnist", "lenet-300-100")
        >>> len(cells), cells["dwf", 3, 5.0].value
        (12, 506.0)
        >>> published(2, "mnist", "lenet-5")["dense", 1, 0.0].std
        0.03
    """
    text = resources.files("sparsenn.papers.dwf").joinpath("reference.csv").read_text(encoding="utf-8")
    cells = (_cell(row) for row in csv.DictReader(text.splitlines()))
    own = [cell for cell in cells if (cell.table, cell.dataset, cell.model) == (table, dataset, model)]
    return {(cell.method, cell.depth, cell.at): cell for cell in own}


def _cell(row: dict[str, str]) -> Published:
    return Published(
        int(row["table"]),
        row["dataset"],
        row["model"],
        row["method"],
        int(row["depth"]),
        float(row["at"]),
        float(row["value"]),
        float(row["std"]) if row["std"] else None,
    )


@dataclass(frozen=True)
class Ours:
    """A figure over seeds: how many runs or curves it is of, their mean and population standard deviation."""

    count: int
    mean: float
    std: float


def _over(values: Sequence[float | None]) -> Ours | None:
    """The figure, where every seed has a value."""
    known = [value for value in values if value is not None]
    return Ours(len(known), *mean_std(known)) if known and len(known) == len(values) else None


def _curves(rows: Sequence[Row], which: tuple[str, int]) -> list[list[Row]]:
    """The finished rows of a method, a list for each seed."""
    own = [row for row in select(rows) if kind(row) == which]
    return [select(own, seed=seed) for seed in seeds_in(own)]


def accuracies(rows: Sequence[Row], which: tuple[str, int]) -> dict[float, Ours | None]:
    """Table 2 for a method: test accuracy in percent at each sparsity.

    Of a pruning method it is that of the nets that were pruned to this sparsity, whatever training made of what was left
    (biases that reach no output stay 0); otherwise it is read off the curve of each seed by ``accuracy_at``. For the dense net
    it is the accuracy at sparsity 0. None where a seed has no such net, or its curve does not reach.
    """
    curves = _curves(rows, which)
    if which == ("dense", 1):
        return {0.0: _over([100 * row["accuracy"] for curve in curves for row in curve])}
    found: dict[float, Ours | None] = {}
    for sparsity in SPARSITIES:
        compression = 100 / (100 - sparsity)
        values = [_pruned_to(curve, compression) if which in PRUNING else accuracy_at(curve, compression) for curve in curves]
        found[sparsity] = _over([None if value is None else 100 * value for value in values])
    return found


def _pruned_to(rows: Sequence[Row], compression: float) -> float | None:
    own = [row["accuracy"] for row in rows if math.isclose(row["prune_to"], compression, rel_tol=1e-6)]
    return own[0] if own else None


@dataclass(frozen=True)
class Ratio:
    """A cell of Table 1.

    Attributes:
        at: the compression at a tolerance, read off each seed's curve.
        trained: that of the sparsest trained nets within it.
        least: whether a seed's curve ends within it, so that ``at`` is not the largest there is.
    """

    at: Ours | None
    trained: Ours | None
    least: bool


def ratios(rows: Sequence[Row], which: tuple[str, int], tolerance: float) -> Ratio | None:
    """Table 1 for a method: the compression at so many points below the mean accuracy of the dense nets; None without these.

    The paper names the sparsest model within the tolerance. Its numbers for the pruning methods lie between the compressions
    that these were trained at, so they are read off the curve between trained nets; ours are too, by ``compression_at``. Other
    than in Table 2 a pruned net stands at the compression that its training ended with.
    """
    dense = accuracies(rows, ("dense", 1))[0.0]
    if dense is None:
        return None
    least = (dense.mean - tolerance) / 100
    curves = _curves(rows, which)
    return Ratio(
        _over([compression_at(c, least) for c in curves]),
        _over([sparsest(c, least) for c in curves]),
        any(living(c)[-1][1] >= least for c in curves if living(c)),
    )


def verdict(ours: Ours, theirs: Published) -> str:
    """How two mean accuracies stand: ``alike`` within .1 point plus twice the sum of their standard deviations.

    Example:
        >>> from sparsenn.papers.dwf.compare import Ours, published, verdict
        >>> theirs = published(2, "fashion-mnist", "lenet-300-100")["dwf", 3, 99.0]
        >>> theirs.value, verdict(Ours(3, 87.3, 0.1), theirs), verdict(Ours(3, 88.0, 0.1), theirs)
        (86.97, 'alike', 'higher')
    """
    slack = 2 * (ours.std + (theirs.std or 0.0)) + _SLACK
    if abs(ours.mean - theirs.value) <= slack:
        return "alike"
    return "higher" if ours.mean > theirs.value else "lower"
