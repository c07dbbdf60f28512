"""Beside the paper: spectral students and the group lasso of the same strength, by proximal steps, on the same task."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparsenn.data import TabularData
from sparsenn.optim import Proximal
from sparsenn.papers.spectral.experiments import ALPHA_LAMBDA, ALPHA_PHI, BATCH_SIZE, EXPERIMENTS, LR, Experiment, loss_of
from sparsenn.papers.spectral.trials import collect, core_sizes, measure, select
from sparsenn.papers.spread import mean_std
from sparsenn.penalties import GroupL1
from sparsenn.training.batches import batches, epoch_order
from sparsenn.training.files import write_atomic
from sparsenn.training.table import Row, growing

LAM = 2 * math.sqrt(ALPHA_LAMBDA * ALPHA_PHI)


def reproduce(
    out: str | Path = "runs/spectral",
    *,
    widths: Sequence[int] = (40,),
    trials: int = 3,
    epochs: int = 300,
    quiet: bool = True,
) -> Path:
    r"""Train what the tables lack; write ``grouplasso.csv``, one line for each kind of student and width.

    The penalty of a spectral student is smallest, over all λ and φ that give the same weights, at
    :math:`2 \sqrt{\alpha_\lambda \alpha_\varphi} \sum_i \|w_i\|_2`. The third kind of student has the direct form and this
    penalty, by :class:`sparsenn.optim.Proximal` around Adam with the spectral student's learning rate and batch size: the same
    objective by another way, with nodes that are exactly zero.

    Args:
        out: the folder; ``teacher.jsonl`` in it is that of the figures.
        widths: widths h of the first hidden layer.
        trials: students of each width and kind.
        epochs: passes over the samples.
        quiet: print no line a student.

    Returns:
        The path of the CSV file.

    Raises:
        ValueError: for a setting out of range.
        RunFolderError: if another process adds to the table, or something can't be written.
    """
    experiment = EXPERIMENTS["teacher"]
    rows = collect("teacher", experiment, out, widths=widths, trials=trials, epochs=epochs, quiet=quiet)
    data = experiment.load(None)
    wanted: list[Row] = [
        {"net": "group lasso", "h": h, "epochs": epochs, "trial": trial} for h in widths for trial in range(trials)
    ]
    with growing(Path(out) / "grouplasso.jsonl", ("net", "h", "epochs", "trial")) as table:
        for row in list(table.missing(wanted)):
            table.add({**row, "lam": LAM, **_train(experiment, data, row)})
            if not quiet:
                loss = table.rows[-1]["test_loss"]
                print(f"grouplasso, h = {row['h']}, trial {row['trial']}: test loss {loss:.4f}", file=sys.stderr)
    path = Path(out) / "grouplasso.csv"
    write_atomic(path, _summary([*rows, *table.rows_of(wanted)]))
    return path


def _train(experiment: Experiment, data: TabularData, row: Row) -> Row:
    net = experiment.make("direct", data, row["h"], experiment.hidden2, row["trial"])
    first, *others = (p for p in net.parameters() if p.requires_grad)
    groups: list[dict[str, Any]] = [{"params": [first], "penalty": GroupL1(LAM, "rows", weighted=False)}, {"params": others}]
    optimizer = Proximal(torch.optim.Adam(groups, LR["spectral"]))
    for epoch in range(row["epochs"]):
        order = epoch_order(len(data.train_inputs), row["trial"], epoch)
        for inputs, targets in batches(data.train_inputs, data.train_targets, order, BATCH_SIZE["spectral"]):
            optimizer.zero_grad()
            loss_of(net(inputs), targets).backward()
            optimizer.step()
    return measure(net, data)


def _summary(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ("test_loss", "core", "not_zero")
    writer.writerow(["net", "h", "epochs", "trials", *(f"{name}_{kind}" for name in figures for kind in ("mean", "std"))])
    for net in dict.fromkeys(row["net"] for row in rows):
        for width in dict.fromkeys(row["h"] for row in rows):
            own = select(rows, net=net, h=width)
            alive = [sum(r > 0 for r in row["relevances"]) for row in own]
            pairs = (mean_std([row["test_loss"] for row in own]), mean_std(core_sizes(own)), mean_std(alive))
            writer.writerow([net, width, own[0]["epochs"], len(own), *(f"{v:.4g}" for pair in pairs for v in pair)])
    return text.getvalue().encode()
