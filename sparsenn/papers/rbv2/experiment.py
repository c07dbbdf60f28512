"""The task of the paper's experiments, and one net trained on it.

The text leaves open what each choice here says: the output has one number (the data have one; d = 16 is then the width between
the blocks), a batch is all 81 points, the loss is the mean of the squares, and the control's later layers see the input.
"""

from __future__ import annotations

import copy
import itertools
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsenn import metrics, penalties
from sparsenn.metrics.spectrum import exact_zeros, mean_share_above
from sparsenn.models import SkipMLP
from sparsenn.nn import RidgeNet
from sparsenn.nn.ridge import ridge_blocks
from sparsenn.optim import ridge_proximal
from sparsenn.training.table import Row, Table

NETS = ("ridge", "control")
PENALTIES = ("rbv2", "weight decay", "none", "proximal")
_KEY = ("net", "penalty", "lam", "seed", "epochs", "outputs", "batch_size", "reduction", "skip", "width")
_RECORDS = 100  # evenly spaced in a run, beside those of its first epochs
_EARLY = tuple(round(10 ** (i / 5)) for i in range(26))  # up to 1e5, log-spaced


@dataclass(frozen=True)
class Choices:
    """What the text leaves open, and the sizes that it gives.

    Attributes:
        outputs: D, 1 or 16.
        batch_size: of at most 81 points; smaller ones are drawn anew in every epoch.
        reduction: of the squared errors, "mean" or "sum".
        skip: whether the control's later layers see the input.
        width: K.
        lr: of Adam.
    """

    outputs: int = 1
    batch_size: int = 81
    reduction: str = "mean"
    skip: bool = True
    width: int = 1296
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"rbv2: reduction is {self.reduction!r}; it takes 'mean' or 'sum'")
        for name in ("outputs", "batch_size", "width"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"rbv2: {name} is {getattr(self, name)!r}; it takes an integer >= 1")


def grid_data(outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """The 81 points of {0, 1/2, 1}⁴ and targets drawn uniformly from [−1, 1], one for each output.

    Example:
        >>> from sparsenn.papers.rbv2.experiment import grid_data
        >>> [tuple(t.shape) for t in grid_data(1, seed=0)]
        [(81, 4), (81, 1)]
    """
    x = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=4)))
    return x, torch.rand(len(x), outputs, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make_net(net: str, seed: int, choices: Choices) -> nn.Module:
    """A net of the paper with every parameter drawn uniformly from [−1, 1]."""
    if net == "ridge":
        module: nn.Module = RidgeNet(4, choices.outputs, width=choices.width)
    else:
        module = SkipMLP(4, choices.outputs, width=choices.width, skip=choices.skip)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(-1, 1, generator=generator)
    return module


def run(folder: Path, wanted: list[Row], choices: Choices, *, quiet: bool) -> list[Row]:
    """Train what the folder's table lacks, and give the wanted rows. Weights at the marked epochs stand beside the table."""
    named = [{**row, **{k: v for k, v in asdict(choices).items() if k in _KEY}} for row in wanted]
    table = Table(folder / "runs.jsonl", _KEY)
    for row in table.missing(named):
        result = train(row["net"], row["penalty"], row["lam"], row["seed"], row["epochs"], choices, marks=folder)
        table.add({**row, **result})
        if not quiet:
            print(f"{describe(row)}: MSE {result['mse']:.2g}, {result['above']:.3f} above 1e-3", file=sys.stderr)
    keys = [tuple(row[k] for k in _KEY) for row in named]
    found = {tuple(row[k] for k in _KEY): row for row in table.rows}
    return [found[key] for key in keys]


def describe(row: Row) -> str:
    """A run in words."""
    strength = "" if row["penalty"] == "none" else f", λ = {row['lam']:g}"
    return f"{row['net']}, {row['penalty']}{strength}, seed {row['seed']}"


def weights_file(folder: Path, row: Row) -> Path:
    """Where a run leaves its final weights."""
    name = "-".join(str(row[k]).replace(" ", "_") for k in ("net", "penalty", "lam", "seed", "epochs", "outputs"))
    return folder / "weights" / f"{name}.safetensors"


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


def train(
    net: str, penalty: str, lam: float, seed: int, epochs: int, choices: Choices, marks: Path | None = None
) -> dict[str, Any]:
    """Train one net, and say what became of it.

    Returns:
        "curve", a list of [epoch, share above 1e-3, mean squared error], and of the end "mse", "above", "exact_zeros", "alive"
        (by block), "singular_values" (the largest 32 between the hidden layers) and "rank".
    """
    x, y = grid_data(choices.outputs, seed)
    model = make_net(net, seed, choices)
    if penalty == "proximal":
        optimizer: torch.optim.Optimizer = ridge_proximal(
            model, lambda groups: torch.optim.Adam(groups, lr=choices.lr, fused=True), lam
        )
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=choices.lr, fused=True)
    value = {"rbv2": penalties.rbv2, "weight decay": penalties.weight_decay}.get(penalty)
    generator = torch.Generator().manual_seed(seed)
    when = {e for e in _EARLY if e < epochs} | {round(epochs * i / _RECORDS) for i in range(_RECORDS + 1)}
    curve = [[0, *_state(_cleared(model, penalty), x, y)]]
    for epoch in range(1, epochs + 1):
        for inputs, targets in _batches(x, y, choices.batch_size, generator):
            optimizer.zero_grad()
            squares = (model(inputs) - targets).square()
            loss = squares.mean() if choices.reduction == "mean" else squares.sum()
            (loss if value is None else loss + lam * value(model)).backward()
            optimizer.step()
        if epoch in when:
            curve.append([epoch, *_state(_cleared(model, penalty), x, y)])
    model = _cleared(model, penalty)
    if marks is not None:
        path = weights_file(marks, _named(net, penalty, lam, seed, epochs, choices))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return {"curve": curve, "above": curve[-1][1], "mse": curve[-1][2], **summary(model)}


def _named(net: str, penalty: str, lam: float, seed: int, epochs: int, choices: Choices) -> Row:
    return {"net": net, "penalty": penalty, "lam": lam, "seed": seed, "epochs": epochs, "outputs": choices.outputs}


def _batches(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    if size >= len(x):
        return [(x, y)]
    order = torch.randperm(len(x), generator=generator)
    return [(x[part], y[part]) for part in order.split(size)]


def _cleared(model: nn.Module, penalty: str) -> nn.Module:
    """The same function without the weights into neurons that proximal steps have silenced."""
    return copy.deepcopy(model).balance_() if penalty == "proximal" and isinstance(model, RidgeNet) else model


@torch.no_grad()
def _state(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    return mean_share_above(model), (model(x) - y).square().mean().item()


@torch.no_grad()
def between(model: nn.Module) -> Tensor:
    """The matrix between the two hidden layers: W V of a ridge net, the second layer of the control."""
    if isinstance(model, SkipMLP):
        return model.get_parameter("layers.1.weight").detach()
    first, second = ridge_blocks(model)
    return second.inner.weight @ first.outer.weight


@torch.no_grad()
def summary(model: nn.Module) -> dict[str, Any]:
    """Zeros, living neurons, singular values and rank between the hidden layers."""
    if isinstance(model, SkipMLP):
        values = torch.linalg.svdvals(between(model).double())
        hidden = [layer.weight for layer in model.layers[:-1] if isinstance(layer, nn.Linear)]
        alive = [int((weight.abs() > metrics.NEGLIGIBLE).any(1).sum()) for weight in hidden]
    else:
        layers = metrics.ridge_report(model).layers
        values, alive = torch.tensor(layers[1].singular_values), [layer.alive for layer in layers]
    return {
        "exact_zeros": exact_zeros(model),
        "alive": alive,
        "singular_values": [float(f"{v:.4g}") for v in values[:32].tolist()],
        "rank": metrics.effective_rank(values),
    }
