"""The paper's pictures of accuracy, compression and norms of trained nets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sparsenn.data import require_extra
from sparsenn.papers.dwf.curves import PRUNING, band, factorized_in, front, kind, living, name_of, seeds_in, select
from sparsenn.papers.spread import mean_std
from sparsenn.training.figures import new_figure, png
from sparsenn.training.table import Row

_SHOWN = 0.25  # of the accuracy, below the best
_DEPTHS = ("#1f5fa8", "#8c2d5a", "#2d8c6a", "#c2701c", "#6a51a3", "#a6761d", "#d73027")  # of 2 to 8
_COLORS = {
    "dense": "black",
    "magnitude": "#d08a1d",
    "snip": "#7a9a3a",
    "synflow": "#5b9bd0",
    "random": "#9a9a9a",
    "l1-subgradient": "#9a9a9a",
    "prox": "#d08a1d",
}


def color_of(which: tuple[str, int]) -> str:
    """The colour of a method, or of a depth of factors; beyond 8 the colours of the depths come again."""
    method, depth = which
    return _DEPTHS[(depth - 2) % len(_DEPTHS)] if method == "dwf" else _COLORS[method]


def panels(titles: Sequence[str], title: str, xlabel: str, ylabel: str, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure of panels side by side, of ``rows`` lines, with the same axes labels."""
    columns = max(-(-len(titles) // rows), 1)
    figure = new_figure(width=max(4.4 * columns, 6.0), height=0.5 + 3.4 * rows)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for pair, name in zip(axes, titles, strict=False):
        pair.set(title=name, xlabel=xlabel, ylabel=ylabel)
        pair.grid(alpha=0.3)
        pair.spines[["top", "right"]].set_visible(False)
    return figure, axes


def accuracy_axes(axes: Any, rows: Iterable[Row]) -> None:
    """Logarithmic compression and percent of accuracy, from somewhat below the best on."""
    finished = [row for row in rows if row["status"] == "finished"]
    best = max((row["accuracy"] for row in finished), default=1.0)
    shown = [c for c, accuracy in living(finished) if accuracy > best - _SHOWN]
    axes.set(xscale="log", xlim=(0.8, 2 * max(shown, default=1.0)), ylim=(best - _SHOWN, best + 0.01))
    percent(axes)


def percent(axes: Any) -> None:
    """The vertical axis in percent."""
    axes.yaxis.set_major_formatter(require_extra("matplotlib.ticker", "drawing pictures").PercentFormatter(1, symbol=""))


def tradeoff(axes: Any, rows: Sequence[Row], label: str, color: Any, ls: str = "-") -> None:
    """The median over seeds as a line, the smallest accuracy as a shade."""
    own = band(select(rows))
    axes.plot(own.compressions, own.medians, marker="o", ls=ls, color=color, ms=3, lw=1.3, label=label)
    axes.fill_between(own.compressions, own.lowest, own.medians, color=color, alpha=0.15, lw=0)


def fig1(rows: Sequence[Row], title: str) -> bytes:
    """Figure 1: left what the methods leave, right the best that pruning any of their nets leads to at a compression."""
    figure, axes = panels(["as trained", "after pruning the smallest weights"], title, "compression", "test accuracy (%)")
    for which in (("l1-subgradient", 1), ("prox", 1), *factorized_in(rows)):
        own = [row for row in select(rows) if kind(row) == which]
        tradeoff(axes[0], own, name_of(which), color_of(which))
        best = front(point for row in own for point in [*row["pruned"], *living([row])])
        axes[1].plot([c for c, _ in best], [a for _, a in best], color=color_of(which), lw=1.3, label=name_of(which))
    for pair in axes:
        accuracy_axes(pair, rows)
    axes[1].set_xlim(axes[0].get_xlim())
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    return png(figure)


def methods(rows: Sequence[Row], title: str) -> bytes:
    """Figures 8, 9 and 22: factorized nets and pruning methods; the dense net as a line."""
    figure, axes = panels([""], title, "compression", "test accuracy (%)")
    for which in dict.fromkeys(kind(row) for row in rows):
        own = [row for row in rows if kind(row) == which]
        if which == ("dense", 1):
            if dense := [row["accuracy"] for row in select(own)]:
                axes[0].axhline(mean_std(dense)[0], color="black", ls=":", lw=1, label=name_of(which))
        else:
            tradeoff(axes[0], own, name_of(which), color_of(which))
    accuracy_axes(axes[0], rows)
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    return png(figure)


def by(rows: Sequence[Row], title: str, panel: str, line: str) -> bytes:
    """Figures 11, 12b and 14: a panel for each value of one column, a curve for each of another."""
    values, lines = values_of(rows, panel), values_of(rows, line)
    figure, axes = panels([f"{_column(panel)} {shown(v)}" for v in values], title, "compression", "test accuracy (%)")
    colors = ramp(len(lines))
    for pair, value in zip(axes, values, strict=False):
        for color, own in zip(colors, lines, strict=True):
            tradeoff(pair, [row for row in rows if (row[panel], row[line]) == (value, own)], shown(own), color)
        accuracy_axes(pair, rows)
        pair.legend(title=_column(line), frameon=False, loc="lower left", fontsize=7, title_fontsize=8)
    return png(figure)


def pareto(rows: Sequence[Row], title: str) -> bytes:
    """Figure 12a: the nets that no other of their depth beats in both accuracy and compression, coloured by learning rate."""
    depths, lrs = values_of(rows, "depth"), values_of(rows, "lr")
    figure, axes = panels([f"D = {depth}" for depth in depths], title, "compression", "test accuracy (%)")
    colors = dict(zip(lrs, ramp(len(lrs)), strict=True))
    for pair, depth in zip(axes, depths, strict=False):
        own = select(rows, depth=depth)
        best = set(front(living(own)))
        for lr in lrs:
            points = [point for point in living(select(own, lr=lr)) if point in best]
            pair.plot([c for c, _ in points], [a for _, a in points], "o", color=colors[lr], ms=5, label=f"{lr:g}")
        accuracy_axes(pair, own)
        pair.legend(title="learning rate", frameon=False, loc="lower left", fontsize=7, title_fontsize=8)
    return png(figure)


def strengths(rows: Sequence[Row], title: str) -> bytes:
    """Figure 13: compression against λ, norm against λ, norm against compression; a line for each depth and seed."""
    figure, axes = panels(["", "", ""], title, "", "")
    for axis, (x, y) in zip(axes, (("lam", "compression"), ("lam", "norm"), ("compression", "norm")), strict=True):
        axis.set(xscale="log", yscale="log", xlabel=_column(x), ylabel=_column(y))
        for depth in values_of(rows, "depth"):
            own = [row for row in select(rows, depth=depth) if row["compression"] is not None]
            for seed in seeds_in(own):
                points = sorted((row[x], row[y]) for row in select(own, seed=seed))
                label = f"D = {depth}" if seed == seeds_in(own)[0] else None
                style = {"color": color_of(("dwf", depth)), "ms": 3, "lw": 1, "label": label}
                axis.plot([p for p, _ in points], [q for _, q in points], "o-", **style)
    axes[0].legend(frameon=False, fontsize=8)
    return png(figure)


def allocation(rows: Sequence[Row], title: str, compressions: Sequence[float]) -> bytes:
    """Figure 10: the share of weights left in each layer, for the net of each method nearest to a compression."""
    titles = [f"compression near {c:g}" for c in compressions]
    figure, axes = panels(titles, title, "layer", "weights left", rows=len(compressions))
    order = [*PRUNING, *factorized_in(rows)]
    for pair, compression in zip(axes, compressions, strict=True):
        found = [(which, nearest(rows, which, compression)) for which in order]
        shown = [(which, row) for which, row in found if row is not None]
        width = 0.8 / max(len(shown), 1)
        for i, (which, row) in enumerate(shown):
            shares = [kept / size for kept, size in zip(row["kept"], row["sizes"], strict=True)]
            places = [x + (i - len(shown) / 2) * width for x in range(len(shares))]
            pair.bar(places, shares, width, color=color_of(which), label=f"{name_of(which)} ({row['compression']:.0f})")
            pair.set_xticks(range(len(shares)), row["layers"], fontsize=7, rotation=90 if len(shares) > 6 else 0)
        pair.set_yscale("log")
        pair.legend(frameon=False, fontsize=7)
    return png(figure)


def nearest(rows: Sequence[Row], which: tuple[str, int], compression: float) -> Row | None:
    """The net of a method whose compression has the smallest ratio to a given one; None where none has weights."""
    own = [row for row in select(rows) if kind(row) == which and row["compression"] is not None]
    return min(own, key=lambda row: max(row["compression"] / compression, compression / row["compression"]), default=None)


def fine_tuning(rows: Sequence[Row], title: str) -> bytes:
    """Figure 21: the factorized nets, what pruning makes of them, and what training after that gives back."""
    figure, axes = panels([""], title, "compression", "test accuracy (%)")
    own = select(rows, method="dwf")
    tradeoff(axes[0], own, "factorized", "#1f5fa8")
    for label, points, style in (
        ("pruned", front(point for row in own for point in row["pruned"]), ":"),
        ("pruned and trained on", front(living(select(rows, method="magnitude"))), "-"),
    ):
        axes[0].plot([c for c, _ in points], [a for _, a in points], style, color="#8c2d5a", lw=1.4, label=label)
    accuracy_axes(axes[0], rows)
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    return png(figure)


def values_of(rows: Sequence[Row], column: str) -> list[Any]:
    """The values of a column, each once."""
    return sorted({row[column] for row in rows})


def _column(name: str) -> str:
    return {"depth": "D =", "lr": "learning rate", "factor_init": "start", "lam": "λ", "norm": "norm of the weights"}.get(
        name, name
    )


def shown(value: Any) -> str:
    """A value of a setting, as a legend has it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def ramp(count: int) -> list[Any]:
    """So many colours from dark to light."""
    scale: Callable[[float], Any] = require_extra("matplotlib", "drawing pictures").colormaps["viridis"]
    return [scale(0.9 * i / max(count - 1, 1)) for i in range(count)]
