"""The paper's tables as Markdown, from the rows of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsenn.data import require_extra
from sparsenn.models import teacher
from sparsenn.papers.l1.compare import band, cell_rows, reference, spread
from sparsenn.papers.l1.runs import kept_weights
from sparsenn.papers.l1.settings import ACTIVATIONS, EXPERIMENTS, PAIRS, PUBLISHED, SEEDS
from sparsenn.training.table import Row

NAMES = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid", "l1": "L1", "l2": "L2", "none": "none", "prox": "proximal L1"}
_THRESHOLD = 1e-4
_SAMPLE_STD = (1, 2)  # experiments whose published deviations are those of a sample
NOTHING = "–"


def scale_name(scale: float) -> str:
    """As the paper says it."""
    return "no scaling" if scale == 1 else f"scaled {scale:g}"


def mean_and_std(values: Sequence[float], experiment: int) -> str:
    """As the paper prints it: mean ± standard deviation, of the sample in Experiments 1 and 2 and of the population elsewhere.

    Example:
        >>> from sparsenn.papers.l1.tables import mean_and_std
        >>> mean_and_std([1.0, 2.0], 3), mean_and_std([1.0, 2.0], 1)
        ('1.5000 ± 0.5000', '1.5000 ± 0.7071')
    """
    if not values:
        return NOTHING
    own = spread(values)
    correction = (own.count / (own.count - 1)) ** 0.5 if experiment in _SAMPLE_STD and own.count > 1 else 1.0
    return f"{own.mean:.4f} ± {own.std * correction:.4f}"


def methods_in(rows: Sequence[Row]) -> list[str]:
    """The methods that the rows have, in the order of the paper."""
    return [method for method in (*PUBLISHED, "prox") if any(row["method"] == method for row in rows)]


def losses(rows: Sequence[Row], experiment: int, scale: float) -> str:
    """Mean final loss, its deviation and its band for every pair and method, as in Figure 3; the paper's in brackets."""
    methods = methods_in(rows)
    lines = [
        f"| teacher → student | {' | '.join(NAMES[m] for m in methods)} |",
        f"|---|{'---|' * len(methods)}",
    ]
    printed = {
        (c.method, c.teacher, c.student): c
        for c in reference()
        if c.experiment == experiment and c.scale == scale and c.paper_loss is not None
    }
    for pair in PAIRS:
        cells = []
        for method in methods:
            own = [row["loss"] for row in cell_rows(rows, method, scale, *pair)]
            text = mean_and_std(own, experiment)
            if own:
                text += f" {band(spread(own).mean)}{'' if len(own) >= SEEDS else f', {len(own)} of {SEEDS}'}"
            there = printed.get((method, *pair))
            if there is not None:
                text += f" ({there.paper_loss:.4f} ± {there.paper_loss_std:.4f}{'' if there.usable else ', random teachers'})"
            cells.append(text)
        lines.append(f"| {NAMES[pair[0]]} → {NAMES[pair[1]]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sparsities(rows: Sequence[Row], experiment: int, *, exact: bool = False) -> str:
    """Average sparsity in percent for every pair, method and scale, as in Tables 1, 9 and 10, with the paper's in brackets."""
    methods = methods_in(rows)
    scales = sorted({row["scale"] for row in rows})
    columns = [(method, scale) for method in methods for scale in scales]
    lines = [
        f"| teacher → student | {' | '.join(f'{NAMES[m]} ({scale_name(s)})' for m, s in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    printed = {
        (c.method, c.scale, c.teacher, c.student): c
        for c in reference()
        if c.experiment == experiment and c.paper_sparsity is not None and not exact
    }
    for pair in PAIRS:
        cells = []
        for column in columns:
            own = [100 * row["exact_sparsity" if exact else "sparsity"] for row in cell_rows(rows, *column, *pair)]
            text = f"{spread(own).mean:.2f}" if own else NOTHING
            there = printed.get((*column, *pair))
            if there is not None:
                text += f" ({there.paper_sparsity:.2f}{'' if there.usable else ', random teachers'})"
            cells.append(text)
        lines.append(f"| {NAMES[pair[0]]} → {NAMES[pair[1]]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def recoveries(rows: Sequence[Row]) -> str:
    """For the matched pairs: perfect runs, share of zeros below 1e-4 and exact, connections found, distance, epochs."""
    lines = [
        "| activation | method, scale | runs | perfect | sparsity % | exact zeros % | precision | recall | distance | epochs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for activation in ACTIVATIONS:
        for method in methods_in(rows):
            for scale in sorted({row["scale"] for row in rows}):
                own = cell_rows(rows, method, scale, activation, activation)
                if not own:
                    continue
                perfect = NOTHING if own[0]["perfect"] is None else str(sum(row["perfect"] for row in own))
                means = {
                    name: spread([row[name] for row in own]).mean
                    for name in ("sparsity", "exact_sparsity", "precision", "recall", "distance", "epochs")
                }
                lines.append(
                    f"| {NAMES[activation]} | {NAMES[method]}, {scale_name(scale)} | {len(own)} | {perfect} "
                    f"| {100 * means['sparsity']:.2f} | {100 * means['exact_sparsity']:.2f} | {means['precision']:.2f} "
                    f"| {means['recall']:.2f} | {means['distance']:.2f} | {means['epochs']:.0f} |"
                )
    return "\n".join(lines) + "\n"


def correlations(rows: Sequence[Row]) -> str:
    """Spearman's rank correlation of final loss and sparsity over the runs of a method: the paper says that it is negative."""
    rank = require_extra("scipy.stats", "rank correlations").spearmanr
    lines = ["| method | runs | rank correlation of final loss and sparsity |", "|---|---|---|"]
    for method in methods_in(rows):
        own = [row for row in rows if row["method"] == method and row["status"] == "finished"]
        figures = [[row[name] for row in own] for name in ("loss", "sparsity")]
        varied = all(len(set(values)) > 1 for values in figures)
        text = f"{rank(*figures).statistic:.2f}" if varied else NOTHING
        lines.append(f"| {NAMES[method]} | {len(own)} | {text} |")
    return "\n".join(lines) + "\n"


def loss_matrix(rows: Sequence[Row], method: str, scale: float) -> str:
    """Table 5: the mean final loss, a row for each teacher, a column for each student; the paper's single run in brackets."""
    order = ("relu", "sigmoid", "tanh")
    lines = [f"| teacher \\ student | {' | '.join(NAMES[a] for a in order)} |", "|---|---|---|---|"]
    printed = {
        (c.teacher, c.student): c.loss
        for c in reference()
        if (c.experiment, c.method, c.scale) == (1, method, scale) and c.usable
    }
    for source in order:
        cells = []
        for student in order:
            own = [row["loss"] for row in cell_rows(rows, method, scale, source, student)]
            text = f"{spread(own).mean:.4f}" if own else NOTHING
            if (source, student) in printed:
                text += f" ({printed[source, student]:.4f})"
            cells.append(text)
        lines.append(f"| {NAMES[source]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def weight_text(value: float) -> str:
    """Two decimals; four for what lies between 1e-2 and 1e-4, and 0 below, as in the paper.

    Example:
        >>> from sparsenn.papers.l1.tables import weight_text
        >>> weight_text(-1.2345), weight_text(0.00123), weight_text(9e-5)
        ('-1.23', '0.0012', '0')
    """
    size = abs(value)
    if size < _THRESHOLD:
        return "0"
    return f"{value:.4f}" if size < 1e-2 else f"{value:.2f}"


def weights(columns: Sequence[tuple[str, Row | None]], experiment: int, folder: Path) -> str:
    """Layer by layer the teacher's weights beside those of single runs, as in Tables 2 to 4, 6 to 8 and 11 to 13."""
    own = EXPERIMENTS[experiment]
    taught = list(teacher(own.teacher, "relu").parameters())
    learnt = [None if row is None else kept_weights(row, folder) for _, row in columns]
    lines = [f"| | teacher | {' | '.join(name for name, _ in columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for layer, weight in enumerate(taught):
        cells = [_matrix(weight.flatten(0, -2).tolist())]
        cells += [NOTHING if kept is None else _matrix(kept[layer].flatten(0, -2).tolist()) for kept in learnt]
        lines.append(f"| layer {layer + 1} | {' | '.join(cells)} |")
    finals = [NOTHING if row is None or "loss" not in row else f"{row['loss']:.4f}" for _, row in columns]
    lines.append(f"| final loss | | {' | '.join(finals)} |")
    return "\n".join(lines) + "\n"


def _matrix(rows: list[list[float]]) -> str:
    return "<br>".join(", ".join(map(weight_text, row)) for row in rows)
