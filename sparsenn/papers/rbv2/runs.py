"""Trained nets, one row each, in a table that all figures of the paper share, with their weights beside it."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from sparsenn.papers.rbv2.experiment import Choices, make_net, summary
from sparsenn.papers.rbv2.training import train
from sparsenn.training.logging import progress_for
from sparsenn.training.table import Row, growing

_CELL = ("net", "penalty", "lam", "epochs")  # seeds of one are trained together
KEY = ("net", "penalty", "lam", "seed", "epochs", *(field.name for field in fields(Choices)))
_TOGETHER = 5


def collect(folder: Path, wanted: list[Row], choices: Choices, *, quiet: bool) -> list[Row]:
    """Train what the folder's table lacks, and give the wanted rows, in their order.

    Runs that differ in nothing but their seed train together. A killed one goes on from its checkpoint.

    Raises:
        RunFolderError: if another process adds to the table, or something can't be written.
    """
    named = [{**row, **asdict(choices)} for row in wanted]
    with growing(folder / "runs.jsonl", KEY) as table:
        while todo := list(table.missing(named)):
            group = [row for row in todo if all(row[k] == todo[0][k] for k in _CELL)][:_TOGETHER]
            for row in _train(folder, group, choices, quiet=quiet):
                table.add(row)
                if not quiet:
                    figures = f"MSE {row['mse']:.2g}, {row['above']:.3f} above 1e-3, rank {row['rank']}"
                    print(f"{describe(row)}: {figures}", file=sys.stderr, flush=True)
            _checkpoint(folder, group).unlink(missing_ok=True)
    return table.rows_of(named)


def _train(folder: Path, group: list[Row], choices: Choices, *, quiet: bool) -> list[Row]:
    first, seeds = group[0], [row["seed"] for row in group]
    checkpoint = _checkpoint(folder, group)
    checkpoint.parent.mkdir(exist_ok=True)
    with progress_for(quiet=quiet) as progress:
        cell = first["net"], first["penalty"], first["lam"]
        trained = train(*cell, seeds, first["epochs"], choices, checkpoint=checkpoint, progress=progress)
    for row, (net, _) in zip(group, trained, strict=True):
        save_net(folder, row, net)
    return [
        {**row, "curve": curve, "above": curve[-1][1], "mse": curve[-1][2], **summary(net)}
        for row, (net, curve) in zip(group, trained, strict=True)
    ]


def _checkpoint(folder: Path, group: list[Row]) -> Path:
    others = "".join(f"-{row['seed']}" for row in group[1:])
    return folder / "checkpoints" / f"{name_of(group[0])}-with{others}.pt"


def describe(row: Row) -> str:
    """A run in words."""
    strength = "" if row["penalty"] == "none" else f", λ = {row['lam']:g}"
    return f"{row['net']}, {row['penalty']}{strength}, seed {row['seed']}"


def name_of(row: Row) -> str:
    """What the files of a run are called."""
    return "-".join(str(row[column]).replace(" ", "_") for column in KEY)


def weights_file(folder: Path, row: Row) -> Path:
    """Where a run leaves its final weights."""
    return folder / "weights" / f"{name_of(row)}.safetensors"


def save_net(folder: Path, row: Row, net: nn.Module) -> None:
    """Leave the weights of a run beside the table."""
    path = weights_file(folder, row)
    path.parent.mkdir(exist_ok=True)
    save_file({name: value.clone() for name, value in net.state_dict().items()}, path)


def load_net(folder: Path, row: Row, choices: Choices) -> nn.Module:
    """The net of a finished run.

    Raises:
        ValueError: if its weights are gone.
    """
    path = weights_file(folder, row)
    if not path.exists():
        raise ValueError(f"{path}: the weights of a run are gone; remove its line from runs.jsonl to train it again")
    net = make_net(row["net"], row["seed"], choices)
    net.load_state_dict(load_file(path))
    return net
