"""Trained students, one row each, in tables that all figures of the paper share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsenn.data import TabularData
from sparsenn.metrics import path_magnitudes
from sparsenn.papers.spectral.experiments import ALPHA_LAMBDA, ALPHA_PHI, ALPHA_W, BATCH_SIZE, LR, NETS, Experiment, loss_of
from sparsenn.papers.spectral.stack import train_together
from sparsenn.penalties import spectral
from sparsenn.prune import node_relevance
from sparsenn.training.logging import progress_for
from sparsenn.training.table import Row, growing

CUT = 0.05  # of the largest relevance; what is below counts as zero
POINTS = 101  # of a sorted curve of path magnitudes
_TOGETHER = 10
_DENSE = 60  # up to here the pruning curve has every number of nodes
_KEY = ("net", "h", "hidden2", "epochs", "second_layer", "trial")


def collect(
    name: str,
    experiment: Experiment,
    out: str | Path,
    *,
    widths: Sequence[int] | None = None,
    nets: Sequence[str] = NETS,
    trials: int | None = None,
    epochs: int | None = None,
    hidden2: int | None = None,
    second_layer: bool = False,
    source: str | None = None,
    quiet: bool = True,
) -> list[Row]:
    """Train what the table of an experiment lacks, and return the rows that were asked for.

    Args:
        name: the table is ``<name>.jsonl``.
        experiment: the task and its students.
        out: the folder.
        widths: widths h of the first hidden layer; None for the experiment's.
        nets: ``spectral``, ``direct`` or both.
        trials: students of each width and kind; None for the experiment's.
        epochs: passes over the samples; None for the experiment's.
        hidden2: width of the second hidden layer; None for the experiment's.
        second_layer: penalise the second layer too, as the paper's equations do and its code does not.
        source: a data root, or the file of features.
        quiet: print no line a trial.

    Raises:
        ValueError: for a setting out of range.
        DataError: if a data file is missing or damaged.
        RunFolderError: if another process adds to the table, or something can't be written.
        TrainingDiverged: if a loss is no longer finite.
    """
    widths, trials = tuple(widths or experiment.widths), experiment.trials if trials is None else trials
    epochs = experiment.epochs if epochs is None else epochs
    hidden2 = experiment.hidden2 if hidden2 is None else hidden2
    for option, value in (("widths", min(widths)), ("trials", trials), ("epochs", epochs), ("hidden2", hidden2)):
        if value < 1:
            raise ValueError(f"{name}: {option} is {value}; it takes 1 or more")
    data = experiment.load(source)
    given: Row = {"hidden2": hidden2, "epochs": epochs, "second_layer": second_layer}
    wanted = [{"net": n, "h": h, **given, "trial": t} for h in widths for n in nets for t in range(trials)]
    with growing(Path(out) / f"{name}.jsonl", _KEY) as table:
        while todo := list(table.missing(wanted)):
            group = [row for row in todo if row["net"] == todo[0]["net"] and row["h"] == todo[0]["h"]][:_TOGETHER]
            own = _train(name, experiment, data, group, Path(out) / f"{name}.checkpoint.pt", quiet)
            for row in own:
                table.add(row)
            if not quiet:
                loss = sum(row["test_loss"] for row in own) / len(own)
                done = f"{len(wanted) - len(todo) + len(own)}/{len(wanted)}"
                print(
                    f"{done}  {name}, {own[0]['net']}, h = {own[0]['h']}: mean test loss {loss:.4f}",
                    file=sys.stderr,
                    flush=True,
                )
    return table.rows_of(wanted)


def _train(name: str, experiment: Experiment, data: TabularData, group: list[Row], checkpoint: Path, quiet: bool) -> list[Row]:
    first = group[0]
    kind, seeds = first["net"], [row["trial"] for row in group]
    nets = [experiment.make(kind, data, first["h"], first["hidden2"], trial) for trial in seeds]
    layers = sorted({*experiment.penalised, *([_linear(nets[0])[1]] if first["second_layer"] else [])})
    alphas = [experiment.strength * alpha for alpha in (ALPHA_LAMBDA, ALPHA_PHI, ALPHA_W)]
    penalty = partial(spectral, alpha_lambda=alphas[0], alpha_phi=alphas[1], alpha_w=alphas[2], layers=layers)
    label = f"{name}, {kind}, widths {first['h']} and {first['hidden2']}, {first['epochs']} epochs, trials "
    label += ", ".join(map(str, seeds))
    if first["second_layer"]:
        label += ", both penalised"
    with progress_for(quiet=quiet) as progress:
        train_together(
            nets,
            data.train_inputs,
            data.train_targets,
            loss=loss_of,
            penalty=penalty,
            epochs=first["epochs"],
            seeds=seeds,
            checkpoint=checkpoint,
            label=label,
            progress=progress,
            lr=LR[kind],
            batch_size=BATCH_SIZE[kind],
        )
    alpha = dict(zip(("alpha_lambda", "alpha_phi", "alpha_w"), alphas, strict=True))
    common = {"lr": LR[kind], "batch_size": BATCH_SIZE[kind], **alpha, "samples": len(data.train_inputs)}
    return [{**row, **common, **measure(net, data)} for row, net in zip(group, nets, strict=True)]


@torch.no_grad()
def measure(net: nn.Sequential, data: TabularData) -> Row:
    """The figures of a trained student: losses, relevances from the largest on, the pruning curve, path magnitudes.

    A point of ``pruned`` is the number of nodes that are left in the first hidden layer, the most relevant ones, and by how
    much the test loss then exceeds that of the whole net. ``paths`` leaves out the nodes below ``CUT`` of a spectral student.
    """
    net.eval()
    relevance = node_relevance(net[0])
    order = relevance.argsort(descending=True)
    index = int(_linear(net)[1])
    hidden, tail = net[:index](data.test_inputs), net[index:]

    def outputs_with(kept: int) -> Tensor:
        mask = torch.zeros(len(order))
        mask[order[:kept]] = 1.0
        return tail(hidden * mask)

    outputs, targets = outputs_with(len(order)), data.test_targets
    whole = float(loss_of(outputs, targets))
    own = relevance >= CUT * relevance.max() if hasattr(net[0], "phi") else relevance >= 0
    paths = path_magnitudes(net[0].weight[own], net[index].weight[:, own], POINTS)  # type: ignore[index]
    return {
        "test_loss": _short(whole, 6),
        "test_accuracy": None if targets.is_floating_point() else float((outputs.argmax(1) == targets).double().mean()),
        "relevances": [_short(r, 3) for r in relevance[order].tolist()],
        "pruned": [(kept, _short(float(loss_of(outputs_with(kept), targets)) - whole, 4)) for kept in _sizes(len(order))],
        "paths": [_short(p, 4) for p in paths.tolist()],
    }


def _linear(net: nn.Sequential) -> list[str]:
    """The names of the layers that have weights, in their order."""
    return [name for name, layer in net.named_children() if isinstance(layer, nn.Linear)]


def _sizes(width: int) -> list[int]:
    """Every number of nodes up to 60, then about twenty more."""
    far = {round(_DENSE * (width / _DENSE) ** (i / 20)) for i in range(21)} if width > _DENSE else set()
    return sorted({*range(min(width, _DENSE) + 1), *far})


def _short(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def core_sizes(rows: Sequence[Row]) -> list[int]:
    """For each row the number of nodes with a relevance of at least ``CUT`` of the largest in all rows."""
    largest = max((row["relevances"][0] for row in rows), default=0.0)
    return [sum(r >= CUT * largest for r in row["relevances"]) for row in rows]


def select(rows: Sequence[Row], **values: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row[column] == value for column, value in values.items())]
