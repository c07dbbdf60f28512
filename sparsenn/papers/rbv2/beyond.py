"""Beside the paper: the norm on real data, next to weight decay, proximal L1 and factorization, and the nets that are left."""

from __future__ import annotations

import copy
import csv
import functools
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from sparsenn import data as datasets
from sparsenn import metrics, penalties
from sparsenn.data import TabularData, require_extra
from sparsenn.metrics.spectrum import exact_zeros
from sparsenn.nn import RidgeNet
from sparsenn.nn.convert import collapse
from sparsenn.optim import FactorizedSGD, ProxSGD, param_groups, ridge_proximal
from sparsenn.papers.spread import mean_std
from sparsenn.prune import compact
from sparsenn.training.batches import batch_count, batches, epoch_order
from sparsenn.training.errors import TrainingDiverged
from sparsenn.training.figures import new_figure, png
from sparsenn.training.files import write_atomic
from sparsenn.training.schedules import make_scheduler
from sparsenn.training.serving import bench_model
from sparsenn.training.table import Row, Table, growing

_KEY = ("task", "method", "lam", "seed", "epochs", "width")
_BATCH_SIZE = 256
_IMAGES = 10_000  # of MNIST's training set, the first ones
_FUNCTIONAL_WIDTH = 16  # d between the two blocks, as in the paper
SERVED = (1, 64, 1024)  # batches at which the smaller net is timed


@dataclass(frozen=True)
class Task:
    """A data set and the ridge nets that learn it.

    Attributes:
        title: what stands above a picture.
        load: takes a data root, gives the samples.
        outputs: D.
        epochs: passes over the samples.
        lr: of Adam, of `ProxSGD` and of `FactorizedSGD`.
        loss: of outputs and targets.
        error: likewise, of the test samples.
        says: what the error is.
    """

    title: str
    load: Callable[[str | None], TabularData]
    outputs: int
    epochs: int
    lr: tuple[float, float, float]
    loss: Callable[[Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]
    says: str


def _mnist(root: str | None) -> TabularData:
    return TabularData.of_images(datasets.load("mnist", root, download=True), _IMAGES)


def _mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) != targets).double().mean()


TASKS = {
    "california-housing": Task(
        "California Housing",
        lambda root: datasets.load_california_housing(root, download_missing=True),
        1,
        10,
        (3e-3, 0.03, 0.1),
        functional.mse_loss,
        functional.mse_loss,
        "test MSE",
    ),
    "mnist": Task("MNIST, 10 000 images", _mnist, 10, 10, (3e-3, 0.2, 0.5), functional.cross_entropy, _mistakes, "test error"),
}
_STRONG, _WEAK = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# λ, and the color of the method
METHODS: dict[str, tuple[tuple[float, ...], str]] = {
    "norm, proximal": (_STRONG, "#8c2d5a"),
    "norm in the loss": (_STRONG, "#1f5fa8"),
    "weight decay": (_STRONG, "#d08a1d"),
    "ProxSGD": (_WEAK, "#4f7f3f"),
    "FactorizedSGD": (_WEAK, "#2a9d9d"),
    "none": ((0.0,), "#9a9a9a"),
}


def reproduce(
    out: str | Path = "runs/rbv2",
    *,
    seeds: int = 3,
    epochs: int | None = None,
    width: int = 128,
    tasks: Sequence[str] = tuple(TASKS),
    methods: Sequence[str] = tuple(METHODS),
    tolerance: float = 1.25,
    data_root: str | None = None,
    quiet: bool = True,
) -> Path:
    """Train ridge nets of two blocks on real data by every method and strength; write a table as JSON lines and CSV, a picture.

    The methods: the norm by proximal steps in its path form, and as Equation 2 in the loss, both under Adam; squared L2 on all
    parameters under Adam; L1 on weights by `ProxSGD`, and on all parameters by `FactorizedSGD` of depth 2; and none, under
    Adam. Learning rates fall along a cosine. A trained net is balanced, its weights up to 1e-3 become 0, as the paper counts,
    and its dead neurons are cleared; its error is reported before and after. `prune.compact` then makes it smaller. What that
    gains in speed is measured with `training.serving.bench_model` for one net of each method: of the first seed the smallest
    one whose error is at most ``tolerance`` times that of the net without a penalty.

    Args:
        out: the folder; runs that its table has are not computed again.
        seeds: nets of each method and strength.
        epochs: passes over the samples; None for the task's.
        width: K, neurons of each of the two blocks.
        tasks: some of ``TASKS``.
        methods: some of ``METHODS``; the one without a penalty, which the others are measured by, comes along.
        tolerance: that of the nets whose speed is measured.
        data_root: as for ``sparsenn train``.
        quiet: print no line a run.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range.
        DataError: if a data file is missing or damaged.
        RunFolderError: if another process adds to the table, or something can't be written.
    """
    for option, given, known in (("tasks", tasks, TASKS), ("methods", methods, METHODS)):
        if not given or not set(given) <= known.keys():
            raise ValueError(f"beyond: {option} are {list(given)}; it takes some of {', '.join(known)}")
    for option, value in (("seeds", seeds), ("width", width), ("epochs", epochs)):
        if value is not None and value < 1:
            raise ValueError(f"beyond: {option} is {value}; it takes 1 or more")
    if not tolerance >= 1:
        raise ValueError(f"beyond: tolerance is {tolerance!r}; it takes a number >= 1")
    require_extra("matplotlib", "drawing pictures")
    wanted: list[Row] = [
        {"task": name, "method": method, "lam": lam, "seed": seed, "epochs": epochs or TASKS[name].epochs, "width": width}
        for seed in range(seeds)
        for name in tasks
        for method, (lams, _) in METHODS.items()
        if method in (*methods, "none")
        for lam in lams
    ]
    load = functools.cache(lambda name: TASKS[name].load(data_root))
    with growing(Path(out) / "beyond.jsonl", _KEY) as table:
        for row in table.missing(wanted):
            table.add({**row, **_measure(TASKS[row["task"]], load(row["task"]), row)})
            if not quiet:
                print(_line(table.rows[-1]), file=sys.stderr, flush=True)
    rows = table.rows_of(wanted)
    with growing(Path(out) / "beyond_speed.jsonl", _KEY) as speeds:
        for row in speeds.missing(_to_be_served(rows, tolerance)):
            speeds.add({**{column: row[column] for column in _KEY}, **_serve(TASKS[row["task"]], load(row["task"]), row)})
    write_atomic(Path(out) / "beyond.csv", _summary(rows, speeds))
    picture = Path(out) / "beyond.png"
    write_atomic(picture, _draw(rows))
    return picture


def train(task: Task, data: TabularData, row: Row) -> RidgeNet:
    """The net of a row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(row["seed"])
        net = RidgeNet(data.in_features, task.outputs, width=row["width"], functional_width=_FUNCTIONAL_WIDTH)
    optimizer = _optimizer(task, net, row)
    norm = penalties.rbv2 if row["method"] == "norm in the loss" else None
    scheduler = make_scheduler(optimizer, "cosine", row["epochs"] * batch_count(len(data.train_inputs), _BATCH_SIZE))
    for epoch in range(row["epochs"]):
        order = epoch_order(len(data.train_inputs), row["seed"], epoch)
        for inputs, targets in batches(data.train_inputs, data.train_targets, order, _BATCH_SIZE):
            optimizer.zero_grad()
            loss = task.loss(net(inputs), targets)
            (loss if norm is None else loss + row["lam"] * norm(net)).backward()
            optimizer.step()
            scheduler.step()
        if not loss.isfinite():
            message = f"beyond: the loss of {row['method']} at λ = {row['lam']:g} is not a finite number in epoch {epoch + 1}"
            raise TrainingDiverged(message, epoch + 1, None)
    return net


def _optimizer(task: Task, net: RidgeNet, row: Row) -> Optimizer:
    method, lam, (adam, prox, factorized) = row["method"], row["lam"], task.lr
    if method == "ProxSGD":
        return ProxSGD(param_groups(net, lam=lam), prox, momentum=0.9)
    if method == "FactorizedSGD":
        generator = torch.Generator().manual_seed(row["seed"])
        return FactorizedSGD(net.parameters(), factorized, depth=2, lam=lam, momentum=0.9, generator=generator)
    if method == "norm, proximal":
        return ridge_proximal(net, lambda groups: torch.optim.Adam(groups, adam, fused=True), lam)
    decay = 2 * lam if method == "weight decay" else 0.0  # the gradient of λ Σ p²
    return torch.optim.Adam(net.parameters(), adam, weight_decay=decay, fused=True)


def cleared(net: RidgeNet) -> RidgeNet:
    """A copy in which every neuron is balanced, what counts as zero is zero, and the dead are empty."""
    return collapse(copy.deepcopy(net).balance_(), metrics.NEGLIGIBLE).balance_()


@torch.no_grad()
def _error(task: Task, data: TabularData, net: nn.Module) -> float:
    return float(task.error(net(data.test_inputs), data.test_targets))


def _measure(task: Task, data: TabularData, row: Row) -> Row:
    net = train(task, data, row)
    small = cleared(net)
    report = metrics.ridge_report(small, threshold=0.0)
    return {
        "error": _error(task, data, net),
        "error_cleared": _error(task, data, small),
        "exact_zeros": exact_zeros(net),
        "zeros_cleared": exact_zeros(small),
        "alive": [layer.alive for layer in report.layers],
        "rank": metrics.effective_rank(torch.tensor(report.layers[1].singular_values)),
        "parameters": _count(net),
        "parameters_compact": _count(compact(small, data.test_inputs[:2])),
    }


def _serve(task: Task, data: TabularData, row: Row) -> Row:
    """How much quicker the net of a row is after compaction, and under the sparse runtime, by batch."""
    served = bench_model(cleared(train(task, data, row)), (data.in_features,), SERVED)
    pairs = zip(served.seconds["torch"], served.seconds["compacted"], strict=True)
    return {
        "compact_faster": [float(f"{whole / less:.3g}") for whole, less in pairs],
        "runtime_faster": [float(f"{served.speed_up(batch):.3g}") for batch in SERVED],
    }


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _line(row: Row) -> str:
    alive = " + ".join(map(str, row["alive"]))
    return (
        f"{row['task']}, {row['method']}, λ = {row['lam']:g}, seed {row['seed']}: error {row['error']:.4f}, cleared "
        f"{row['error_cleared']:.4f}, {alive} neurons, rank {row['rank']}, {row['parameters_compact']} parameters"
    )


_FIGURES: dict[str, Callable[[Row], float]] = {
    "error": lambda row: row["error"],
    "error_cleared": lambda row: row["error_cleared"],
    "exact_zeros": lambda row: row["exact_zeros"],
    "zeros_cleared": lambda row: row["zeros_cleared"],
    "alive": lambda row: sum(row["alive"]),
    "rank": lambda row: row["rank"],
    "parameters_compact": lambda row: row["parameters_compact"],
}


def _cells(rows: Sequence[Row]) -> Iterator[tuple[str, str, float, list[Row]]]:
    """The seeds of each task, method and strength."""
    for cell in dict.fromkeys((row["task"], row["method"], row["lam"]) for row in rows):
        yield *cell, [row for row in rows if (row["task"], row["method"], row["lam"]) == cell]


def _mean_std(rows: Sequence[Row], figure: str) -> tuple[float, float]:
    return mean_std([_FIGURES[figure](row) for row in rows])


def _summary(rows: Sequence[Row], speeds: Table) -> bytes:
    """One line for each task, method and strength, with the gain in speed where it was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [f"{name}_{kind}" for name in _FIGURES for kind in ("mean", "std")]
    gains = [f"{what}_faster_batch_{batch}" for what in ("compact", "runtime") for batch in SERVED]
    writer.writerow(["task", "method", "lam", "seeds", *head, *gains])
    for task, method, lam, own in _cells(rows):
        figures = [f"{value:.4g}" for name in _FIGURES for value in _mean_std(own, name)]
        served = ([*row["compact_faster"], *row["runtime_faster"]] for row in speeds.rows_of(own))
        found = next(served, [""] * len(gains))
        writer.writerow([task, method, lam, len(own), *figures, *found])
    return text.getvalue().encode()


def _to_be_served(rows: Sequence[Row], tolerance: float) -> Iterator[Row]:
    """Of each task and method the smallest net of the first seed whose error is near that of the net without a penalty."""
    for task, method in dict.fromkeys((row["task"], row["method"]) for row in rows):
        own = [row for row in rows if row["task"] == task and row["seed"] == 0]
        bound = tolerance * min(row["error"] for row in own if row["method"] == "none")
        good = [row for row in own if row["method"] == method and row["error_cleared"] <= bound]
        if good:
            yield min(good, key=lambda row: row["parameters_compact"])


def _draw(rows: Sequence[Row]) -> bytes:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    shown = {"error_cleared": "", "alive": "living neurons", "rank": "rank between the blocks"}
    figure = new_figure(width=15.0, height=3.6 * len(tasks))
    panels: Any = figure.subplots(len(tasks), len(shown) + 1, squeeze=False)
    for line, name in zip(panels, tasks, strict=True):
        for axes, label in zip(line, shown.values(), strict=False):
            axes.set(xscale="log", xlabel="λ", ylabel=label or TASKS[name].says)
        line[-1].set(xscale="log", xlabel="parameters after compaction", ylabel=TASKS[name].says)
        for method, (_, color) in METHODS.items():
            own = [(lam, cell) for task, kind, lam, cell in _cells(rows) if (task, kind) == (name, method)]
            if not own:
                continue
            for axes, column in zip(line, shown, strict=False):
                means, stds = zip(*(_mean_std(cell, column) for _, cell in own), strict=True)
                if method == "none":
                    axes.axhline(means[0], color=color, ls=":", label="no penalty")
                else:
                    axes.errorbar([lam for lam, _ in own], means, stds, color=color, marker="o", ms=3, label=method)
            points = [(_mean_std(cell, "parameters_compact")[0], _mean_std(cell, "error_cleared")[0]) for _, cell in own]
            line[-1].plot(*zip(*points, strict=True), "o-", color=color, ms=4)
        line[0].set_title(TASKS[name].title, fontsize=10)
        none = next(_mean_std(cell, "error")[0] for task, kind, _, cell in _cells(rows) if (task, kind) == (name, "none"))
        for axes in (line[0], line[-1]):
            axes.set_ylim(0.8 * none, 2.5 * none)
        for axes in line:
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize=7)
    return png(figure)
