"""What the figures of the paper show, drawn from rows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from sparsenn.papers.spectral.trials import CUT, core_sizes, select
from sparsenn.papers.spread import mean_std
from sparsenn.training.figures import new_figure, png
from sparsenn.training.table import Row

COLORS = {"spectral": "#1f5fa8", "direct": "#d08a1d"}
_NODES_AROUND = 25  # of the teacher's width, in the collapse
_LEAST_RISE = 1e-5  # what is below can't be told from 0


def caption(rows: Sequence[Row]) -> str:
    """How many trials and epochs stand behind rows."""
    counts = {len(select(rows, net=row["net"], h=row["h"])) for row in rows}
    trials = "–".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "0"
    epochs = ", ".join(str(n) for n in sorted({row["epochs"] for row in rows}))
    return f"{trials} trials, {epochs} epochs"


def widths_of(rows: Sequence[Row]) -> list[int]:
    """The widths h that rows have, ascending."""
    return sorted({row["h"] for row in rows})


def histograms(rows: Sequence[Row], title: str) -> bytes:
    """One panel a width: relevances of all trials, divided by the largest, of both kinds of nets (Figure 1)."""
    widths = widths_of(rows)
    columns = min(3, len(widths))
    lines = math.ceil(len(widths) / columns)
    figure = new_figure(3.4 * columns, 2.5 * lines + 0.5)
    figure.suptitle(f"Relevance of the nodes, {title}, {caption(rows)}")
    for i, width in enumerate(widths):
        axes = figure.add_subplot(lines, columns, i + 1)
        for net, color in COLORS.items():
            own = [r for row in select(rows, net=net, h=width) for r in row["relevances"]]
            largest = max(own, default=0.0) or 1.0
            axes.hist([r / largest for r in own], bins=20, range=(0, 1), density=True, alpha=0.6, color=color, label=net)
        axes.set(title=f"h = {width}", xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("relevance / largest")
    figure.axes[0].legend(frameon=False)
    figure.axes[0].set_ylabel("density")
    return png(figure)


def core_and_collapse(rows: Sequence[Row], title: str, reference: int | None, what: str) -> bytes:
    """Left the nodes that are left against the width; right what their removal does to the test loss (Figures 2 and 3)."""
    figure = new_figure(10.5, 4.2)
    figure.suptitle(f"{title}, {caption(rows)}")
    left, right = figure.subplots(1, 2)
    for net, color in COLORS.items():
        own = select(rows, net=net)
        sizes = [mean_std(core_sizes(select(own, h=width))) for width in widths_of(own)]
        if sizes:
            mean, std = (list(part) for part in zip(*sizes, strict=True))
            left.plot(widths_of(own), mean, "o-", color=color, ms=4, label=net)
            low, high = [m - s for m, s in zip(mean, std, strict=True)], [m + s for m, s in zip(mean, std, strict=True)]
            left.fill_between(widths_of(own), low, high, color=color, alpha=0.2, lw=0)
    if reference is not None:
        left.axhline(reference, color="black", ls="--", lw=1, label="teacher")
    left.set(
        xscale="log", yscale="log", xlabel="width h of the student", ylabel=f"nodes with relevance ≥ {CUT:g} of the largest"
    )
    left.legend(frameon=False)
    _collapse(right, select(rows, net="spectral"), reference, what)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _collapse(axes: Any, rows: Sequence[Row], reference: int | None, what: str) -> None:
    shift = reference or 0
    widths = widths_of(rows)
    for i, width in enumerate(widths):
        curve = mean_curve(select(rows, h=width))
        shade = (0.9 - 0.8 * i / max(len(widths) - 1, 1), 0.35, 0.2 + 0.6 * i / max(len(widths) - 1, 1))
        shown = [(n - shift, d) for n, d in curve if d > _LEAST_RISE and n - shift <= _NODES_AROUND + (0 if reference else 35)]
        axes.plot(*zip(*shown, strict=True) if shown else ((), ()), "o-", color=shade, ms=2.5, lw=0.8, label=f"h = {width}")
    fit = exponential_fit(
        [p for width in widths for p in mean_curve(select(rows, h=width)) if 0 < p[0] <= bend(rows, reference)]
    )
    if fit is not None:
        amplitude, rate = fit
        ends = [1, bend(rows, reference)]
        label = f"{amplitude:.2g} · exp(−{rate:.2g} n)" if reference is None else f"∝ exp(−{rate:.2g} n)"
        axes.plot([n - shift for n in ends], [amplitude * math.exp(-rate * n) for n in ends], "k--", lw=1.2, label=label)
    if reference is not None:
        axes.axvline(0, color="black", ls=":", lw=1)
    axes.set(
        yscale="log", xlabel="nodes left" + (" − nodes of the teacher" if reference else ""), ylabel=f"Δ {what} after pruning"
    )
    axes.legend(frameon=False, fontsize=7)


def bend(rows: Sequence[Row], reference: int | None) -> int:
    """Up to which number of nodes the curve falls: the teacher's width, or the mean core of the widest students."""
    if reference is not None:
        return reference
    widest = select(rows, h=max(widths_of(rows), default=0))
    return max(1, round(mean_std(core_sizes(widest))[0])) if widest else 1


def mean_curve(rows: Sequence[Row]) -> list[tuple[int, float]]:
    """The pruning curve of trials of one width: nodes left, and the mean rise of the test loss."""
    curves = [dict(map(tuple, row["pruned"])) for row in rows]
    return [(n, sum(curve[n] for curve in curves) / len(curves)) for n in sorted(curves[0])] if curves else []


def exponential_fit(points: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """A and b of A · exp(−b n) through points, least squares of the logarithms; None for fewer than two different n."""
    usable = [(n, math.log(value)) for n, value in points if value > 0]
    if len({n for n, _ in usable}) < 2:
        return None
    n_mean, y_mean = (sum(part) / len(usable) for part in zip(*usable, strict=True))
    slope = sum((n - n_mean) * (y - y_mean) for n, y in usable) / sum((n - n_mean) ** 2 for n, _ in usable)
    return math.exp(y_mean - slope * n_mean), -slope


def path_curves(rows: Sequence[Row], teacher: Sequence[float], title: str) -> bytes:
    """Sorted path magnitudes of the pruned spectral student and of the whole direct one beside the teacher's (Figure 4)."""
    figure = new_figure(10.5, 4.0)
    figure.suptitle(f"{title}, {caption(rows)}")
    share = [i / (len(teacher) - 1) for i in range(len(teacher))]
    for i, (net, what) in enumerate((("spectral", "pruned, spectral"), ("direct", "whole, direct"))):
        axes = figure.add_subplot(1, 2, i + 1)
        axes.plot(share, teacher, color="#d0561d", label="teacher")
        own = [row["paths"] for row in select(rows, net=net)]
        if own:
            bands = [mean_std(values) for values in zip(*own, strict=True)]
            axes.plot(share, [m for m, _ in bands], color=("#1f5fa8", "#3a8a3a")[i], label=what)
            low, high = [m - s for m, s in bands], [m + s for m, s in bands]
            axes.fill_between(share, low, high, color=("#1f5fa8", "#3a8a3a")[i], alpha=0.25, lw=0)
        axes.set(xlabel="share of the paths, sorted", ylabel="path magnitude Γ")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def summary(rows: Sequence[Row]) -> bytes:
    """A CSV file with one line for each kind of net and width."""
    text = io.StringIO()
    columns = ("net", "h", "hidden2", "second_layer", "epochs", "trials", "samples")
    figures = ("test_loss", "test_accuracy", "core", "loss_above_core")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(f"{name}_{kind}" for name in figures for kind in ("mean", "std"))])
    for net in COLORS:
        for width in widths_of(select(rows, net=net)):
            own = select(rows, net=net, h=width)
            sizes = core_sizes(own)
            cut = [_rise(row, size) for row, size in zip(own, sizes, strict=True)]
            right = [row["test_accuracy"] for row in own if row["test_accuracy"] is not None]
            values = [
                mean_std([row["test_loss"] for row in own]),
                mean_std(right) if right else ("", ""),
                mean_std(sizes),
                mean_std(cut),
            ]
            head = [net, width, own[0]["hidden2"], own[0]["second_layer"], own[0]["epochs"], len(own), own[0]["samples"]]
            writer.writerow([*head, *(f"{v:.4g}" if v != "" else "" for pair in values for v in pair)])
    return text.getvalue().encode()


def _rise(row: Row, size: int) -> float:
    """How much the test loss rises where only the core is left: at the largest number of nodes in the curve up to its size."""
    return [d for n, d in row["pruned"] if n <= size][-1]
