"""Figure 2: the share of weights that count, against the epoch, under the norm, weight decay and no penalty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsenn.data import require_extra
from sparsenn.papers.rbv2.experiment import Choices
from sparsenn.papers.rbv2.runs import collect
from sparsenn.training.figures import new_figure, png
from sparsenn.training.files import write_atomic
from sparsenn.training.table import Row

LAMS = (1e-1, 1e-3, 1e-5)
COLORS = {"rbv2": "#1f5fa8", "weight decay": "#d08a1d", "none": "#9a9a9a", "proximal": "#8c2d5a"}
LABELS = {
    "rbv2": "Equation 2",
    "weight decay": "weight decay",
    "none": "no penalty",
    "proximal": "the norm by proximal steps (ours)",
}


def reproduce(
    out: str | Path = "runs/rbv2",
    *,
    epochs: int = 200_000,
    seeds: int = 1,
    choices: Choices | Sequence[str] | None = None,
    quiet: bool = True,
) -> Path:
    """Train the net of Theorem 1 with each penalty and strength; write ``runs.jsonl``, one line a run, and ``fig2.png``.

    Args:
        out: the folder; runs that its table has are not computed again.
        epochs: full passes over the 81 points.
        seeds: runs of each cell; the first is drawn, as the paper shows one typical run.
        choices: what the text leaves open, as `Choices` or in words such as ``"outputs=16"``.
        quiet: print no line a run.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range.

    Source:
        Parhi, Wolf and Nowak 2021, Figure 2.
    """
    wanted = wanted_runs(epochs, seeds)
    require_extra("matplotlib", "drawing pictures")
    rows = collect(Path(out), wanted, Choices.of(choices), quiet=quiet)
    picture = Path(out) / "fig2.png"
    write_atomic(picture, _draw([row for row in rows if row["seed"] == 0]))
    return picture


def wanted_runs(epochs: int, seeds: int) -> list[Row]:
    """The runs of the figure; those without a penalty count for every strength.

    Raises:
        ValueError: for a number below 1.
    """
    if epochs < 1 or seeds < 1:
        raise ValueError("rbv2: it takes 1 or more epochs and 1 or more seeds")
    return [
        {"net": "ridge", "penalty": penalty, "lam": lam if penalty != "none" else 0.0, "seed": seed, "epochs": epochs}
        for seed in range(seeds)
        for lam in LAMS
        for penalty in COLORS
        if penalty != "none" or lam == LAMS[0]
    ]


def _draw(rows: list[Row]) -> bytes:
    figure = new_figure(width=11.0, height=3.9)
    panels: Any = figure.subplots(1, len(LAMS), sharey=True)
    for axes, lam in zip(panels, LAMS, strict=True):
        own = [row for row in rows if row["lam"] in (lam, 0.0)]
        for row in own:
            epochs, above, *_ = zip(*row["curve"], strict=True)
            axes.plot([max(e, 0.8) for e in epochs], above, color=COLORS[row["penalty"]], label=LABELS[row["penalty"]])
        errors = ", ".join(f"{row['mse']:.1g}" for row in own)
        axes.set_title(f"λ = {lam:g}\nMSE {errors}", fontsize=10)
        axes.set(xscale="log", xlabel="epoch", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of weights above 1e-3")
    panels[0].legend(frameon=False, fontsize=8, loc="lower left")
    return png(figure)
