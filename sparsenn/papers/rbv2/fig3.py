"""Figure 3: the matrices between the hidden layers of four trained nets, rows and columns sorted by norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sparsenn import metrics
from sparsenn.data import require_extra
from sparsenn.papers.rbv2.experiment import Choices, between
from sparsenn.papers.rbv2.runs import collect, load_net
from sparsenn.training.figures import new_figure, png
from sparsenn.training.files import write_atomic
from sparsenn.training.table import Row

LAM = 1e-3
# net and penalty of each panel
PANELS = {
    "Theorem 1, Equation 2": ("ridge", "rbv2"),
    "Theorem 1, weight decay": ("ridge", "weight decay"),
    "fully connected, weight decay": ("control", "weight decay"),
    "fully connected, no penalty": ("control", "none"),
}


def reproduce(
    out: str | Path = "runs/rbv2",
    *,
    epochs: int = 50_000,
    seeds: int = 1,
    choices: Choices | Sequence[str] | None = None,
    quiet: bool = True,
) -> Path:
    """Train the four nets at λ = 1e-3; write ``runs.jsonl``, the weights and ``fig3.png``.

    Args:
        out: the folder; runs that its table has are not computed again.
        epochs: full passes over the 81 points. At the paper's 50,000 the norm has not yet done its work here.
        seeds: runs of each net; the first is drawn.
        choices: what the text leaves open, as `Choices` or in words such as ``"outputs=16"``.
        quiet: print no line a run.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range.

    Source:
        Parhi, Wolf and Nowak 2021, Figure 3.
    """
    nets = trained(Path(out), epochs, seeds, Choices.of(choices), quiet=quiet)
    picture = Path(out) / "fig3.png"
    write_atomic(picture, _draw(nets, epochs))
    return picture


def trained(out: Path, epochs: int, seeds: int, choices: Choices, *, quiet: bool) -> dict[str, tuple[Row, nn.Module]]:
    """Row and net of each panel, for the first seed."""
    if epochs < 1 or seeds < 1:
        raise ValueError("rbv2: it takes 1 or more epochs and 1 or more seeds")
    require_extra("matplotlib", "drawing pictures")
    wanted: list[Row] = [
        {"net": net, "penalty": penalty, "lam": 0.0 if penalty == "none" else LAM, "seed": seed, "epochs": epochs}
        for seed in range(seeds)
        for net, penalty in PANELS.values()
    ]
    rows = collect(out, wanted, choices, quiet=quiet)[: len(PANELS)]
    return {title: (row, load_net(out, row, choices)) for title, row in zip(PANELS, rows, strict=True)}


def _draw(nets: dict[str, tuple[Row, nn.Module]], epochs: int) -> bytes:
    figure = new_figure(width=11.0, height=3.4)
    panels: Any = figure.subplots(1, len(nets))
    for axes, (title, (row, net)) in zip(panels, nets.items(), strict=True):
        matrix = metrics.sorted_by_norm(between(net)).abs()
        image = axes.imshow(matrix.numpy(), cmap="viridis", vmin=0.0, aspect="auto", interpolation="nearest")
        axes.set_title(f"{title}\nMSE {row['mse']:.1g}, share above 1e-3 {row['above']:.2f}", fontsize=8)
        axes.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle(
        f"|W V| between the hidden layers after {epochs} epochs, sorted by norm; shares are of all weights of a net",
        fontsize=10,
    )
    return png(figure)
