"""The paper's tables, with its numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence

from sparsenn.papers.dwf.compare import Ours, Published, accuracies, published, ratios, verdict
from sparsenn.papers.dwf.curves import PRUNING, factorized_in, kind, kinds_in, name_of, seeds_in
from sparsenn.papers.dwf.settings import LAMS, SPARSITIES, TOLERANCES
from sparsenn.training.table import Row

NOTHING = "–"
_SHOWN = (90.0, 95.0, 98.0, 99.0, 99.5)  # percent of sparsity, of the table of starts


def census(rows: Sequence[Row], wanted: int) -> str:
    """How many runs the item is made of."""
    text = f"{len(rows)} of {wanted} runs, {len(seeds_in(rows))} seeds; {_diverged(rows)} diverged."
    how = [f"{name_of(which)}: {_settings([row for row in rows if kind(row) == which])}" for which in kinds_in(rows)]
    return "\n".join([text, "", *(f"- {line}" for line in how), ""])


def _diverged(rows: Sequence[Row]) -> int:
    return sum(row["status"] == "diverged" for row in rows)


def _factorized(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """The depths of the paper's tables, which have a line whether there are rows or not, and those of the rows."""
    return sorted({*(("dwf", depth) for depth in LAMS), *factorized_in(rows)})


def _settings(rows: Sequence[Row]) -> str:
    lrs = ", ".join(f"{lr:g}" for lr in sorted({row["lr"] for row in rows}))
    lengths = sorted({(row["epochs"], row["after_epochs"]) for row in rows})
    epochs = " and ".join(f"{before} + {after}" if after else f"{before}" for before, after in lengths)
    text = f"lr {lrs}, {epochs} epochs"
    lams = sorted({row["lam"] for row in rows})
    if lams[-1]:
        text += f", {len(lams)} λ from {lams[0]:g} to {lams[-1]:g}"
    return text + (f", start {', '.join(sorted({row['factor_init'] for row in rows}))}" if rows[0]["method"] == "dwf" else "")


def table1(rows: Sequence[Row], dataset: str, model: str, wanted: int) -> str:
    """Table 1: compression at a tolerance."""
    theirs = published(1, dataset, model)
    lines = [
        f"# Table 1. {model} on {dataset}: compression of the sparsest net within a tolerance of the dense accuracy\n",
        census(rows, wanted),
        "| method | points below | compression, ours | sparsity % | sparsest trained net | published | ours / published |",
        "|---|---|---|---|---|---|---|",
    ]
    for which in (*_factorized(rows), *PRUNING):
        for tolerance in TOLERANCES:
            ratio = ratios(rows, which, tolerance)
            cell = theirs.get((*which, float(tolerance)))
            at = ratio.at if ratio is not None else None
            least = "≥ " if ratio is not None and ratio.least else ""
            shown = [
                NOTHING if at is None else least + mean_of(at, 0),
                NOTHING if at is None else f"{least}{100 - 100 / at.mean:.2f}",
                mean_of(ratio.trained if ratio is not None else None, 0),
                NOTHING if cell is None else f"{cell.value:.0f}",
                NOTHING if cell is None or at is None else f"{least}{at.mean / cell.value:.2f}",
            ]
            lines.append(f"| {name_of(which)} | {tolerance} | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def table2(rows: Sequence[Row], dataset: str, model: str, wanted: int) -> str:
    """Table 2: test accuracy at fixed sparsities."""
    theirs = published(2, dataset, model)
    head = " | ".join(f"{s:g} %" for s in SPARSITIES)
    lines = [f"# Table 2. {model} on {dataset}: test accuracy in percent at a sparsity\n", census(rows, wanted)]
    dense = accuracies(rows, ("dense", 1))[0.0]
    lines += [f"Dense: {_beside(dense, theirs.get(('dense', 1, 0.0)))}. In brackets what the paper prints.\n"]
    lines += [f"| method | {head} |", f"|---|{'---|' * len(SPARSITIES)}"]
    verdicts: list[str] = []
    methods = [*_factorized(rows), *PRUNING]
    for which in methods:
        own = accuracies(rows, which)
        cells = [(own[s], theirs.get((*which, s))) for s in SPARSITIES]
        verdicts += [verdict(ours, cell) for ours, cell in cells if ours is not None and cell is not None and which[0] == "dwf"]
        lines.append(f"| {name_of(which)} | {' | '.join(_beside(*cell) for cell in cells)} |")
    lines.append(f"| highest | {' | '.join(_highest(methods, rows, theirs, s) for s in SPARSITIES)} |")
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in ("higher", "alike", "lower"))
    if verdicts:
        lines += ["", f"Of the {len(verdicts)} accuracies of factorized nets that are in both tables ours are: {counts}."]
    return "\n".join([*lines, ""])


def _highest(
    methods: Sequence[tuple[str, int]],
    rows: Sequence[Row],
    theirs: dict[tuple[str, int, float], Published],
    sparsity: float,
) -> str:
    """The method with the highest mean accuracy, and in brackets the paper's."""
    ours = {which: own.mean for which in methods if (own := accuracies(rows, which)[sparsity]) is not None}
    printed = {which: cell.value for which in methods if (cell := theirs.get((*which, sparsity))) is not None}
    text, published_best = (name_of(max(found, key=found.__getitem__)) if found else NOTHING for found in (ours, printed))
    return f"{text} ({published_best})" if printed else text


def starts(rows: Sequence[Row], dataset: str, model: str, wanted: int) -> str:
    """Starts of the factors, from scratch and from a trained net: accuracy at a sparsity, and compression at a tolerance."""
    dense = [row for row in rows if kind(row) == ("dense", 1)]
    lines = [
        f"# Starts of the factors. {model} on {dataset}: test accuracy in percent at a sparsity, compression at a tolerance\n",
        f"{len(rows)} of {wanted} runs, {len(seeds_in(rows))} seeds; {_diverged(rows)} diverged.",
        f"Dense: {mean_of(accuracies(rows, ('dense', 1))[0.0], 2)}.\n",
        f"| begins with | epochs | start | {' | '.join(f'{s:g} %' for s in _SHOWN)} | within {TOLERANCES[0]} points |",
        f"|---|---|---|{'---|' * (len(_SHOWN) + 1)}",
    ]
    groups = {(row["after_epochs"], row["depth"], row["factor_init"]): kind(row) for row in rows if row not in dense}
    for (after, depth, start), which in sorted(groups.items()):
        own = [row for row in rows if kind(row) == which and (row["after_epochs"], row["factor_init"]) == (after, start)]
        at, ratio = accuracies(own, which), ratios([*dense, *own], which, TOLERANCES[0])
        name = name_of(which) if which == ("magnitude", 1) else f"D = {depth}, {start}"
        head = f"a trained net | {after}" if after else f"a random net | {own[0]['epochs']}"
        cells = [*(mean_of(at[s], 2) for s in _SHOWN), mean_of(ratio.at if ratio is not None else None, 0)]
        lines.append(f"| {head} | {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _beside(ours: Ours | None, cell: Published | None) -> str:
    text = mean_of(ours, 2)
    return text if cell is None else f"{text} ({cell.value:.2f} ± {cell.std:.2f})"


def mean_of(ours: Ours | None, digits: int) -> str:
    """A figure in a cell, with its standard deviation where it is of several seeds."""
    if ours is None:
        return NOTHING
    return f"{ours.mean:.{digits}f}" + (f" ± {ours.std:.{digits}f}" if ours.count > 1 else "")
