"""Figure 4: path magnitudes of the pruned spectral student and of the direct one beside the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsenn.data import require_extra
from sparsenn.metrics import path_magnitudes
from sparsenn.papers.spectral.experiments import EXPERIMENTS, teacher
from sparsenn.papers.spectral.pictures import path_curves
from sparsenn.papers.spectral.trials import POINTS, collect
from sparsenn.training.files import write_atomic


def reproduce(
    out: str | Path = "runs/spectral",
    *,
    widths: Sequence[int] = (200,),
    trials: int | None = None,
    epochs: int | None = None,
    quiet: bool = True,
) -> Path:
    """Train the students that ``teacher.jsonl`` lacks; write ``fig4.png``.

    Args:
        out: the folder; all figures of the paper share one.
        widths: the width h of the first hidden layer, one.
        trials: students of each kind.
        epochs: passes over the samples.
        quiet: print no line a group of trials.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range, and more widths than one.

    Source:
        Giambagli et al. 2023, Equation 11 and Figure 4.
    """
    if len(widths) != 1:
        raise ValueError(f"fig4: widths is {list(widths)}; it takes one width")
    require_extra("matplotlib", "drawing pictures")
    experiment = EXPERIMENTS["teacher"]
    rows = collect("teacher", experiment, out, widths=widths, trials=trials, epochs=epochs, quiet=quiet)
    net = teacher()
    truth = path_magnitudes(net[0].weight, net[2].weight, POINTS)  # type: ignore[arg-type]
    picture = Path(out) / "fig4.png"
    write_atomic(picture, path_curves(rows, truth.tolist(), f"{experiment.title}, h = {widths[0]}"))
    return picture
