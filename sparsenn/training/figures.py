"""Figures drawn without a display: one look, and bytes that are the same on every run."""

from __future__ import annotations

import io
from typing import Any

from sparsenn.data import require_extra
from sparsenn.training.phases import Phases


def new_figure(width: float = 7.0, height: float = 4.2) -> Any:
    """An empty matplotlib figure of so many inches.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    figure = require_extra("matplotlib.figure", "drawing pictures").Figure(figsize=(width, height), layout="constrained")
    require_extra("matplotlib.backends.backend_agg", "drawing pictures").FigureCanvasAgg(figure)
    return figure


def new_axes(title: str, xlabel: str, ylabel: str, **size: float) -> tuple[Any, Any]:
    """A figure with one pair of axes, a faint grid and no frame."""
    figure = new_figure(**size)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def mark_phases(axes: Any, phases: Phases) -> None:
    """Vertical lines at the epochs at which the phases of a run begin and sparsity sets in, named in the legend."""
    lines = (("reorganization", phases.reorganization, "--"), ("sparsification", phases.sparsification, "-."))
    for name, epoch, style in (*lines, ("onset of sparsity", phases.onset, ":")):
        if epoch is not None:
            axes.axvline(epoch, color="black", ls=style, lw=0.9, label=name)


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
