"""Figure 4: singular values between the hidden layers, and the matrices that are multiplied there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparsenn.papers.rbv2.experiment import Choices, singular_values
from sparsenn.papers.rbv2.fig3 import PANELS, trained
from sparsenn.training.figures import new_axes, new_figure, png
from sparsenn.training.files import write_atomic

_SHOWN = {"b": "Theorem 1, Equation 2", "c": "Theorem 1, weight decay"}
_COLORS = dict(zip(PANELS, ("#1f5fa8", "#d08a1d", "#4f7f3f", "#9a9a9a"), strict=True))
_NEURONS = 64  # of the largest norm that are drawn: the others would be too small to be seen


def reproduce(
    out: str | Path = "runs/rbv2",
    *,
    epochs: int = 50_000,
    seeds: int = 1,
    choices: Choices | Sequence[str] | None = None,
    quiet: bool = True,
) -> Path:
    """The nets of Figure 3; write ``fig4a.png`` (singular values), ``fig4b.png`` and ``fig4c.png`` (V, W and W V).

    Of the nets of Theorem 1 the singular values are those of the functional width; the product has no others but zeros.

    Args:
        out: as for Figure 3, with which it shares its runs.
        epochs: as for Figure 3.
        seeds: as for Figure 3.
        choices: what the text leaves open, as `Choices` or in words such as ``"outputs=16"``.
        quiet: print no line a run.

    Returns:
        The path of the first picture.

    Raises:
        ValueError: for a setting out of range.

    Source:
        Parhi, Wolf and Nowak 2021, Figure 4.
    """
    nets = trained(Path(out), epochs, seeds, Choices.of(choices), quiet=quiet)
    figure, axes = new_axes(f"Between the hidden layers after {epochs} epochs", "number", "singular value")
    for title, (row, net) in nets.items():
        values = singular_values(net)
        axes.plot(
            range(1, len(values) + 1),
            values.clamp(min=1e-7).numpy(),
            color=_COLORS[title],
            label=f"{title}: rank {row['rank']}",
        )
    axes.set(xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    picture = Path(out) / "fig4a.png"
    write_atomic(picture, png(figure))
    for letter, title in _SHOWN.items():
        _, net = nets[title]
        write_atomic(Path(out) / f"fig4{letter}.png", _draw_matrices(net, title))
    return picture


@torch.no_grad()
def _draw_matrices(net: Any, title: str) -> bytes:
    first, second = net
    heard = first.neuron_norms().argsort(descending=True, stable=True)[:_NEURONS]
    said = second.neuron_norms().argsort(descending=True, stable=True)[:_NEURONS]
    v, w = first.outer.weight[:, heard], second.inner.weight[said]
    figure = new_figure(width=11.0, height=3.2)
    panels: Any = figure.subplots(1, 3)
    for axes, name, matrix in zip(
        panels, ("V of the first block", "W of the second", "their product"), (v, w, w @ v), strict=True
    ):
        limit = float(matrix.abs().max()) or 1.0
        image = axes.imshow(matrix.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle(f"{title}: the {_NEURONS} neurons of the largest norm in each block", fontsize=10)
    return png(figure)
