"""Figures 2 and 3: how many nodes students of growing width use, and what it costs to remove them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsenn.data import require_extra
from sparsenn.papers.spectral.experiments import EXPERIMENTS
from sparsenn.papers.spectral.pictures import core_and_collapse, summary
from sparsenn.papers.spectral.trials import collect
from sparsenn.training.files import write_atomic


def reproduce_core(
    item: str,
    name: str,
    out: str | Path = "runs/spectral",
    *,
    widths: Sequence[int] | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    hidden2: int | None = None,
    second_layer: bool = False,
    data_root: str | None = None,
    features: str | None = None,
    quiet: bool = True,
) -> Path:
    """Train the students that the table of the experiment lacks; write ``<item>.png`` and ``<item>.csv``.

    Args:
        item: the figure's name.
        name: the experiment's, and that of its table, ``<name>.jsonl``.
        out: the folder; all figures of the paper share one.
        widths: widths h of the first hidden layer.
        trials: students of each width and kind.
        epochs: passes over the samples.
        hidden2: width of the second hidden layer.
        second_layer: penalise the second layer too, as Equations 7 and 8 do and the public code does not.
        data_root: as for ``sparsenn train``.
        features: for CIFAR-100, the file of features.
        quiet: print no line a group of trials.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range.
        DataError: if a data file is missing or damaged.
        RunFolderError: if another process adds to the table, or something can't be written.

    Source:
        Giambagli et al. 2023, Figures 2 and 3 (30 trials; the text after Figure 2 for other widths of the second layer).
    """
    require_extra("matplotlib", "drawing pictures")
    experiment = EXPERIMENTS[name]
    rows = collect(
        name,
        experiment,
        out,
        widths=widths,
        trials=trials,
        epochs=epochs,
        hidden2=hidden2,
        second_layer=second_layer,
        source=features or data_root,
        quiet=quiet,
    )
    picture = Path(out) / f"{item}.png"
    write_atomic(picture.with_suffix(".csv"), summary(rows))
    what = "MSE" if rows[0]["test_accuracy"] is None else "cross-entropy"
    write_atomic(picture, core_and_collapse(rows, experiment.title, experiment.reference, what))
    return picture
