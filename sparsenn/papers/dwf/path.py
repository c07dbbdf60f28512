"""Beside the paper: one net taken up a path of λ by warm starts, against a net of its own for every λ."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from sparsenn.optim import regularization_path
from sparsenn.papers.dwf.compare import accuracies, ratios
from sparsenn.papers.dwf.curves import kind, name_of, seeds_in, select
from sparsenn.papers.dwf.runs import Place, config_of, line_of, train, trained_state
from sparsenn.papers.dwf.settings import KEY, POINTS, SEEDS, SPARSITIES, TOLERANCES, Given, tuning_epochs
from sparsenn.papers.dwf.tables import mean_of
from sparsenn.training.errors import ConfigError, TrainingInterrupted
from sparsenn.training.files import write_atomic
from sparsenn.training.fit import Fit
from sparsenn.training.folder import alone_in
from sparsenn.training.logging import progress_for
from sparsenn.training.result import outcome
from sparsenn.training.session import StopSignal, session
from sparsenn.training.table import Row, Table

_STAGE = ("stage_epochs", "first", "last", "points")  # of a path, beside the run that a λ would be by itself
_WARMUP = 1  # epochs of a stage: a trained net diverges at once at the rate that a fresh one begins with
_ALONE, _PATH = "a net for each λ", "one net, warm starts"


def reproduce(
    out: str | Path = "runs/dwf",
    *,
    dataset: str = "fashion-mnist",
    model: str = "lenet-300-100",
    depths: Sequence[int] = (2, 3, 4),
    lams: Sequence[float] | None = None,
    points: int = POINTS,
    seeds: int = SEEDS,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    factor_init: str | None = None,
    data_root: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    compile: bool = False,  # noqa: A002 (what it is called everywhere)
    no_train: bool = False,
    quiet: bool = True,
) -> Path:
    """Train a path for each depth and seed, and the nets of the same λ beside it; write JSON lines and a table.

    A path begins with the net of the smallest λ, trained in full. At every larger one it is trained on for a tenth of the
    epochs, under the same schedule anew after an epoch of warmup, with the factors and momenta that it has. At the end of a
    stage a copy is collapsed and measured. The nets beside it, one for each λ, are those of the paper's items, from
    ``nets.jsonl``.

    Args:
        out: the folder; rows that its tables have are not computed again, but a path that lacks one begins anew.
        dataset: a name of ``sparsenn.data.names()``.
        model: a name of ``sparsenn.models.names()``.
        depths: numbers of factors.
        lams: smallest and largest λ; None for those of the depth.
        points: how many λ, log-spaced, 2 or more.
        seeds: how many, counted from 0.
        epochs: passes over the training set of a net by itself; None for the preset's.
        batch_size: images a step; None for the preset's.
        lr: initial learning rate of every net and every stage; None for that of the depth.
        factor_init: how factors start; None for the default.
        data_root: as for ``sparsenn train``.
        device: the same.
        threads: CPU threads; 0 leaves PyTorch its choice.
        compile: as for ``sparsenn train``; the runs are the same but for rounding, and have the same names.
        no_train: make the table of the rows that are there; no data is read.
        quiet: no bar, no line a net.

    Returns:
        The path of the table.

    Raises:
        ConfigError: for a setting out of range, before anything is read or written.
        DataError: if a data file is missing or damaged.
        RunFolderError: if another process trains in the folder, or something can't be written.
        TrainingInterrupted: after a signal.
    """
    given = Given(
        dataset,
        model,
        epochs=epochs,
        seeds=seeds,
        lams=None if lams is None else (lams[0], lams[1]),
        points=points,
        lr=lr,
        factor_init=factor_init,
        batch_size=batch_size,
    )
    given.check()
    if points < 2:
        raise ConfigError(f"path: points is {points}; it takes 2 or more")
    place = Place(Path(out), data_root, device, threads, compile, quiet)
    curves = [given.sweep(depth, [seed]) for seed in range(seeds) for depth in depths]
    keys = [key for curve in curves for key in curve]
    alone = place.table.rows_of(keys) if no_train else train(keys, place)
    with nullcontext() if no_train else alone_in(place.folder):
        table = Table(place.folder / "path.jsonl", (*KEY, *_STAGE))
        for curve in [] if no_train else curves:
            _follow(curve, place, table)
    path = place.table.rows_of(curve[0] for curve in curves)
    path += table.rows_of(stage for curve in curves for stage in _stages(curve))
    file = place.folder / f"path-{model}-{dataset}.md"
    write_atomic(file, _summary(given, alone, path, place.table.rows_of(given.dense()), len(keys)).encode())
    return file


def _stages(curve: Sequence[Row]) -> list[Row]:
    """The names of the stages of a path: all λ of a curve but the first."""
    first, last = curve[0]["lam"], curve[-1]["lam"]
    how = dict(zip(_STAGE, (tuning_epochs(curve[0]["epochs"]), first, last, len(curve)), strict=True))
    return [{**key, **how} for key in curve[1:]]


def _follow(curve: Sequence[Row], place: Place, table: Table) -> None:
    """Take a net up the λ of a curve, and add the rows that the table lacks."""
    missing = {row["lam"]: row for row in table.missing(_stages(curve))}
    if not missing:
        return
    epochs = tuning_epochs(curve[0]["epochs"])
    config = replace(config_of({**curve[0], "epochs": epochs}, place), eval_every=epochs, warmup=min(_WARMUP, epochs - 1))
    with StopSignal() as stop, progress_for(quiet=True) as progress, session(config):
        start = trained_state(curve[0], place, progress, stop)
        fit = Fit(config, place.images(config))
        fit.begin_with(start)

        def stage(lam: float) -> None:
            found = _train_on(fit, lam, stop, place.folder)
            if lam in missing:
                table.add({**missing[lam], **found})
                if not place.quiet:
                    print(line_of(table.rows[-1]), file=sys.stderr, flush=True)

        regularization_path(stage, [key["lam"] for key in curve[1:]])


def _train_on(fit: Fit, lam: float, stop: StopSignal, folder: Path) -> Row:
    """A stage, and what is left after it; that of a net that has diverged is none."""
    fit.begin_again(lam)
    while not fit.done and fit.is_finite():
        if not fit.train_epoch(stop.wanted):
            raise TrainingInterrupted("stopped on a path; the same command begins it again", stop.number or 0, folder)
        fit.end_epoch()
    if not fit.is_finite():
        return {"status": "diverged", "stopped_at": fit.epoch}
    net = outcome(fit)
    compression = net.compression_ratio if net.weights else None
    return {"status": "finished", "accuracy": net.accuracy, "compression": compression, "weights": net.weights}


def _summary(given: Given, alone: Sequence[Row], path: Sequence[Row], dense: Sequence[Row], wanted: int) -> str:
    """Accuracy at each sparsity, and compression at the tolerances, of the nets by themselves and of those on paths."""
    head = [*(f"{s:g} %" for s in SPARSITIES), *(f"within {t} points" for t in TOLERANCES)]
    lines = [
        f"# Warm starts. {given.model} on {given.dataset}: accuracy (%) at a sparsity, compression at a tolerance\n",
        f"{len(alone)} of {wanted} nets by themselves, {len(path)} of {wanted} on paths, {len(seeds_in(alone))} seeds.\n",
        f"| depth | what | epochs, all λ | {' | '.join(head)} |",
        f"|---|---|---|{'---|' * len(head)}",
    ]
    for depth in sorted({row["depth"] for row in [*alone, *path]}):
        for name, rows in ((_ALONE, alone), (_PATH, path)):
            own = select(rows, depth=depth)
            if not own:
                continue
            which = kind(own[0])
            at, within = accuracies(own, which), [ratios([*dense, *own], which, t) for t in TOLERANCES]
            cells = [mean_of(at[s], 2) for s in SPARSITIES]
            cells += [mean_of(ratio.at if ratio is not None else None, 0) for ratio in within]
            epochs = sum(row["stage_epochs"] if "stage_epochs" in row else row["epochs"] for row in own) / len(seeds_in(own))
            lines.append(f"| {name_of(which)} | {name} | {epochs:.0f} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
