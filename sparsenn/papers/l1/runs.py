"""Training the runs of an experiment as stacks, and what is measured of each."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsenn import __version__
from sparsenn.data import require_extra, taught
from sparsenn.metrics import nonzero_counts, support_recovery, teacher_distance
from sparsenn.metrics.recovery import weighted_layers
from sparsenn.models import build_student, teacher
from sparsenn.papers.l1.settings import BATCH_SIZE, EXPERIMENTS, KEY, LAM, PATIENCE, jobs_of
from sparsenn.training.files import write_atomic
from sparsenn.training.folder import alone_in
from sparsenn.training.session import StopSignal
from sparsenn.training.stacked import Run, Stack
from sparsenn.training.stacked.progress import watch_for
from sparsenn.training.stacked.run import DIVERGED
from sparsenn.training.stacked.runner import Job, run_jobs
from sparsenn.training.table import Row, Table

Data = tuple[Tensor, Tensor]
_KEYS = "keys.json"
_AT_ONCE = 8192  # samples: 8 MB of signals in the widest layer of a student, where 100,000 are 100 MB
_KEPT = 1000  # a student with no more weights has them in its row; a larger one in a file beside the table


def table_of(experiment: int, folder: Path) -> Table:
    """The table of an experiment in a folder."""
    return Table(folder / f"exp{experiment}.jsonl", KEY)


def train(keys: Sequence[Row], folder: Path, *, weights: bool = False, quiet: bool = True) -> list[Row]:
    """Train what the tables in ``folder`` lack of these runs, and return the rows of all, in the order of ``keys``.

    With ``weights`` a run whose row is there and whose weights are not is trained again.

    Raises:
        RunFolderError: if another process trains the experiment there, or something can't be written.
        TrainingInterrupted: after a signal, once the state is written.
    """
    require_extra("scipy.optimize", "comparing students with their teachers")
    watch = watch_for(quiet=quiet)
    rows: list[Row] = []
    try:
        with StopSignal() as stop:
            for experiment in dict.fromkeys(key["experiment"] for key in keys):
                own = [key for key in keys if key["experiment"] == experiment]
                states = folder / f"exp{experiment}.state"
                with alone_in(states):
                    table = table_of(experiment, folder)
                    if weights:
                        _drop(without_weights(table.rows_of(own), folder), table)
                    for part, state in _parts(own, table, states):
                        jobs = [_job(group, folder) for group in jobs_of(part)]
                        run_jobs(jobs, table, state, watch=watch, stop=stop)
                        shutil.rmtree(state)
                rows += table.rows_of(own)
    finally:
        watch.close()
    return rows


def _parts(keys: Sequence[Row], table: Table, folder: Path) -> Iterator[tuple[list[Row], Path]]:
    """Lists of runs to be trained, each with a folder for its state: those that were begun, then what the table lacks."""
    wanted = {json.dumps(key) for key in keys}
    for begun in sorted(folder.glob(f"*/{_KEYS}")):
        part = json.loads(begun.read_text(encoding="utf-8"))
        if {json.dumps(key) for key in part} <= wanted:
            yield part, begun.parent
    left = list(table.missing(keys))
    if left:
        text = json.dumps(left)
        state = folder / hashlib.sha256(text.encode()).hexdigest()[:8]
        state.mkdir(parents=True, exist_ok=True)
        write_atomic(state / _KEYS, text.encode())
        yield left, state
    if not any(folder.iterdir()):
        folder.rmdir()


def _drop(rows: Sequence[Row], table: Table) -> None:
    if rows:
        table.rows = [row for row in table.rows if row not in rows]
        write_atomic(table.path, "".join(f"{json.dumps(row)}\n" for row in table.rows).encode())


def without_weights(rows: Sequence[Row], folder: Path) -> list[Row]:
    """Those of the finished runs whose weights are neither in their row nor in a file: a table was copied without the files."""
    return [row for row in rows if row["status"] != DIVERGED and "values" not in row and not weight_file(row, folder).exists()]


def _job(keys: list[Row], folder: Path) -> Job:
    first = keys[0]
    own = EXPERIMENTS[first["experiment"]]
    names = [f"experiment {first['experiment']}"]
    if not own.convolutional:
        names += [
            first["method"],
            f"{first['teacher_activation']} to {first['student_activation']}",
            f"scale {first['scale']:g}",
        ]
    data: list[Data] = []

    def build() -> Stack:
        stack, data[:] = stack_of(keys)
        return stack

    def figures(stack: Stack, index: int) -> Row:
        key = keys[index]
        return _figures(key, stack, index, data[stack.runs[index].data], folder)

    work = sum(float(key["max_epochs"]) * key["size"] for key in keys)
    return Job(", ".join(names), keys, build, figures, work)


def stack_of(keys: Sequence[Row]) -> tuple[Stack, list[Data]]:
    """Runs of one experiment and size as a stack, and its data sets."""
    own, size = EXPERIMENTS[keys[0]["experiment"]], keys[0]["size"]
    sets = list(dict.fromkeys((key["teacher_activation"], key["seed"]) for key in keys))
    data = [taught(teacher(own.teacher, activation), size, seed=seed) for activation, seed in sets]
    modules = [build_student(own.student, key["student_activation"], scale=key["scale"], seed=key["seed"]) for key in keys]
    runs = [_run(key, sets.index((key["teacher_activation"], key["seed"]))) for key in keys]
    limits = [key["max_epochs"] for key in keys]
    return Stack(modules, runs, data, batch_size=BATCH_SIZE, patience=PATIENCE, max_epochs=limits), data


def _run(key: Row, data: int) -> Run:
    method = key["method"]
    lr = EXPERIMENTS[key["experiment"]].learning_rate(method)
    return Run(seed=key["seed"], lr=lr, data=data, **settings_of(method, LAM))


def settings_of(method: str, lam: float) -> dict[str, Any]:
    """Optimizer and penalty of a ``Run`` by one of ``settings.METHODS``.

    L2 is there twice, as in the public code: λ Σw² in the loss, and a weight decay of λ in the optimizer; 1.5 λ Σw² together.
    """
    return {
        "l1": {"lam": lam, "penalty": "l1"},
        "l2": {"lam": lam, "penalty": "l2", "weight_decay": lam},
        "none": {},
        "prox": {"lam": lam, "optimizer": "prox"},
    }[method]


def _figures(key: Row, stack: Stack, index: int, data: Data, folder: Path) -> Row:
    outcome, own = stack.outcome(index), EXPERIMENTS[key["experiment"]]
    row: Row = {
        "lr": outcome.run.lr,
        "lam": outcome.run.lam,
        "status": outcome.status,
        "epochs": outcome.epochs,
        "engine": stack.engine,
        "version": __version__,
    }
    if outcome.status == DIVERGED:
        return row
    net = stack.module(index)
    source = teacher(own.teacher, key["teacher_activation"])
    return {
        **row,
        "loss": outcome.best_loss,
        "last_loss": outcome.loss,
        "mse": mean_square(net, data),
        **weight_figures(net, own.perfect),
        **recovery_figures(source, net, key["teacher_activation"], key["student_activation"]),
        **_keep_weights(net, key, folder),
    }


@torch.no_grad()
def mean_square(net: nn.Module, data: Data) -> float:
    """The mean squared error of a network over all samples."""
    x, y = data
    parts = zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
    return float(sum((net(x_part) - y_part).double().square().sum() for x_part, y_part in parts)) / y.numel()


def weight_figures(net: nn.Module, perfect: tuple[int, ...]) -> Row:
    """Weights of each layer, those that are 0 and those below 1e-4, and whether no more are left than must be."""
    sizes = [layer.weight.numel() for layer in weighted_layers(net)]
    kept, exact = nonzero_counts(net), nonzero_counts(net, 0)
    return {
        "weights": sizes,
        "nonzero": list(kept),
        "exact_nonzero": list(exact),
        "sparsity": mean_sparsity(sizes, kept),
        "exact_sparsity": mean_sparsity(sizes, exact),
        "perfect": kept == perfect if perfect else None,
    }


def mean_sparsity(sizes: Sequence[int], kept: Sequence[int]) -> float:
    """The mean over the layers of the share of zeros: the paper's average sparsity, in which small layers count as much."""
    return sum(1 - n / size for n, size in zip(kept, sizes, strict=True)) / len(sizes)


def recovery_figures(source: nn.Module, net: nn.Module, teacher_activation: str, student_activation: str) -> Row:
    """How far the student is from its teacher, and which of the teacher's connections it has."""
    odd = teacher_activation == student_activation == "tanh"
    support = support_recovery(source, net)
    return {
        "distance": teacher_distance(source, net, absolute=odd),
        "precision": support.precision,
        "recall": support.recall,
    }


def _keep_weights(net: nn.Module, key: Row, folder: Path) -> Row:
    weights = {name: p.detach() for name, p in net.named_parameters()}
    if sum(w.numel() for w in weights.values()) <= _KEPT:
        return {"values": [[float(f"{v:.7g}") for v in w.flatten().tolist()] for w in weights.values()]}
    path = weight_file(key, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return {}


def weight_file(key: Row, folder: Path) -> Path:
    """Where the weights of a large student are kept."""
    names = [f"{key[column]:g}" if column == "scale" else str(key[column]) for column in KEY[1:]]
    return folder / f"exp{key['experiment']}.weights" / f"{'-'.join(names)}.safetensors"


def kept_weights(row: Row, folder: Path) -> list[Tensor] | None:
    """The weights of a finished run, one tensor a layer in the shape of the module's; None of a diverged one."""
    if row["status"] == DIVERGED:
        return None
    own = EXPERIMENTS[row["experiment"]]
    net = build_student(own.student, row["student_activation"], seed=0)
    shapes = [p.shape for p in net.parameters()]
    if "values" in row:
        return [torch.tensor(values).view(shape) for values, shape in zip(row["values"], shapes, strict=True)]
    stored: dict[str, Any] = load_file(weight_file(row, folder))
    return [stored[name] for name, _ in net.named_parameters()]
