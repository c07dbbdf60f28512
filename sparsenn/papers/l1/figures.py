"""The paper's pictures: tables of losses in its three colours, and maps of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparsenn.papers.l1.compare import BAND_NAMES, band, cell_rows, spread
from sparsenn.papers.l1.settings import PAIRS
from sparsenn.papers.l1.tables import NAMES, NOTHING, mean_and_std, methods_in, scale_name
from sparsenn.training.figures import new_figure, png
from sparsenn.training.table import Row

COLORS = dict(zip(BAND_NAMES, ("#bfe3b4", "#fbd9a0", "#f2b0a8"), strict=True))
_LIMIT = 2.0  # of the colour scale of weights, as in the paper's notebooks
_LAYER_NAMES = ("layer 1", "layer 2", "layer 3")


def loss_picture(rows: Sequence[Row], experiment: int, title: str) -> bytes:
    """Figures 3, 5, 9 and 11: mean loss ± deviation of every pair and method in the paper's colours, a panel for each scale."""
    scales, methods = sorted({row["scale"] for row in rows}), methods_in(rows)
    figure = new_figure(width=2.3 + 1.9 * len(methods), height=0.6 + 3.3 * max(len(scales), 1))
    figure.suptitle(title, fontsize=11)
    for axes, scale in zip(figure.subplots(max(len(scales), 1), 1, squeeze=False)[:, 0], scales, strict=False):
        axes.axis("off")
        axes.set_title(scale_name(scale), fontsize=10)
        text, colors = [], []
        for pair in PAIRS:
            cells = [[row["loss"] for row in cell_rows(rows, method, scale, *pair)] for method in methods]
            text.append([mean_and_std(own, experiment) for own in cells])
            colors.append([COLORS[band(spread(own).mean)] if own else "white" for own in cells])
        grid = axes.table(
            cellText=text,
            cellColours=colors,
            rowLabels=[f"{NAMES[source]} → {NAMES[student]}" for source, student in PAIRS],
            colLabels=[NAMES[method] for method in methods],
            loc="center",
            cellLoc="center",
        )
        grid.auto_set_font_size(False)
        grid.set_fontsize(9)
        grid.scale(1, 1.35)
    return png(figure)


def weight_picture(panels: Sequence[tuple[str, Sequence[Tensor] | None]]) -> bytes:
    """Figures 4, 6, 7, 8 and 10: the layers' weights as colours from −2 (red) over 0 (white) to 2 (blue), a line for each run.

    A layer has its inputs from left to right and its neurons from top to bottom.
    """
    figure = new_figure(width=9.5, height=3.6 * len(panels))
    for (title, layers), line in zip(panels, figure.subfigures(len(panels), 1, squeeze=False)[:, 0], strict=True):
        line.suptitle(title if layers is not None else f"{title}: {NOTHING}", fontsize=10)
        image: Any = None
        shown: Sequence[Tensor | None] = layers or [None] * len(_LAYER_NAMES)
        columns = line.subplots(1, len(_LAYER_NAMES), width_ratios=(1, 2.2, 1.4))
        for axes, name, weight in zip(columns, _LAYER_NAMES, shown, strict=True):
            axes.set_title(name, fontsize=9)
            axes.tick_params(labelsize=7)
            if weight is not None:
                kind = {"cmap": "RdBu", "vmin": -_LIMIT, "vmax": _LIMIT, "aspect": "auto", "interpolation": "nearest"}
                image = axes.imshow(weight.flatten(0, -2).numpy(), **kind)
        if image is not None:
            line.colorbar(image, ax=columns, shrink=0.8)
    return png(figure)
