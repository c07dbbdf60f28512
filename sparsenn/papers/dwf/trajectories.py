"""The paper's pictures of runs on their way: figures of every evaluation against the epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparsenn.papers.dwf.figures import panels, percent, ramp, shown, values_of
from sparsenn.training.figures import mark_phases, new_figure, png
from sparsenn.training.logging import Record
from sparsenn.training.phases import phases
from sparsenn.training.table import Row

_LINES = 6  # curves in a panel that has a label for each


_QUANTITIES: dict[str, tuple[str, Callable[[Row, Record], float | None]]] = {
    "compression": ("log", lambda row, record: record["compression_ratio"]),
    "training accuracy (%)": ("percent", lambda row, record: record["train_accuracy"]),
    "test accuracy (%)": ("percent", lambda row, record: record["test_accuracy"]),
    "misalignment": ("log", lambda row, record: record["misalignment"] or None),
    "dead weights (%)": ("percent", lambda row, record: 1 - record["weights"] / row["parameters"]),
}


def lines(rows: Sequence[Row], title: str, columns: str, label: str, quantities: Sequence[str]) -> bytes:
    """Figures 5, 7, 15, 16 and 19: a column of panels for each value of one setting, a curve for each of another."""
    values = values_of(rows, columns)
    titles = [f"{_NAMES[columns]} = {value:g}" if i == 0 else "" for i in range(len(quantities)) for value in values]
    figure, axes = panels(titles, title, "epoch", "", rows=len(quantities))
    for i, quantity in enumerate(quantities):
        scale, figure_of = _QUANTITIES[quantity]
        for j, value in enumerate(values):
            pair, own = axes[i * len(values) + j], [row for row in rows if row[columns] == value]
            marks = values_of(own, label)
            for color, mark in zip(ramp(len(marks)), marks, strict=True):
                for row in [row for row in own if row[label] == mark]:
                    _curve(pair, row, figure_of, color=color, label=shown(mark))
            pair.set_ylabel(quantity if j == 0 else "")
            percent(pair) if scale == "percent" else pair.set_yscale("log")
            if i == 0 and marks:
                _legend(pair, _NAMES[label])
    return png(figure)


_NAMES = {"depth": "D", "lam": "λ", "lr": "learning rate", "factor_init": "start"}


def _curve(axes: Any, row: Row, figure_of: Callable[[Row, Record], float | None], **style: Any) -> None:
    known = [(record["epoch"], value) for record in row["history"] if (value := figure_of(row, record)) is not None]
    axes.plot([x for x, _ in known], [y for _, y in known], lw=1.2, **style)


def _legend(axes: Any, title: str) -> None:
    handles, names = axes.get_legend_handles_labels()
    step = -(-len(handles) // _LINES)
    box = {"framealpha": 0.8, "edgecolor": "none"}  # curves may run below it
    axes.legend(handles[::step], names[::step], title=title, fontsize=7, title_fontsize=8, **box)


def layers(rows: Sequence[Row], title: str) -> bytes:
    """Figure 17: a column for each λ, above the compression of every layer, below its norm."""
    titles = [*(f"λ = {row['lam']:g}" for row in rows), *("" for _ in rows)]
    figure, axes = panels(titles, title, "epoch", "", rows=2)
    for above, below, row in zip(axes, axes[len(rows) :], rows, strict=False):
        for i, color in enumerate(ramp(len(row["sizes"]))):
            _layer(above, row, "kept", i, _ratio_of(row["sizes"][i]), color=color, label=row["layers"][i])
            _layer(below, row, "norm", i, float, color=color)
        above.set(yscale="log", ylabel="compression")
        below.set(ylabel="norm of the weights")
        above.legend(frameon=False, fontsize=7)
    return png(figure)


def layer_misalignments(rows: Sequence[Row], title: str) -> bytes:
    """Figure 18: a column for each λ, the share of zeros of every layer as full lines, its mean misalignment as dashed ones."""
    figure, axes = panels([f"λ = {row['lam']:g}" for row in rows], title, "epoch", "share of zeros")
    for pair, row in zip(axes, rows, strict=False):
        other = pair.twinx()
        for i, color in enumerate(ramp(len(row["sizes"]))):
            _layer(pair, row, "kept", i, _zeros_of(row["sizes"][i]), color=color, label=row["layers"][i])
            _layer(other, row, "misalignment", i, _if_any, color=color, ls="--")
        other.set(yscale="log", ylabel="misalignment (dashed)")
        pair.legend(frameon=False, fontsize=7)
    return png(figure)


def _ratio_of(size: int) -> Callable[[float], float | None]:
    return lambda kept: size / kept if kept else None


def _zeros_of(size: int) -> Callable[[float], float]:
    return lambda kept: 1 - kept / size


def _if_any(value: float) -> float | None:
    return value or None


def _layer(axes: Any, row: Row, name: str, index: int, change: Callable[[float], float | None], **style: Any) -> None:
    _curve(axes, row, lambda _, record: change(record["layers"][name][index]), **style)


def schedules(rows: Sequence[Row], title: str, count: int) -> bytes:
    """Figure 6: above one run for each schedule, below ``count`` strengths; dashed lines where phases begin, dots the onset."""
    titles = [f"{row['schedule']}, λ = {row['lam']:g}" for row in rows]
    figure, axes = panels(titles, title, "epoch", "accuracy and share of zeros (%)", rows=2 if len(rows) > count else 1)
    for pair, row in zip(axes, rows, strict=False):
        _curve(pair, row, lambda _, record: record["train_accuracy"], color="#9a9a9a", label="training accuracy")
        _curve(pair, row, lambda _, record: record["test_accuracy"], color="#1f5fa8", label="test accuracy")
        _curve(pair, row, lambda own, record: 1 - record["weights"] / own["parameters"], color="#8c2d5a", label="zeros")
        percent(pair)
        norm = pair.twinx()
        _curve(norm, row, lambda _, record: record["norm"], color="#2d8c6a")
        mark_phases(pair, phases(row["history"], row["parameters"]))
        norm.set_ylim(bottom=0)
        norm.set_ylabel("norm of the weights (green)")
    if rows:
        axes[0].legend(frameon=False, fontsize=7, loc="lower right")
    return png(figure)


def components(row: Row | None, title: str) -> bytes:
    """Figure 20: the training loss and what it is made of, and the share of zeros.

    The penalty (λ/D) Σ‖ω_d‖² is the least one for these weights, λ‖w‖_{2/D}^{2/D}, plus λ times the misalignment.
    """
    figure = new_figure(width=7.0, height=4.4)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="epoch", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    zeros = axes.twinx()
    zeros.set(ylabel="share of zeros (dotted)", ylim=(0, 1.02))
    if row is not None:
        for name, figure_of, color in _PARTS:
            _curve(axes, row, figure_of, color=color, label=name)
        _curve(zeros, row, lambda own, record: 1 - record["weights"] / own["parameters"], color="black", ls=":")
        onset = phases(row["history"], row["parameters"]).onset
        if onset is not None:
            axes.axvline(onset, color="black", ls="--", lw=0.9, label="onset of sparsity")
        axes.legend(frameon=False, fontsize=8)
    return png(figure)


def excess(row: Row, record: Record) -> float:
    """λ M: by how much the penalty exceeds the least one for the same weights."""
    return float(record["lam"] * record["misalignment"] * row["parameters"])


_PARTS: tuple[tuple[str, Callable[[Row, Record], float | None], str], ...] = (
    ("training loss", lambda row, record: record["train_loss"] + record["penalty"], "black"),
    ("data", lambda row, record: record["train_loss"], "#1f5fa8"),
    ("penalty", lambda row, record: record["penalty"], "#8c2d5a"),
    ("least penalty", lambda row, record: record["penalty"] - excess(row, record), "#2d8c6a"),
    ("misalignment", lambda row, record: excess(row, record) or None, "#d08a1d"),
)
