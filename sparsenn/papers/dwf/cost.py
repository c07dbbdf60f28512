"""Figures 26 and 27: what factors cost in time and memory, beside the dense net and beside factors that autograd multiplies."""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import SGD, Optimizer

from sparsenn import models
from sparsenn.optim import FactorizedSGD
from sparsenn.papers.dwf.figures import color_of, panels
from sparsenn.training.checks import DEVICE
from sparsenn.training.errors import ConfigError
from sparsenn.training.evaluate import loss_of
from sparsenn.training.figures import png
from sparsenn.training.files import write_atomic

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)
_LR, _MOMENTUM, _LAM = 1e-3, 0.9, 1e-6  # small: the loss stays an ordinary number, however long a step is repeated
_WARM, _TURNS = 3, 5
_GLIBC = "MALLOC_MMAP_THRESHOLD_"
# Channels and size of an image, and classes: of MNIST for the LeNets, of CIFAR-100 for the others.
_IMAGES = {"lenet-300-100": (1, 28, 10), "lenet-5": (1, 28, 10)}
_CIFAR = (3, 32, 100)
_LABELS = {
    "dense": "dense, torch.optim.SGD",
    "ours": "FactorizedSGD",
    "balanced": "FactorizedSGD, balanced",
    "eager": "factors under autograd",
}
_STYLES = {"dense": "-", "ours": "-", "balanced": "--", "eager": ":"}


@dataclass(frozen=True)
class Cell:
    """One way to train one net by batches of one size.

    Attributes:
        model: a name of ``sparsenn.models.names()``.
        way: "dense" (SGD on the weights), "ours" (`FactorizedSGD`), "balanced" (the same with one root a weight) or "eager" (a
            parametrization that multiplies the factors, and SGD on them).
        depth: number of factors; 1 for the dense net.
        batch_size: images a step.
        device: where.
    """

    model: str
    way: str
    depth: int
    batch_size: int
    device: str


@dataclass(frozen=True)
class Cost:
    """A row of the table.

    Attributes:
        cell: what was measured.
        figures: seconds a step in each turn, or bytes at the peak of a step beyond those before.
    """

    cell: Cell
    figures: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the turns."""
        return statistics.median(self.figures)

    def over(self, other: Cost) -> float:
        """The median of the ratios of each turn, in which both met the same load."""
        return statistics.median(own / its for own, its in zip(self.figures, other.figures, strict=True))


def reproduce(
    out: str | Path = "runs/dwf-cost",
    *,
    item: str,
    model: str = "lenet-300-100",
    depths: Sequence[int] = (2, 3, 4),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    device: str = "cpu",
    threads: int = 1,
    no_train: bool = False,
    quiet: bool = True,
) -> Path:
    """Measure a training step and draw it against the batch size; write ``<item>-<model>-<device>.csv`` and a picture.

    ``fig26`` has the time of a sample: all ways of one batch size are called in turns within one process. ``fig27`` has the
    memory at the peak of a step: on a GPU what its allocator gives out, on a CPU what a process of its own grows by, which
    Linux tells and other systems do not; a script that calls this needs ``if __name__ == "__main__"``.

    Args:
        out: the folder.
        item: ``fig26`` or ``fig27``.
        model: a name of ``sparsenn.models.names()``; the paper has wide-resnet-16-8 and vgg-19.
        depths: numbers of factors.
        batch_sizes: images a step.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        threads: CPU threads; 0 leaves PyTorch its choice.
        no_train: draw the table that is there.
        quiet: print no line a cell.

    Returns:
        The path of the picture.

    Raises:
        ConfigError: for a setting out of range, a device that is not there, or ``fig27`` on a CPU without Linux.

    Source:
        Kolb et al. 2025, Appendix I.2, Figures 26 and 27.
    """
    cells = _cells(item, model, depths, batch_sizes, device, threads)
    path = Path(out) / f"{item}-{model}-{torch.device(device).type}.csv"
    if not no_train:
        measure = _times if item == "fig26" else _peaks
        path.parent.mkdir(parents=True, exist_ok=True)
        found = []
        for cost in measure(cells, threads):
            found.append(cost)
            if not quiet:
                print(_line(item, cost), file=sys.stderr, flush=True)
        write_atomic(path, _table(found))
    elif not path.exists():
        raise ConfigError(f"{item}: {path} is not there; without no-train it is measured")
    picture = path.with_suffix(".png")
    costs = _read(path)
    if not costs:
        raise ConfigError(f"{item}: {path} has no rows; without no-train they are measured")
    write_atomic(picture, _draw(item, costs))
    return picture


def _cells(item: str, model: str, depths: Sequence[int], batch_sizes: Sequence[int], device: str, threads: int) -> list[Cell]:
    if model not in models.names():
        raise ConfigError(f"model: got {model!r}; it takes one of {', '.join(models.names())}")
    if item not in ("fig26", "fig27"):
        raise ConfigError(f"item: got {item!r}; it takes fig26 or fig27")
    if not DEVICE.fits(device):
        raise ConfigError(f"device is {device!r}; it takes {DEVICE.takes}")
    if threads < 0:
        raise ConfigError(f"threads is {threads}; it takes a whole number, 0 or more")
    for name, values, least in (("depths", depths, 2), ("batch-sizes", batch_sizes, 1)):
        if not values or min(values) < least:
            raise ConfigError(f"{name} are {', '.join(map(str, values))}; they take whole numbers from {least}")
    if item == "fig27" and device == "cpu" and not sys.platform.startswith("linux"):
        raise ConfigError("fig27: the peak memory of a CPU's process is known on Linux alone; a GPU's is known everywhere")
    ways = [("dense", 1), *((way, depth) for way in ("ours", "balanced", "eager") for depth in sorted(set(depths)))]
    return [Cell(model, *way, size, device) for size in sorted(set(batch_sizes)) for way in ways]


class _Product(nn.Module):
    """The product of factors as autograd multiplies it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, *factors: Tensor) -> Tensor:
        return functools.reduce(torch.mul, factors)

    def right_inverse(self, weight: Tensor) -> list[Tensor]:
        root = weight.abs() ** (1 / self.depth)
        return [weight.sign() * root, *(root.clone() for _ in range(self.depth - 1))]


def make_step(cell: Cell) -> Callable[[], Tensor]:
    """A step of training on one batch of noise: forward, backward, optimizer; it returns the loss.

    Example:
        >>> from sparsenn.papers.dwf.cost import Cell, make_step
        >>> step = make_step(Cell("lenet-300-100", "ours", 2, 8, "cpu"))
        >>> first, second = step().item(), step().item()
        >>> second < first
        True
    """
    channels, size, classes = _IMAGES.get(cell.model, _CIFAR)
    torch.manual_seed(0)
    net = models.build(cell.model, classes, in_channels=channels, image_size=size).to(cell.device)
    return _step(cell, net, torch.randn(cell.batch_size, channels, size, size).to(cell.device), classes)


def _step(cell: Cell, net: nn.Module, images: Tensor, classes: int) -> Callable[[], Tensor]:
    labels = torch.randint(classes, (len(images),)).to(cell.device)
    optimizer = _optimizer(cell, net)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(net(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _optimizer(cell: Cell, net: nn.Module) -> Optimizer:
    if cell.way in ("ours", "balanced"):
        return FactorizedSGD(
            net.parameters(),
            _LR,
            depth=cell.depth,
            lam=_LAM,
            momentum=_MOMENTUM,
            factor_init="root",
            balanced=cell.way == "balanced",
            generator=torch.Generator().manual_seed(0),
        )
    if cell.way == "eager":
        for module in [*net.modules()]:
            for name in [name for name, _ in module.named_parameters(recurse=False)]:
                parametrize.register_parametrization(module, name, _Product(cell.depth))
    return SGD(net.parameters(), _LR, momentum=_MOMENTUM, weight_decay=2 * _LAM / cell.depth, fused=True)


def _times(cells: Sequence[Cell], threads: int) -> Iterable[Cost]:
    """Seconds of a step: for each turn and cell the mean of so many steps that a turn takes about a fifth of a second."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        for size in sorted({cell.batch_size for cell in cells}):
            own = [cell for cell in cells if cell.batch_size == size]
            steps = [make_step(cell) for cell in own]
            counts = [_count(step, own[0].device) for step in steps]
            seconds: list[list[float]] = [[] for _ in own]
            for turn in range(_TURNS):
                for i in range(len(own)):
                    at = (i + turn) % len(own)
                    seconds[at].append(_seconds(steps[at], counts[at], own[at].device))
            yield from (Cost(cell, tuple(found)) for cell, found in zip(own, seconds, strict=True))
    finally:
        torch.set_num_threads(before)


def _count(step: Callable[[], Tensor], device: str) -> int:
    _seconds(step, _WARM, device)
    return max(1, math.ceil(0.2 / max(_seconds(step, _WARM, device), 1e-9)))


def _seconds(step: Callable[[], Tensor], count: int, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return (time.perf_counter() - start) / count


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _peaks(cells: Sequence[Cell], threads: int) -> Iterable[Cost]:
    for cell in cells:
        if torch.device(cell.device).type == "cuda":
            peak = _peak_of_gpu(cell)
        else:
            with _returning_memory(), ProcessPoolExecutor(1, get_context("spawn")) as pool:
                peak = pool.submit(_peak_of_process, cell, threads).result()
        yield Cost(cell, (float(peak),))


@contextmanager
def _returning_memory() -> Iterator[None]:
    """Processes that begin here give every larger block back when it is freed; what glibc keeps would be counted by chance."""
    before = os.environ.get(_GLIBC)
    os.environ[_GLIBC] = str(1 << 14)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_GLIBC]
        else:
            os.environ[_GLIBC] = before


def _peak_of_gpu(cell: Cell) -> int:
    """What the allocator gives out beyond what libraries keep, which a step of a few weights before makes them ask for."""
    _small_step(cell)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(cell.device)
    step = make_step(cell)
    torch.cuda.reset_peak_memory_stats(cell.device)
    for _ in range(_WARM):
        step()
    return torch.cuda.max_memory_allocated(cell.device) - before


def _peak_of_process(cell: Cell, threads: int) -> int:
    """What this process grows by; libraries are loaded and set up by a step of a few weights before."""
    if threads:
        torch.set_num_threads(threads)
    _small_step(cell)
    before = _resident("VmRSS")
    step = make_step(cell)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here on
    for _ in range(_WARM):
        step()
    return _resident("VmHWM") - before


def _small_step(cell: Cell) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).to(cell.device)
    _step(cell, net, torch.zeros(2, 1, 4, 4, device=cell.device), classes=2)()


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ConfigError(f"fig27: /proc/self/status has no {field}")


def _line(item: str, cost: Cost) -> str:
    cell = cost.cell
    what = f"{cell.model}, batch {cell.batch_size}, {_label(cell.way, cell.depth)}"
    if item == "fig26":
        return f"{what}: {1e6 * cost.median / cell.batch_size:.3g} us a sample"
    return f"{what}: {cost.median / 2**20:.1f} MiB"


def _label(way: str, depth: int) -> str:
    return _LABELS[way] + (f", D = {depth}" if way != "dense" else "")


def _table(costs: Iterable[Cost]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*(field.name for field in fields(Cell)), "figures"])
    for cost in costs:
        writer.writerow([*astuple(cost.cell), " ".join(f"{figure:.6g}" for figure in cost.figures)])
    return stream.getvalue().encode()


def _read(path: Path) -> list[Cost]:
    with path.open(newline="", encoding="utf-8") as file:
        return [_parsed(row) for row in csv.DictReader(file)]


def _parsed(row: dict[str, str]) -> Cost:
    cell = Cell(row["model"], row["way"], int(row["depth"]), int(row["batch_size"]), row["device"])
    return Cost(cell, tuple(map(float, row["figures"].split())))


def _draw(item: str, costs: Sequence[Cost]) -> bytes:
    """Left the figure itself, right its ratio to the dense net's."""
    scale, unit = (1e6, "µs a sample") if item == "fig26" else (2.0**-20, "MiB at the peak of a step")
    net = costs[0].cell
    title = f"{item.replace('fig', 'Figure ')}. {net.model} on {torch.device(net.device).type}"
    figure, (left, right) = panels(["", "beside the dense net"], title, "batch size", unit)
    right.set_ylabel("ratio")
    dense = {cost.cell.batch_size: cost for cost in costs if cost.cell.way == "dense"}
    for way, depth in dict.fromkeys((cost.cell.way, cost.cell.depth) for cost in costs):
        own = {c.cell.batch_size: c for c in costs if (c.cell.way, c.cell.depth) == (way, depth)}
        color = color_of(("dense" if way == "dense" else "dwf", depth))
        style = {"color": color, "ls": _STYLES[way], "marker": "o", "ms": 3, "lw": 1.2}
        shares = [1 / size if item == "fig26" else 1.0 for size in own]
        left.plot([*own], [scale * cost.median * share for cost, share in zip(own.values(), shares, strict=True)], **style)
        right.plot([*own], [cost.over(dense[size]) for size, cost in own.items()], label=_label(way, depth), **style)
    left.set(yscale="log")
    for axes in (left, right):
        axes.set(xscale="log")
        axes.set_xticks(sorted(dense), [str(size) for size in sorted(dense)], fontsize=8)
        axes.minorticks_off()
    right.legend(frameon=False, fontsize=7)
    return png(figure)
