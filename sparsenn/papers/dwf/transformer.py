"""Beside the paper: a small transformer made sparse by every means of this package, and what is left of it."""

from __future__ import annotations

import copy
import functools
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from sparsenn import data as datasets
from sparsenn import models, penalties, prune
from sparsenn.data import ImageData, require_extra
from sparsenn.metrics import sparsity_report
from sparsenn.nn import RidgeBlock
from sparsenn.nn.convert import collapse, factorize
from sparsenn.nn.spectral import SpectralLayer
from sparsenn.nn.spectralize import spectralize
from sparsenn.optim import FactorizedSGD, ProxSGD, ridge_proximal
from sparsenn.papers.dwf.curves import Point, accuracy_at, compression_at, living
from sparsenn.papers.dwf.figures import accuracy_axes, panels
from sparsenn.papers.spread import mean_std
from sparsenn.training.batches import batch_count, batches, epoch_order
from sparsenn.training.errors import TrainingDiverged
from sparsenn.training.evaluate import evaluate, loss_of
from sparsenn.training.figures import png
from sparsenn.training.files import write_atomic
from sparsenn.training.schedules import make_scheduler
from sparsenn.training.table import Row, Table, growing

MODEL = "row-transformer"
_KEY = ("method", "strength", "seed", "epochs")
_BATCH_SIZE = 64
_NOISE = 0.2  # standard deviation of the noise on training images, as for other nets on the digits
_CUT = 1e-3  # a weight of at most this magnitude becomes 0, whatever the method
_DEAD = 0.05  # a node whose relevance is at most this share of its layer's largest is dead, for spectral layers
_LR = 0.05  # of SGD on weights
_ADAM = 2e-3
_COLUMNS = (4.0, 8.0, 16.0, 32.0, 64.0)  # compressions of the table
_TOLERANCE = 0.02

Penalty = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Method:
    """One way to make a trained net sparse.

    Attributes:
        strengths: λ, or the compression for pruning.
        color: in the picture.
        prepare: changes the net and makes its optimizer.
        penalty: a term of the loss, to be multiplied by the strength; None without.
    """

    strengths: tuple[float, ...]
    color: str
    prepare: Callable[[nn.Module, float, int], Optimizer]
    penalty: Penalty | None = None


def _dense(net: nn.Module, strength: float, seed: int) -> Optimizer:
    return SGD(net.parameters(), _LR, momentum=0.9)


def _magnitude(net: nn.Module, compression: float, seed: int) -> Optimizer:
    prune.magnitude(net, compression=compression, exclude=())
    return _dense(net, compression, seed)


def _proximal(net: nn.Module, lam: float, seed: int) -> Optimizer:
    return ProxSGD(net.parameters(), _LR, lam=lam, momentum=0.9)


def _factorized(depth: int, lr: float) -> Callable[[nn.Module, float, int], Optimizer]:
    def prepare(net: nn.Module, lam: float, seed: int) -> Optimizer:
        generator = torch.Generator().manual_seed(seed)
        return FactorizedSGD(net.parameters(), lr, depth=depth, lam=lam, momentum=0.9, generator=generator)

    return prepare


def _shared(net: nn.Module, lam: float, seed: int) -> Optimizer:
    """Rows of every matrix but the last are groups of depth 2, which L2 on factors makes a group lasso."""
    factorize(net, 2, include=nn.Linear, exclude="head.*", groups="rows")
    factors = [p for name, p in net.named_parameters() if ".parametrizations." in name]
    others = [p for name, p in net.named_parameters() if ".parametrizations." not in name]
    groups: list[dict[str, Any]] = [{"params": factors, "weight_decay": lam}, {"params": others}]
    return SGD(groups, _LR, momentum=0.9)


def _spectral(net: nn.Module, alpha: float, seed: int) -> Optimizer:
    spectralize(net, exclude="head")
    return Adam(net.parameters(), _ADAM)


def _spectral_penalty(net: nn.Module) -> Tensor:
    names = [name for name, layer in net.named_modules() if isinstance(layer, SpectralLayer)]
    return penalties.spectral(net, alpha_lambda=1.0, alpha_phi=1.0, layers=names)


def _norm(net: nn.Module, lam: float, seed: int) -> Optimizer:
    return ridge_proximal(net, lambda groups: Adam(groups, _ADAM), lam)


def _norm_and_l1(net: nn.Module, lam: float, seed: int) -> Optimizer:
    def base(groups: list[dict[str, Any]]) -> Optimizer:
        groups[-1]["penalty"] = penalties.L1(lam)  # all that is in no ridge block
        return Adam(groups, _ADAM)

    return ridge_proximal(net, base, lam)


METHODS: dict[str, Method] = {
    "dense": Method((0.0,), "black", _dense),
    "magnitude": Method((4.0, 8.0, 16.0, 32.0), "#d08a1d", _magnitude),
    "D = 2": Method((2e-3, 3e-3, 4e-3), "#1f5fa8", _factorized(2, 0.15)),
    "D = 3": Method((2e-3, 3e-3, 4e-3), "#8c2d5a", _factorized(3, 0.15)),
    "proximal L1": Method((2e-3, 4e-3, 8e-3), "#4f7f3f", _proximal),
    "spectral": Method((4e-3, 1.6e-2, 3.2e-2), "#2a9d9d", _spectral, _spectral_penalty),
    "RBV² norm": Method((4e-3,), "#6a51a3", _norm),
    "RBV² norm, L1 elsewhere": Method((2e-3, 8e-3), "#a6761d", _norm_and_l1),
    "rows, D = 2": Method((1.2e-2, 2.4e-2, 4.8e-2), "#d73027", _shared),
}


def reproduce(
    out: str | Path = "runs/dwf",
    *,
    seeds: int = 3,
    epochs: int = 60,
    methods: Sequence[str] = tuple(METHODS),
    data_root: str | None = None,
    no_train: bool = False,
    quiet: bool = True,
) -> Path:
    r"""Train a transformer on the digits, then go on by each method and strength; write JSON lines, a table and a picture.

    Every net begins as the dense net of its seed, trained by Adam, and is trained for as many epochs again: all have the
    same budget, pruning too. The methods: no penalty; global magnitude pruning of all parameters, then fine-tuning;
    `FactorizedSGD` of depth 2 and 3 and `ProxSGD` on all parameters; spectral layers in the place of all linear ones but the
    last, with α ‖λ‖² + α ‖φ‖², a node up to 5 % of its layer's largest relevance dead at the end; the RBV² norm by proximal
    steps in its path form, which is one of the neurons of the MLP halves alone: attention, embedding and head are free, or
    under L1 with the same λ; and the group lasso on the rows of all linear layers but the last, as a factorization of depth 2
    whose second factor a row shares.

    At the end weights up to 1e-3 become 0, and `prune.compact` makes a smaller copy. Compression is all parameters over those
    of the copy that are not 0; accuracy is the copy's.

    Args:
        out: the folder; runs that its table has are not computed again.
        seeds: nets of each method and strength.
        epochs: passes over the training set, for the dense net and again for each method.
        methods: some of ``METHODS``.
        data_root: as for ``sparsenn train``; the digits come with scikit-learn.
        no_train: make table and picture of the rows that are there.
        quiet: print no line a run.

    Returns:
        The picture's path.

    Raises:
        ValueError: for a setting out of range.
        MissingExtraError: if scikit-learn or matplotlib is not installed.
        RunFolderError: if another process adds to the table, or something can't be written.
    """
    if not methods or not set(methods) <= METHODS.keys():
        raise ValueError(f"transformer: methods are {list(methods)}; it takes some of {', '.join(METHODS)}")
    for name, value in (("seeds", seeds), ("epochs", epochs)):
        if value < 1:
            raise ValueError(f"transformer: {name} is {value}; it takes 1 or more")
    require_extra("matplotlib", "drawing pictures")
    wanted: list[Row] = [
        {"method": method, "strength": strength, "seed": seed, "epochs": epochs}
        for seed in range(seeds)
        for method in METHODS
        if method in methods
        for strength in METHODS[method].strengths
    ]
    path = Path(out) / "transformer.jsonl"
    if not no_train:
        _fill(path, wanted, data_root, quiet)
    rows = Table(path, _KEY).rows_of(wanted)
    write_atomic(Path(out) / "transformer.md", _summary(rows, len(wanted)).encode())
    picture = Path(out) / "transformer.png"
    write_atomic(picture, _draw(rows))
    return picture


def _fill(path: Path, wanted: Sequence[Row], data_root: str | None, quiet: bool) -> None:
    images = datasets.load("digits", data_root)
    start = functools.lru_cache(maxsize=1)(lambda seed, epochs: _start(images, seed, epochs))
    with growing(path, _KEY) as table:
        for row in table.missing(wanted):
            table.add({**row, **_measure(images, start(row["seed"], row["epochs"]), row)})
            if not quiet:
                print(_line(table.rows[-1]), file=sys.stderr, flush=True)


def _start(images: ImageData, seed: int, epochs: int) -> nn.Module:
    """The dense net of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = models.build(MODEL, images.num_classes, images.in_channels, images.image_size)
    _train(net, Adam(net.parameters(), _ADAM), images, seed, range(epochs))
    return net


def _train(
    net: nn.Module, optimizer: Optimizer, images: ImageData, seed: int, epochs: range, penalty: Penalty | None = None
) -> None:
    steps = len(epochs) * batch_count(len(images.train_labels), _BATCH_SIZE)
    scheduler = make_scheduler(optimizer, "cosine", steps)
    noise = torch.Generator().manual_seed(seed)
    for epoch in epochs:
        order = epoch_order(len(images.train_labels), seed, epoch)
        for inputs, labels in batches(images.train_images, images.train_labels, order, _BATCH_SIZE):
            optimizer.zero_grad()
            loss = loss_of(net(inputs + _NOISE * torch.randn(inputs.shape, generator=noise)), labels)
            (loss if penalty is None else loss + penalty(net)).backward()
            optimizer.step()
            scheduler.step()
        if not loss.isfinite():
            raise TrainingDiverged(f"transformer: the loss is not a finite number in epoch {epoch + 1}", epoch + 1, None)


def train(images: ImageData, start: nn.Module, row: Row) -> nn.Module:
    """The net of a row as its training leaves it, from the dense net of its seed."""
    net, method, strength = copy.deepcopy(start), METHODS[row["method"]], row["strength"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", prune.LayerCollapseWarning)  # that a layer dies is a finding here
        optimizer = method.prepare(net, strength, row["seed"])
    own = method.penalty
    penalty = None if own is None else lambda net: strength * own(net)
    _train(net, optimizer, images, row["seed"], range(row["epochs"], 2 * row["epochs"]), penalty)
    return net


@torch.no_grad()
def finished(net: nn.Module) -> nn.Module:
    """A plain copy with exact zeros: masks and factors are gone, neurons balanced, spectral nodes dead or alive."""
    net = prune.remove(copy.deepcopy(net))
    for name, layer in net.named_modules():
        if isinstance(layer, SpectralLayer):
            prune.nodes(net, threshold=_DEAD * float(prune.node_relevance(layer).max()), layers=[name])
    collapse(net)  # from here on weights are parameters, which can be rescaled
    for block in net.modules():
        if isinstance(block, RidgeBlock):
            block.balance_()
    return collapse(net, _CUT)


def _measure(images: ImageData, start: nn.Module, row: Row) -> Row:
    try:
        net = train(images, start, row)
    except TrainingDiverged as error:
        return {"status": "diverged", "stopped_at": error.epoch}
    total = sum(p.numel() for p in start.parameters())
    trained = evaluate(net, images.test_images, images.test_labels)[1]
    by_itself = sparsity_report(net).compression_ratio
    small = prune.compact(finished(net).eval(), images.test_images[:1])
    weights = sum(int(p.count_nonzero()) for p in small.parameters())
    return {
        "status": "finished",
        "accuracy": evaluate(small, images.test_images, images.test_labels)[1],
        "compression": total / weights if weights else None,
        "accuracy_trained": trained,
        "compression_trained": by_itself if math.isfinite(by_itself) else None,
        "weights": weights,
        "stored": sum(p.numel() for p in small.parameters()),
        "neurons": [block.inner.out_features for block in small.modules() if isinstance(block, RidgeBlock)],
    }


def _line(row: Row) -> str:
    what = f"transformer, {row['method']}, {row['strength']:g}, seed {row['seed']}"
    if row["status"] != "finished":
        return f"{what}: diverged in epoch {row['stopped_at']}"
    left = "nothing is left" if row["compression"] is None else f"compression {row['compression']:.1f}"
    return f"{what}: {100 * row['accuracy']:.2f} %, {left}, {row['stored']} numbers stored"


def _of(rows: Sequence[Row], method: str, seed: int | None = None) -> list[Row]:
    return [r for r in rows if r["status"] == "finished" and r["method"] == method and seed in (None, r["seed"])]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cells(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    own = [value for value in values if value is not None]
    if len(own) < len(values) or not own:
        return "–"
    mean, std = mean_std(own)
    return f"{form(mean)} ± {form(std)}"


def _summary(rows: Sequence[Row], wanted: int) -> str:
    """Accuracy at compressions, read off each seed's curve from the dense net on, and where that is two points below it."""
    seeds = sorted({row["seed"] for row in rows})
    dense = {seed: max((r["accuracy"] for r in _of(rows, "dense", seed)), default=None) for seed in seeds}
    lines = [
        f"A transformer on the digits, {len(seeds)} seeds, {len(rows)} of {wanted} runs: test accuracy (%) at compression, "
        "mean ± standard deviation.",
        "",
        f"| method | {' | '.join(f'{c:g}' for c in _COLUMNS)} | compression within {100 * _TOLERANCE:g} points of dense |",
        f"|---|{'---|' * len(_COLUMNS)}---|",
    ]
    for method in METHODS:
        if method == "dense" or not _of(rows, method):
            continue
        own = [[*_of(rows, "dense", seed), *_of(rows, method, seed)] for seed in seeds]
        cells = [_cells([accuracy_at(each, c) for each in own], _percent) for c in _COLUMNS]
        limits = [
            compression_at(each, accuracy - _TOLERANCE) if accuracy is not None else None
            for each, accuracy in zip(own, dense.values(), strict=True)
        ]
        lines.append(f"| {method} | {' | '.join(cells)} | {_cells(limits, lambda value: f'{value:.1f}')} |")
    lines += ["", f"Dense: {_cells(list(dense.values()), _percent)}.", ""]
    return "\n".join(lines)


def _draw(rows: Sequence[Row]) -> bytes:
    """Every net a dot, the medians over seeds a line; the mean of the dense nets a dotted one."""
    figure, axes = panels([""], "A small transformer on the digits", "compression", "test accuracy (%)")
    for name, method in METHODS.items():
        own = _of(rows, name)
        if name == "dense":
            if own:
                axes[0].axhline(mean_std([r["accuracy"] for r in own])[0], color="black", ls=":", lw=1, label="dense")
            continue
        points = living(own)
        axes[0].plot([c for c, _ in points], [a for _, a in points], "o", color=method.color, ms=2.5, alpha=0.5)
        line = sorted(point for strength in method.strengths if (point := _median(own, strength)) is not None)
        axes[0].plot([c for c, _ in line], [a for _, a in line], "-", color=method.color, lw=1.4, label=name)
    accuracy_axes(axes[0], rows)
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    return png(figure)


def _median(rows: Sequence[Row], strength: float) -> Point | None:
    points = living(row for row in rows if row["strength"] == strength)
    return (median(c for c, _ in points), median(a for _, a in points)) if points else None
