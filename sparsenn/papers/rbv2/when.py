"""When the penalties take effect: share of weights, rank and error against the epoch, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparsenn.data import require_extra
from sparsenn.papers.rbv2.experiment import Choices
from sparsenn.papers.rbv2.fig2 import COLORS, LABELS, wanted_runs
from sparsenn.papers.rbv2.runs import collect
from sparsenn.training.figures import new_figure, png
from sparsenn.training.files import write_atomic
from sparsenn.training.table import Row

LAM = 1e-3
_PANELS = {1: "share of weights above 1e-3", 3: "rank between the hidden layers", 2: "mean squared error"}
_LEAST = 1e-9  # of an error that is drawn along a logarithm


def reproduce(
    out: str | Path = "runs/rbv2",
    *,
    epochs: int = 200_000,
    seeds: int = 3,
    choices: Choices | Sequence[str] | None = None,
    quiet: bool = True,
) -> Path:
    """The runs of Figure 2 at λ = 1e-3 for several seeds; write ``when.png``: means, with a band of one standard deviation.

    Figures 3 and 4 show nets after 50,000 epochs; the text does not say when their matrices become what they are.

    Args:
        out: as for Figure 2, with which it shares its runs.
        epochs: as for Figure 2.
        seeds: runs of each penalty.
        choices: as for Figure 2.
        quiet: print no line a run.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range.
    """
    wanted = [row for row in wanted_runs(epochs, seeds) if row["lam"] in (LAM, 0.0)]
    require_extra("matplotlib", "drawing pictures")
    rows = collect(Path(out), wanted, Choices.of(choices), quiet=quiet)
    picture = Path(out) / "when.png"
    write_atomic(picture, _draw(rows))
    return picture


def _draw(rows: Sequence[Row]) -> bytes:
    figure = new_figure(width=11.0, height=3.6)
    panels: Any = figure.subplots(1, len(_PANELS))
    for axes, (column, label) in zip(panels, _PANELS.items(), strict=True):
        for penalty, color in COLORS.items():
            own = torch.tensor([row["curve"] for row in rows if row["penalty"] == penalty], dtype=torch.float64)
            epochs, values = own[0, :, 0].clamp(min=0.8), own[:, :, column]
            if column == 2:
                values = values.clamp(min=_LEAST).log10()
            mean, std = values.mean(0), values.std(0, correction=0)
            low, high = (10**edge if column == 2 else edge for edge in (mean - std, mean + std))
            axes.plot(epochs, 10**mean if column == 2 else mean, color=color, label=LABELS[penalty])
            axes.fill_between(epochs, low, high, color=color, alpha=0.25, lw=0)
        axes.set(xscale="log", xlabel="epoch", ylabel=label)
        axes.axvline(50_000, color="black", lw=0.8, ls=":")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[2].set_yscale("log")
    panels[0].legend(frameon=False, fontsize=8, loc="lower left")
    count = len({row["seed"] for row in rows})
    figure.suptitle(
        f"λ = {LAM:g}, {count} seeds: mean and standard deviation; dotted: the epochs of Figures 3 and 4", fontsize=10
    )
    return png(figure)
