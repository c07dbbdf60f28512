"""When the connections that a run ends with are found: under the subgradient of L1, and by proximal steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from sparsenn.metrics.recovery import THRESHOLD
from sparsenn.papers.l1.runs import stack_of
from sparsenn.papers.l1.settings import KEY, SCALES
from sparsenn.papers.l1.tables import NAMES, scale_name
from sparsenn.training.folder import alone_in
from sparsenn.training.stacked import Outcome
from sparsenn.training.table import Row, Table

METHODS = ("l1", "prox")


def table_in(folder: Path) -> Table:
    """The table of courses in a folder."""
    return Table(folder / "courses.jsonl", KEY)


def train(keys: Sequence[Row], folder: Path) -> None:
    """Train what the table lacks, the runs of a pair and start together, and look at their weights after every epoch.

    A row has, beside its key, ``epochs``; ``settled``, the first epoch from which the weights of 1e-4 or more are those of the
    end, and ``exact_settled``, the same of the weights that are not 0 (None where no weight is 0 at the end); and ``support``
    and ``exact_support``, the places of both at the end among all weights. A kill loses the runs of one pair and start.

    Raises:
        RunFolderError: if another process trains there.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    with alone_in(folder / "courses.state"):
        table = table_in(folder)
        for key in table.missing(keys):
            groups.setdefault((key["teacher_activation"], key["student_activation"], key["scale"]), []).append(key)
        for group in groups.values():
            for row in _rows(group):
                table.add(row)
    (folder / "courses.state").rmdir()


def _rows(keys: list[Row]) -> list[Row]:
    stack, _ = stack_of(keys)
    seen: list[list[Tensor]] = [[torch.empty(0), torch.empty(0)] for _ in keys]
    since = [[0, 0] for _ in keys]
    while moving := stack.active:
        stack.epoch()
        for index in moving:
            outcome = stack.outcome(index)
            for which, now in enumerate(_supports(outcome)):
                if not torch.equal(now, seen[index][which]):
                    seen[index][which], since[index][which] = now, outcome.epochs
    return [
        {
            **key,
            "status": outcome.status,
            "epochs": outcome.epochs,
            "settled": since[index][0],
            "exact_settled": since[index][1] if not bool(seen[index][1].all()) else None,
            "support": seen[index][0].nonzero().flatten().tolist(),
            "exact_support": seen[index][1].nonzero().flatten().tolist(),
        }
        for index, (key, outcome) in enumerate(zip(keys, stack.outcomes, strict=True))
    ]


def _supports(outcome: Outcome) -> tuple[Tensor, Tensor]:
    weights = torch.cat([w.flatten() for w in outcome.weights.values()])
    return weights.abs() >= THRESHOLD, weights != 0


def markdown(rows: Sequence[Row]) -> str:
    """Medians over the seeds of a pair and start, with the smallest and largest."""
    lines = [
        "| pair, start | end, subgradient | proximal | support of 1e-4 settled, subgradient | proximal "
        "| exact zeros settled, proximal | same support at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = list(dict.fromkeys((row["teacher_activation"], row["student_activation"]) for row in rows))
    for pair in pairs:
        for scale in SCALES:
            own = [r for r in rows if (r["teacher_activation"], r["student_activation"], r["scale"]) == (*pair, scale)]
            by = {method: {r["seed"]: r for r in own if r["method"] == method} for method in METHODS}
            both = sorted(by["l1"].keys() & by["prox"].keys())
            if not both:
                continue
            cells = [_spread([by[m][seed][name] for seed in both]) for name in ("epochs", "settled") for m in METHODS]
            cells.append(_spread([by["prox"][seed]["exact_settled"] for seed in both]))
            same = sum(by["l1"][seed]["support"] == by["prox"][seed]["support"] for seed in both)
            names = " → ".join(NAMES[a] for a in pair)
            lines.append(f"| {names}, {scale_name(scale)} | {' | '.join(cells)} | {same} of {len(both)} |")
    return "\n".join([*lines, ""])


def _spread(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.0f} ({min(known)} to {max(known)})" if known else "–"
