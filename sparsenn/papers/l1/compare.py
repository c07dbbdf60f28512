"""The published runs, and how the distribution of ours over seeds stands to them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from sparsenn.papers.l1.settings import EXPERIMENTS, PAIRS, SEEDS
from sparsenn.papers.spread import mean_std
from sparsenn.training.table import Row

BANDS = (1e-3, 0.25)  # the paper's: below the first green, up to the second orange, above red
BAND_NAMES = ("low", "moderate", "high")
_METHODS = {"noReg": "none"}


@dataclass(frozen=True)
class Cell:
    """A cell of the paper's tables: one experiment, method, scale and pair of activations.

    ``reference.csv`` was made of the paper's tables and of the stored results of its public code (a row for each cell). Some of
    those were trained against random teachers, because a match of names failed; ``usable`` says that none of the cell's was.

    Attributes:
        experiment: 1 to 6.
        method: ``l1``, ``l2`` or ``none``.
        scale: of the start.
        teacher: its activation.
        student: its activation.
        runs: how many stored runs the cell has.
        usable: whether all of them had the paper's teacher.
        loss: the mean of their final losses: MSE plus penalty, of the best epoch.
        loss_std: its population standard deviation.
        mse: the mean of the MSE of the stored weights; None where it is not known.
        sparsity: the mean share of weights below 1e-4, over layers and runs, in percent.
        paper_loss: what the paper prints, with ``paper_loss_std``; None where it prints nothing.
        paper_loss_std: see there.
        paper_sparsity: what the paper prints, in percent; None where it prints nothing.
    """

    experiment: int
    method: str
    scale: float
    teacher: str
    student: str
    runs: int
    usable: bool
    loss: float
    loss_std: float
    mse: float | None
    sparsity: float
    paper_loss: float | None
    paper_loss_std: float | None
    paper_sparsity: float | None


def reference() -> list[Cell]:
    """The published cells.

    Example:
        >>> from sparsenn.papers.l1.compare import reference
        >>> len(reference()), sum(cell.usable for cell in reference())
        (282, 166)
    """
    text = resources.files("sparsenn.papers.l1").joinpath("reference.csv").read_text(encoding="utf-8")
    return [_cell(row) for row in csv.DictReader(text.splitlines())]


def _cell(row: dict[str, str]) -> Cell:
    def number(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    return Cell(
        int(row["exp"]),
        _METHODS.get(row["reg"], row["reg"]),
        float(row["init_scale"]),
        row["t_act"],
        row["s_act"],
        int(row["n"]),
        row["usable"] == "True",
        float(row["stored_loss"]),
        float(row["stored_loss_pstd"]),
        number("canonical_mse"),
        float(row["stored_sparsity"]),
        number("paper_loss"),
        number("paper_loss_std"),
        number("paper_sparsity"),
    )


@dataclass(frozen=True)
class Spread:
    """Mean, population standard deviation and range of a figure over runs."""

    count: int
    mean: float
    std: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of one value or more.

    Example:
        >>> from sparsenn.papers.l1.compare import spread
        >>> spread([1.0, 3.0])
        Spread(count=2, mean=2.0, std=1.0, low=1.0, high=3.0)
    """
    return Spread(len(values), *mean_std(values), min(values), max(values))


def band(loss: float) -> str:
    """The paper's colour of a loss: low is green, moderate orange, high red.

    Example:
        >>> from sparsenn.papers.l1.compare import band
        >>> band(2e-4), band(0.25), band(0.26)
        ('low', 'moderate', 'high')
    """
    return BAND_NAMES[(loss >= BANDS[0]) + (loss > BANDS[1])]


def cell_rows(rows: Sequence[Row], method: str, scale: float, teacher: str, student: str) -> list[Row]:
    """The finished runs of a cell among the rows of one experiment."""
    names = {"method": method, "scale": scale, "teacher_activation": teacher, "student_activation": student}
    return [row for row in rows if row["status"] == "finished" and all(row[name] == value for name, value in names.items())]


def _as_published(row: Row) -> bool:
    own = EXPERIMENTS[row["experiment"]]
    return (row["size"], row["max_epochs"]) == (own.size, own.max_epochs(row["method"], row["scale"]))


def comparison(rows: Sequence[Row], experiment: int) -> list[dict[str, Any]]:
    """One entry for each usable published cell of an experiment for which there are finished runs of its size.

    ``loss_agrees``: the intervals mean ± 2 standard deviations overlap (each widened by 1e-4, the last printed digit), or the
    published mean lies within the range of ours. ``sparsity_agrees``: the published mean lies within the range of our runs,
    widened by one percentage point. Where a published cell has one run, it is a value and no distribution.
    """
    entries = []
    for cell in reference():
        own = [row for row in cell_rows(rows, cell.method, cell.scale, cell.teacher, cell.student) if _as_published(row)]
        if cell.experiment != experiment or not cell.usable or not own:
            continue
        loss = spread([row["loss"] for row in own])
        mse = spread([row["mse"] for row in own])
        sparsity = spread([100 * row["sparsity"] for row in own])
        slack = 2 * (loss.std + cell.loss_std) + 2e-4
        entries.append(
            {
                "cell": cell,
                "loss": loss,
                "mse": mse,
                "sparsity": sparsity,
                "complete": loss.count >= SEEDS,
                "same_band": band(loss.mean) == band(cell.loss),
                "loss_agrees": abs(loss.mean - cell.loss) <= slack or loss.low <= cell.loss <= loss.high,
                "sparsity_agrees": sparsity.low - 1 <= cell.sparsity <= sparsity.high + 1,
            }
        )
    order = {pair: i for i, pair in enumerate(PAIRS)}
    return sorted(
        entries, key=lambda e: (e["cell"].method, e["cell"].scale, order[e["cell"].teacher, e["cell"].student], e["cell"].loss)
    )


def comparison_markdown(rows: Sequence[Row], experiment: int) -> str:
    """The comparison as a Markdown section; empty where there is nothing to compare."""
    entries = comparison(rows, experiment)
    if not entries:
        return ""
    head = [
        "| method, scale | pair | runs | loss, published | loss, ours | range | | sparsity %, published | ours | range | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    body = [_line(entry) for entry in entries]
    whole = [entry for entry in entries if entry["complete"]]
    agree = [sum(entry[name] for entry in whole) for name in ("loss_agrees", "same_band", "sparsity_agrees")]
    summary = (
        f"Of {len(whole)} usable published cells of which we have all {SEEDS} runs the losses agree in {agree[0]}, fall into "
        f"the same band in {agree[1]}, and the sparsities agree in {agree[2]}. A dot marks what does not agree."
    )
    if len(whole) < len(entries):
        summary += " Where runs are not there yet, those that ended first are shown: they are no fair sample, and not counted."
    return "\n".join([summary, "", *head, *body, ""])


def _line(entry: dict[str, Any]) -> str:
    cell, loss, sparsity = entry["cell"], entry["loss"], entry["sparsity"]
    return (
        f"| {cell.method}, {cell.scale:g} | {cell.teacher} → {cell.student} | {loss.count} "
        f"| {cell.loss:.4f} ± {cell.loss_std:.4f} | {loss.mean:.4f} ± {loss.std:.4f} | {loss.low:.4f} to {loss.high:.4f} "
        f"| {'' if entry['loss_agrees'] else '•'} "
        f"| {cell.sparsity:.1f} | {sparsity.mean:.1f} | {sparsity.low:.1f} to {sparsity.high:.1f} "
        f"| {'' if entry['sparsity_agrees'] else '•'} |"
    )
