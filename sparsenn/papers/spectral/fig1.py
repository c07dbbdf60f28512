"""Figure 1: histograms of the relevances of spectral and direct students, from too narrow to far too wide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsenn.data import require_extra
from sparsenn.papers.spectral.experiments import EXPERIMENTS
from sparsenn.papers.spectral.pictures import histograms
from sparsenn.papers.spectral.trials import collect
from sparsenn.training.files import write_atomic


def reproduce(
    out: str | Path = "runs/spectral",
    *,
    widths: Sequence[int] = (10, 20, 40, 100, 200, 500),
    trials: int | None = None,
    epochs: int | None = None,
    quiet: bool = True,
) -> Path:
    """Train the students that ``teacher.jsonl`` lacks; write ``fig1.png``.

    Args:
        out: the folder; all figures of the paper share one.
        widths: widths h of the first hidden layer, one panel each.
        trials: students of each width and kind.
        epochs: passes over the samples.
        quiet: print no line a group of trials.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range.

    Source:
        Giambagli et al. 2023, Figure 1.
    """
    require_extra("matplotlib", "drawing pictures")
    experiment = EXPERIMENTS["teacher"]
    rows = collect("teacher", experiment, out, widths=widths, trials=trials, epochs=epochs, quiet=quiet)
    picture = Path(out) / "fig1.png"
    write_atomic(picture, histograms(rows, experiment.title))
    return picture
