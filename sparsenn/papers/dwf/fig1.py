"""Figure 1: accuracy against compression for four ways to an L1-like penalty on the same net, raw and after pruning."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from sparsenn import data as datasets
from sparsenn.data import ImageData, require_extra
from sparsenn.prune import pruning_curve
from sparsenn.training import TrainingDiverged, configure, train
from sparsenn.training.evaluate import evaluate
from sparsenn.training.figures import new_axes, png
from sparsenn.training.files import write_atomic
from sparsenn.training.table import Row, Table

CURVES: dict[str, Row] = {
    "vanilla L1": {"method": "l1-subgradient"},
    "proximal L1": {"method": "prox"},
    "factorized, D = 2": {"method": "dwf", "depth": 2},
    "factorized, D = 3": {"method": "dwf", "depth": 3},
}
_COLORS = dict(zip(CURVES, ("#9a9a9a", "#d08a1d", "#1f5fa8", "#8c2d5a"), strict=True))
_SHOWN = 0.2  # of the accuracy, below the best
_KEY = ("dataset", "model", "epochs", "curve", "lam", "seed")


def reproduce(
    out: str | Path = "runs/dwf-fig1",
    *,
    dataset: str = "digits",
    model: str = "lenet-300-100",
    lams: tuple[float, float] = (3e-5, 3e-3),
    points: int = 9,
    seeds: int = 1,
    epochs: int | None = None,
    data_root: str | None = None,
    quiet: bool = True,
) -> Path:
    """Train the net over a grid of λ by every method; write ``fig1.jsonl``, one line a run, and ``fig1.png``.

    Every run gives its raw point (the net as its method leaves it, with the zeros that it counts) and the points that pruning
    its smallest weights leads to. Rows that the file has already are not computed again; those of
    another net, data set or number of epochs stay in the file and out of the picture. A run that diverges is a row without
    figures.

    Args:
        out: the folder.
        dataset: a name of ``sparsenn.data.names()``.
        model: a name of ``sparsenn.models.names()``.
        lams: smallest and largest λ.
        points: how many λ, log-spaced.
        seeds: runs of each λ.
        epochs: passes over the training set; None for the preset's.
        data_root: as for ``sparsenn train``.
        quiet: print no line a run.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range.
        DataError: if a data file is missing or damaged.

    Source:
        Kolb et al. 2025, Figure 1 (LeNet-300-100 on Fashion-MNIST, 100 values of λ, one net for each).
    """
    if not (0 < lams[0] <= lams[1]) or points < 1 or seeds < 1:
        raise ValueError("fig1: it takes 0 < smallest λ <= largest λ, 1 or more points and 1 or more seeds")
    given: Row = {"dataset": dataset, "model": model, "twin": False, "data_root": data_root}
    if epochs is not None:
        given |= {"epochs": epochs}
    config = configure(**given, lam=lams[1])  # a wrong setting is found before anything is loaded
    require_extra("matplotlib", "drawing pictures")
    net = {"dataset": dataset, "model": model, "epochs": config.epochs}
    images = datasets.load(dataset, data_root, download=True)
    table = Table(Path(out) / "fig1.jsonl", _KEY)
    wanted = [
        {**net, "curve": curve, "lam": float(f"{lam:.4g}"), "seed": seed}
        for seed in range(seeds)
        for lam in _log_spaced(*lams, points)
        for curve in CURVES
    ]
    for name in list(table.missing(wanted)):
        row = {**name, **_measure({**given, **CURVES[name["curve"]], "lam": name["lam"], "seed": name["seed"]}, images)}
        table.add(row)
        if not quiet:
            print(_line(row, len(wanted) - len(list(table.missing(wanted))), len(wanted)), file=sys.stderr)
    picture = Path(out) / "fig1.png"
    shown = [row for row in table.rows if all(row[column] == value for column, value in net.items())]
    write_atomic(picture, _draw(shown, f"{model} on {dataset}"))
    return picture


def _log_spaced(low: float, high: float, count: int) -> list[float]:
    return [low * (high / low) ** (i / max(count - 1, 1)) for i in range(count)]


def _measure(given: Row, images: ImageData) -> Row:
    try:
        net = train(configure(**given), images=images).net
    except TrainingDiverged:
        return {"accuracy": None, "compression": None, "pruned": []}
    compression = net.compression_ratio if net.weights else None
    return {"accuracy": net.accuracy, "compression": compression, "pruned": _pruned(net.model, images)}


def _pruned(model: nn.Module, images: ImageData) -> list[tuple[float, float]]:
    return pruning_curve(model, lambda net: evaluate(net, images.test_images, images.test_labels)[1])


def _line(row: Row, done: int, wanted: int) -> str:
    figures = "diverged" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f} %"
    ratio = "" if row["compression"] is None else f" at compression {row['compression']:.1f}"
    return f"{done}/{wanted}  {row['curve']}, λ {row['lam']:g}, seed {row['seed']}: {figures}{ratio}"


def _draw(rows: list[Row], title: str) -> bytes:
    figure, axes = new_axes(
        f"Accuracy against compression, {title}", "all weights / weights left", "test accuracy (%)", width=7.5, height=4.8
    )
    for curve, color in _COLORS.items():
        own = [row for row in rows if row["curve"] == curve and row["compression"] is not None]
        axes.plot(*_front(point for row in own for point in row["pruned"]), ":", color=color, lw=1.5)
        raw = [(row["compression"], row["accuracy"]) for row in own]
        axes.plot(*zip(*raw, strict=True) if raw else ((), ()), "o", color=color, ms=4, label=curve)
        axes.plot(*_front(raw), color=color, lw=1.2)
    axes.plot((), (), ":", color="black", label="best after pruning the smallest weights")
    best = max((row["accuracy"] for row in rows if row["accuracy"] is not None), default=1.0)
    shown = [row["compression"] for row in rows if row["compression"] is not None and row["accuracy"] > best - _SHOWN]
    axes.set(xscale="log", xlim=(0.8, 2 * max(shown, default=1.0)), ylim=(best - _SHOWN, best + 0.01))
    axes.yaxis.set_major_locator(require_extra("matplotlib.ticker", "drawing pictures").MultipleLocator(0.02))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axes.legend(frameon=False, loc="lower left")
    return png(figure)


def _front(points: Iterable[Any]) -> tuple[list[float], list[float]]:
    """The points that no other beats in both compression and accuracy, from the most compressed on."""
    best: list[tuple[float, float]] = []
    for compression, accuracy in sorted(map(tuple, points), reverse=True):
        if not best or accuracy > best[-1][1]:
            best.append((compression, accuracy))
    return [c for c, _ in best], [a for _, a in best]
